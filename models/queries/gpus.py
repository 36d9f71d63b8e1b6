"""The GPUs (and CPU slots) as their workers report them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from sqlalchemy import RowMapping, Text, func, literal, select, text, update
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Session

from models.errors import NotFoundError
from models.queries.history import WAKE_CHANNEL
from models.settings import settings
from models.tables import Attempt, Gpu

# The host of devices whose pod runs one job of its own (own_pod.py): none of the pool's.
POD_HOST = "k8s-job"


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuView:
    """One GPU for people: `state` is the first of these words that fits.

    stale (no fresh heartbeat), busy (a job runs, or the trainer works), placed (a job is on its
    way), held (a foreign process uses its memory), unknown (its worker has not said yet), cordoned,
    free.
    """

    id: int
    host: str
    index: int
    uuid: str
    kind: str
    model: str
    memory_bytes: int
    queue: str
    worker: str
    state: str
    reason: str | None
    cordoned: bool
    job_id: str | None
    loaded_base: str | None
    trainer_pid: int | None
    heartbeat_age_seconds: float
    labels: dict[str, Any]
    versions: dict[str, Any]


def register_gpu(
    session: Session,
    *,
    host: str,
    index: int,
    uuid: str,
    kind: str,
    model: str,
    memory_bytes: int,
    queue: str,
    worker: str,
    worker_session: str,
    boot_id: str,
    versions: dict[str, Any],
    cordoned: bool | None = None,
) -> int:
    """A worker's new session takes its GPU's row; returns the row's id. `cordoned`: as it was.

    The GPU counts as unknown until the first heartbeat of this session says that it is idle.
    """
    # A card that was moved to another index or host leaves its old row without a worker.
    session.execute(
        update(Gpu)
        .where(Gpu.uuid == uuid, (Gpu.host != host) | (Gpu.index != index))
        .values(
            uuid=func.concat(Gpu.uuid, " moved ", Gpu.id),
            stopped_at=func.clock_timestamp(),
            reported="unknown",
            reason=f"now {host} {index}",
        )
        .execution_options(synchronize_session=False)
    )
    values: dict[str, Any] = {
        "uuid": uuid,
        "kind": kind,
        "model": model,
        "memory_bytes": memory_bytes,
        "queue": queue,
        "worker": worker,
        "worker_session": worker_session,
        "boot_id": boot_id,
        "versions": versions,
        "reported": "unknown",
        "reason": "its worker is starting",
        "heartbeat_at": func.clock_timestamp(),
        "stopped_at": None,
        "loaded_base": None,
        "trainer_pid": None,
    }
    if cordoned is not None:
        values["cordoned"] = cordoned
    return session.scalars(
        upsert(Gpu)
        .values(host=host, index=index, **values)
        .on_conflict_do_update(index_elements=["host", "index"], set_=values)
        .returning(Gpu.id)
    ).one()


# The dispatcher is woken by a GPU that has become idle, or that is idle while jobs are queued:
# placing skips locked rows, so a heartbeat may have hidden its GPU at the very moment of a wake-up.
_HEARTBEAT = text("""
    WITH before AS (
        SELECT id, reported FROM gpus
        WHERE id = :gpu_id AND worker_session = :worker_session
        FOR NO KEY UPDATE
    ), beat AS (
        UPDATE gpus
        SET reported = :reported, reason = :reason, loaded_base = :loaded_base,
            trainer_pid = :trainer_pid, heartbeat_at = clock_timestamp(), stopped_at = NULL
        FROM before
        WHERE gpus.id = before.id
        RETURNING before.reported AS was
    )
    SELECT CASE WHEN :reported = 'idle'
                     AND (was <> 'idle' OR EXISTS (
                         SELECT FROM jobs WHERE state = 'queued' AND waits_for IS NULL))
                THEN pg_notify(:wake_channel, '')::text ELSE '' END
    FROM beat
""")


def heartbeat(
    session: Session,
    gpu_id: int,
    worker_session: str,
    *,
    reported: str,
    reason: str | None = None,
    loaded_base: str | None = None,
    trainer_pid: int | None = None,
) -> bool:
    """Report a GPU: idle, busy, unknown or held. False: a later session owns the row.

    When it ends an attempt too, report first: rows are locked in the order gpus → jobs.
    """
    beat = session.execute(
        _HEARTBEAT,
        {
            "gpu_id": gpu_id,
            "worker_session": worker_session,
            "reported": reported,
            "reason": reason,
            "loaded_base": loaded_base,
            "trainer_pid": trainer_pid,
            "wake_channel": WAKE_CHANNEL,
        },
    ).one_or_none()
    return beat is not None


def mark_gone(session: Session, gpu_id: int, worker_session: str) -> None:
    """The worker leaves in good order: nothing is placed here until a heartbeat comes again."""
    session.execute(
        update(Gpu)
        .where(Gpu.id == gpu_id, Gpu.worker_session == worker_session)
        .values(
            reported="unknown",
            reason="its worker has stopped",
            stopped_at=func.clock_timestamp(),
            loaded_base=None,
            trainer_pid=None,
        )
        .execution_options(synchronize_session=False)
    )


def set_cordon(session: Session, host: str, index: int | None, on: bool) -> list[int]:  # noqa: FBT001 (the one thing it sets)
    """Keep new jobs off a GPU (all of a host's for no index), or let them on again.

    What runs goes on. Returns the rows' ids. Raises NotFoundError.
    """
    changed = _change(session, host, index, cordoned=on)
    if not on:
        session.execute(select(func.pg_notify(WAKE_CHANNEL, "")))
    return changed


def set_labels(
    session: Session, host: str, index: int | None, labels: dict[str, str | None]
) -> list[int]:
    """Add labels to a GPU (all of a host's for no index); None takes one away.

    Returns the rows' ids. Raises NotFoundError.
    """
    added = {name: value for name, value in labels.items() if value is not None}
    removed = [name for name, value in labels.items() if value is None]
    merged = Gpu.labels.op("||")(literal(added, JSONB)).op("-")(literal(removed, ARRAY(Text)))
    changed = _change(session, host, index, labels=merged)
    session.execute(select(func.pg_notify(WAKE_CHANNEL, "")))
    return changed


def jobs_on(session: Session, gpu_ids: Sequence[int]) -> list[str]:
    """The jobs that are placed or run on these GPUs."""
    return list(
        session.scalars(
            select(Attempt.job_id)
            .where(Attempt.gpu_id.in_(gpu_ids), Attempt.ended_at.is_(None))
            .order_by(Attempt.gpu_id)
        )
    )


def _change(session: Session, host: str, index: int | None, **values: Any) -> list[int]:
    statement = update(Gpu).where(Gpu.host == host)
    if index is not None:
        statement = statement.where(Gpu.index == index)
    changed = session.scalars(
        statement.values(**values).returning(Gpu.id).execution_options(synchronize_session=False)
    ).all()
    if not changed:
        what = f"no GPU on host {host}" if index is None else f"no GPU {index} on host {host}"
        raise NotFoundError(f"there is {what}", remedy="`celora gpus` lists them")
    return list(changed)


_VIEW = text("""
    SELECT gpus.*, live.job_id, live.claimed_at,
           extract(epoch FROM clock_timestamp() - heartbeat_at)::float8 AS heartbeat_age_seconds
    FROM gpus
    LEFT JOIN attempts AS live ON live.gpu_id = gpus.id AND live.ended_at IS NULL
    ORDER BY host, index
""")


def list_gpus(session: Session) -> list[GpuView]:
    """All GPUs that ever reported, by host and index."""
    names = [field.name for field in fields(GpuView) if field.name != "state"]
    return [
        GpuView(state=_word(row), **{name: row[name] for name in names})
        for row in session.execute(_VIEW).mappings()
    ]


def _word(row: RowMapping) -> str:
    if row["stopped_at"] is not None or (
        row["heartbeat_age_seconds"] > settings().gpu_stale_seconds
    ):
        return "stale"
    if row["claimed_at"] is not None:
        return "busy"
    if row["job_id"] is not None:
        return "placed"
    if row["reported"] != "idle":
        return str(row["reported"])
    return "cordoned" if row["cordoned"] else "free"
