"""After a restore: the database went back in time, and the store, the workers and people did not.

What the database forgot may have left files under fences that it would hand out once more, and
trainers that know ids which it would give to others. Run on a database that nobody else uses.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.orm import Session

from models.queries.fence import lock_job
from models.queries.history import add_event
from models.queries.settle import settle
from models.states import JobState, Outcome

_ID_STEP = 1_000_000

_FOR_GOOD = {JobState.COMPLETED, JobState.CANCELLED}

REASON = "the database was restored from a backup"


@dataclass(frozen=True, slots=True)
class Standing:
    """One place in the store that the records promise."""

    kind: str  # checkpoints, adapters, prepared, uploads
    id: str
    job_id: str | None
    url: str
    size_bytes: int
    needed: bool  # by a job that may still run


def other_sessions(session: Session) -> int:
    """How many others are connected to this database."""
    return int(session.scalar(_OTHERS) or 0)


def live_jobs(session: Session) -> list[str]:
    return list(session.scalars(_LIVE))


def end_live(session: Session, job_id: str) -> bool:
    """End the job's live attempt as lost, which is not counted against the job."""
    job, now = lock_job(session, job_id)
    return settle(session, job, now, Outcome.LOST, reason=REASON, counted=False, at_its_lease=True)


def raise_fences(session: Session, stored: Mapping[str, int]) -> int:
    """Put the fence of every job that may run above all that was ever handed out; how many jobs.

    `stored`: the highest fence that has a folder in the store. To the next thousand, for attempts
    that the database forgot need not have left a folder. A second time changes nothing.
    """
    values = {"job_ids": list(stored), "fences": list(stored.values())}
    return len(session.execute(_RAISE_FENCES, values).all())


def advance_ids(session: Session) -> None:
    """Ids that a forgotten worker or a watcher still knows are given to nobody else."""
    for table in ("attempts", "events"):
        newest, last = session.execute(text(_LAST_IDS.format(table=table))).one()
        if last <= newest or last % _ID_STEP:  # else nothing was given since the last time
            beyond = (max(newest, last) // _ID_STEP + 1) * _ID_STEP
            session.execute(_SET_LAST_ID, {"table": table, "last": beyond})


def known_among(session: Session, job_ids: Collection[str]) -> set[str]:
    return set(session.scalars(_KNOWN, {"job_ids": list(job_ids)}))


def standing(session: Session) -> list[Standing]:
    return [Standing(**row) for row in session.execute(_STANDING).mappings()]


def unregister_checkpoints(session: Session, job_id: str, ids: Collection[int]) -> None:
    job, _ = lock_job(session, job_id)
    session.execute(_FORGET_CHECKPOINTS, {"ids": list(ids)})
    if job.state in _FOR_GOOD:
        return
    left = session.scalar(_NEWEST_STEP, {"job_id": job_id})
    start = "the start" if left is None else f"step {left}"
    add_event(
        session,
        job.id,
        "checkpoint_missing",
        f"{len(ids)} of its checkpoints are not in the store since {REASON}: a run goes on from"
        f" {start}",
        level="warn",
    )


def tell_missing_adapter(session: Session, job_id: str, ids: Collection[int]) -> None:
    """A job that may still run trains it anew; else it is only said, as it may be found again."""
    job, _ = lock_job(session, job_id)
    again = bool(session.execute(_TRAIN_AGAIN, {"job_id": job.id}).all())
    if again:
        session.execute(_FORGET_ARTIFACTS, {"ids": list(ids)})
    add_event(
        session,
        job.id,
        "adapter_missing",
        f"its adapter is not in the store since {REASON}"
        + ("; it is trained anew" if again else ""),
        level="warn" if again else "error",
    )


def forget_prepared(session: Session, urls: Collection[str]) -> int:
    """Prepared data that is not there: jobs that need it prepare it anew; returns how many."""
    session.execute(_FORGET_PREPARED, {"urls": list(urls)})
    job_ids = session.scalars(_PREPARE_AGAIN, {"urls": list(urls)}).all()
    session.execute(_FORGET_PLACES, {"urls": list(urls)})
    for job_id in job_ids:
        add_event(
            session,
            job_id,
            "prepared_missing",
            f"its prepared data is not in the store since {REASON}; it is prepared anew",
            level="warn",
        )
    return len(job_ids)


def doubt_gpus(session: Session) -> int:
    """No GPU has been seen: each is free when its own worker says so."""
    return len(session.execute(_DOUBT_GPUS, {"reason": REASON}).all())


def hold_deliveries(session: Session) -> tuple[int, int]:
    """(waiting for webhooks, held): what was waiting may have been sent after the backup.

    A webhook's receiver knows a message that comes twice by its id; people do not.
    """
    session.execute(_FREE_TARGETS)
    held = len(session.execute(_HOLD, {"cause": f"held: {REASON}, it may have been sent"}).all())
    return int(session.scalar(_WAITING) or 0), held


def has_foreign_order(session: Session) -> bool:
    """Whether events carry transactions of another server, which are yet to come on this one."""
    return bool(session.scalar(_FOREIGN))


def forget_order(session: Session, after_id: int, limit: int) -> int | None:
    """Have the next events after an id count by their ids alone; the last one's id, none: done.

    In rising order: what carries the highest transactions is left to the end, so that a second
    call after an interruption finds that there is something to do.
    """
    last: int | None = session.scalar(_FORGET_ORDER, {"after_id": after_id, "limit": limit})
    return last


_OTHERS = text("""
    SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid()
      AND backend_type = 'client backend'
""")

_LIVE = text("SELECT job_id FROM attempts WHERE ended_at IS NULL ORDER BY job_id")

_KNOWN = text("SELECT id FROM jobs WHERE id = ANY (CAST(:job_ids AS text[]))")

_RAISE_FENCES = text("""
    WITH stored AS (
        SELECT * FROM unnest(CAST(:job_ids AS text[]), CAST(:fences AS bigint[]))
            AS stored (job_id, fence)
    ), highest AS (
        SELECT jobs.id, (greatest(
            stored.fence,
            (SELECT max(fence) FROM attempts WHERE attempts.job_id = jobs.id), 0
        ) / 1000 + 1) * 1000 AS next
        FROM jobs LEFT JOIN stored ON stored.job_id COLLATE "C" = jobs.id
        WHERE jobs.state NOT IN ('completed', 'cancelled')
    )
    UPDATE jobs SET fence = highest.next
    FROM highest WHERE jobs.id = highest.id AND jobs.fence < highest.next
    RETURNING jobs.id
""")

_LAST_IDS = """
    SELECT coalesce(max(id), 0), coalesce(pg_sequence_last_value(
        CAST(pg_get_serial_sequence('{table}', 'id') AS regclass)), 0)
    FROM {table}
"""

_SET_LAST_ID = text("SELECT setval(pg_get_serial_sequence(:table, 'id'), :last)")

_STANDING = text("""
    SELECT 'checkpoints' AS kind, CAST(checkpoints.id AS text) AS id, job_id, url, size_bytes,
           state NOT IN ('completed', 'cancelled') AS needed
    FROM checkpoints JOIN jobs ON jobs.id = job_id WHERE deleted_at IS NULL
    UNION ALL
    SELECT 'adapters', CAST(artifacts.id AS text), job_id, url, size_bytes,
           state NOT IN ('completed', 'cancelled')
    FROM artifacts JOIN jobs ON jobs.id = job_id WHERE deleted_at IS NULL
    UNION ALL
    SELECT 'prepared', url, NULL, url, max(size_bytes), bool_or(needed)
    FROM (
        SELECT url, size_bytes, false AS needed FROM prepared_data WHERE deleted_at IS NULL
        UNION ALL
        SELECT prepared_url, 0, state NOT IN ('completed', 'cancelled')
        FROM jobs WHERE prepared_url IS NOT NULL
    ) AS places
    GROUP BY url
    UNION ALL
    SELECT 'uploads', id, NULL, url, size_bytes, false FROM files WHERE deleted_at IS NULL
    ORDER BY 1, 3, 2
""")

_FORGET_CHECKPOINTS = text("""
    UPDATE checkpoints SET deleted_at = clock_timestamp()
    WHERE id = ANY (CAST(:ids AS bigint[])) AND deleted_at IS NULL
""")

_NEWEST_STEP = text("""
    SELECT max(step) FROM checkpoints WHERE job_id = :job_id AND deleted_at IS NULL
""")

_TRAIN_AGAIN = text("""
    UPDATE jobs
    SET adapter_url = NULL, stage = CASE WHEN stage = 'evaluate' THEN 'train' ELSE stage END
    WHERE id = :job_id AND purpose = 'tune' AND state NOT IN ('completed', 'cancelled')
    RETURNING id
""")

_FORGET_ARTIFACTS = text("""
    UPDATE artifacts SET deleted_at = clock_timestamp()
    WHERE id = ANY (CAST(:ids AS bigint[])) AND deleted_at IS NULL
""")

_FORGET_PREPARED = text("""
    UPDATE prepared_data SET deleted_at = clock_timestamp()
    WHERE url = ANY (CAST(:urls AS text[])) AND deleted_at IS NULL
""")

# A job that waits to be evaluated trains on from its newest checkpoint first, which is its last.
_PREPARE_AGAIN = text("""
    UPDATE jobs SET stage = 'preprocess',
        state = CASE WHEN state = 'queued' THEN 'pending' ELSE state END
    WHERE prepared_url = ANY (CAST(:urls AS text[])) AND purpose = 'tune'
      AND state IN ('queued', 'running', 'paused', 'failed') AND stage IN ('train', 'evaluate')
    RETURNING id
""")

_FORGET_PLACES = text("""
    UPDATE jobs SET prepared_url = NULL WHERE prepared_url = ANY (CAST(:urls AS text[]))
""")

_DOUBT_GPUS = text("""
    UPDATE gpus
    SET stopped_at = clock_timestamp(), reported = 'unknown', reason = :reason,
        loaded_base = NULL, trainer_pid = NULL
    WHERE stopped_at IS NULL
    RETURNING id
""")

_FREE_TARGETS = text(
    "UPDATE notification_targets SET busy_until = NULL WHERE busy_until IS NOT NULL"
)

_HOLD = text("""
    UPDATE deliveries SET state = 'failed', ended_at = clock_timestamp(), cause = :cause
    FROM notification_targets AS targets
    WHERE targets.id = target_id AND targets.kind <> 'webhook' AND deliveries.state = 'waiting'
    RETURNING deliveries.id
""")

_WAITING = text("SELECT count(*) FROM deliveries WHERE state = 'waiting'")

_FOREIGN = text("""
    SELECT EXISTS (
        SELECT FROM events
        WHERE written_by >= CAST(CAST(pg_snapshot_xmax(pg_current_snapshot()) AS text) AS bigint))
""")

_FORGET_ORDER = text("""
    WITH next AS (
        SELECT id FROM events WHERE id > :after_id ORDER BY id LIMIT :limit
    ), changed AS (
        UPDATE events SET written_by = NULL
        FROM next WHERE events.id = next.id AND written_by IS NOT NULL
    )
    SELECT max(id) FROM next
""")
