"""What the rules of retention let go, and the marks that come before files are deleted.

Looking through everything takes a while, and locks nothing. Marking changes rows only, a few in
each short transaction: what is marked is promised to nobody any more, and its files may go. It
first locks the jobs in question, as somebody may just be running a failed one again, and then looks
once more whether they are as they were.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import TextClause, text
from sqlalchemy.orm import Session

from models.queries.retention_rules import (
    RULES,
    UNFINISHED,
    TenantRules,
    rule_values,
    take_time,
    with_rules,
)
from models.retention import CheckpointRule
from models.settings import settings


@dataclass(frozen=True, slots=True)
class Candidate:
    """What the rules let go when they were looked at."""

    id: Any  # of the row; the digest of prepared data
    owner: str  # the job's id; the URL of prepared data
    looked_at: datetime  # on the database's clock


@dataclass(frozen=True, slots=True)
class Gone:
    """What has been marked."""

    kind: str  # checkpoints, adapters, prepared
    url: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Kind:
    """How one kind is looked for and marked."""

    find: Callable[[Session, Sequence[TenantRules]], list[Candidate]]
    mark: Callable[[Session, Sequence[Candidate]], list[Gone]]


# How long what a failed job worked on is kept for it, in case that it is run again.
_FAILED_DAYS = CheckpointRule().failed_max_age_days


def needed_artifacts(*, by_failed: bool = True) -> str:
    """SQL of the ids of artifacts that something needs, whatever the rules say.

    `by_failed`: what failed a while ago needs too. Whatever else comes to need an adapter joins in
    here, with another UNION ALL.
    """
    failed = f"""
        jobs.state = 'failed'
        AND jobs.finished_at > statement_timestamp() - interval '{_FAILED_DAYS} days'
    """
    failed = failed if by_failed else "false"
    return f"""
        SELECT artifacts.id FROM artifacts JOIN jobs ON jobs.id = artifacts.job_id
        WHERE jobs.state IN ({UNFINISHED})
        UNION ALL  -- the adapter that a job begins with, which may be run again when it failed
        SELECT artifacts.id FROM artifacts JOIN jobs ON jobs.spec ->> 'after' = artifacts.job_id
        WHERE (jobs.state IN ({UNFINISHED}) OR {failed})
          AND jobs.spec ->> 'start_from_adapter' = 'true'
        UNION ALL  -- what is to be exported or talked to
        SELECT artifacts.id FROM artifacts JOIN jobs ON jobs.source_job = artifacts.job_id
        WHERE jobs.state IN ({UNFINISHED}) OR {failed} AND jobs.purpose = 'export'
        UNION ALL  -- a version under a name
        SELECT artifact_id FROM adapters WHERE deleted_at IS NULL
    """  # noqa: S608 (constants)


def preview(session: Session, rules: Sequence[TenantRules]) -> list[tuple[str, int, int]]:
    """(kind, count, bytes) of what the next sweep would mark."""
    take_time(session)
    return [
        (kind, number, int(size_bytes))
        for kind, number, size_bytes in session.execute(_PREVIEW, rule_values(rules))
        if number
    ]


def find_checkpoints(session: Session, rules: Sequence[TenantRules]) -> list[Candidate]:
    return _find(session, _FIND_CHECKPOINTS, rules)


def mark_checkpoints(session: Session, found: Sequence[Candidate]) -> list[Gone]:
    return _mark(session, _MARK_CHECKPOINTS, found)


def find_artifacts(session: Session, rules: Sequence[TenantRules]) -> list[Candidate]:
    """Adapters and models."""
    return _find(session, _FIND_ARTIFACTS, rules)


def mark_artifacts(
    session: Session, found: Sequence[Candidate], *, on_request: bool = False
) -> list[Gone]:
    """Their jobs point at them no longer. `on_request`: no failed job keeps them."""
    return _mark(session, _MARK_ARTIFACTS[on_request], found)


def find_prepared(session: Session, rules: Sequence[TenantRules]) -> list[Candidate]:
    return _find(session, _FIND_PREPARED, rules)


def mark_prepared(session: Session, found: Sequence[Candidate]) -> list[Gone]:
    """The jobs that used it forget it; a failed one that is run again prepares it anew."""
    session.execute(_LOCK_FAILED, {"urls": [one.owner for one in found]})
    values = _of(found) | {"orphan_seconds": settings().orphan_seconds}
    gone = [Gone(*row) for row in session.execute(_MARK_PREPARED, values)]
    session.execute(_FORGET_PREPARED, {"urls": [one.url for one in gone]})
    return gone


KINDS = (
    Kind(find_checkpoints, mark_checkpoints),
    Kind(find_artifacts, mark_artifacts),
    Kind(find_prepared, mark_prepared),
)


def _find(session: Session, statement: TextClause, rules: Sequence[TenantRules]) -> list[Candidate]:
    take_time(session)
    return [Candidate(*row) for row in session.execute(statement, rule_values(rules))]


def _mark(session: Session, statement: TextClause, found: Sequence[Candidate]) -> list[Gone]:
    """A job that is locked by somebody else is left for the next sweep."""
    job_ids = {"job_ids": sorted({one.owner for one in found})}
    locked = set(session.scalars(_LOCK_JOBS, job_ids))
    mine = [one for one in found if one.owner in locked]
    return [Gone(*row) for row in session.execute(statement, _of(mine))] if mine else []


def _of(found: Sequence[Candidate]) -> dict[str, Any]:
    return {
        "ids": [one.id for one in found],
        "looked_at": min((one.looked_at for one in found), default=None),
    }


_CHECKPOINTS = """
    old_checkpoints AS (
        SELECT checkpoints.id, job_id, size_bytes
        FROM checkpoints JOIN jobs ON jobs.id = job_id
        JOIN rules ON rules.tenant_id = jobs.tenant_id AND rules.kind = 'checkpoints'
        WHERE deleted_at IS NULL
          AND coalesce(finished_at, jobs.created_at) < statement_timestamp()
              - CASE state WHEN 'completed' THEN max_age
                           WHEN 'failed' THEN failed_max_age
                           WHEN 'cancelled' THEN failed_max_age END
    ), ranked_checkpoints AS (
        SELECT checkpoints.id, job_id, size_bytes, state, keep, max_bytes,
               row_number() OVER furthest AS place, sum(size_bytes) OVER newest AS bytes
        FROM checkpoints JOIN jobs ON jobs.id = job_id
        JOIN counted ON counted.tenant_id = jobs.tenant_id AND counted.kind = 'checkpoints'
        WHERE deleted_at IS NULL
        WINDOW furthest AS (PARTITION BY job_id ORDER BY checkpoints.step DESC,
                            checkpoints.id DESC),
               newest AS (PARTITION BY counted.tenant_id ORDER BY registered_at DESC,
                          checkpoints.id DESC)
    ), expired_checkpoints AS (
        SELECT id, job_id, size_bytes FROM old_checkpoints
        UNION
        SELECT id, job_id, size_bytes FROM ranked_checkpoints
        WHERE state IN ('completed', 'cancelled') AND (place > keep OR bytes > max_bytes)
    )
"""

_ARTIFACTS = f"""
    old_artifacts AS (
        SELECT artifacts.id, job_id, size_bytes
        FROM artifacts JOIN jobs ON jobs.id = job_id
        JOIN rules ON rules.tenant_id = jobs.tenant_id AND rules.kind = 'adapters'
        WHERE deleted_at IS NULL AND artifacts.created_at < statement_timestamp() - max_age
    ), ranked_artifacts AS (
        SELECT artifacts.id, job_id, size_bytes, state, keep, max_bytes,
               row_number() OVER newest AS place, sum(size_bytes) OVER newest AS bytes
        FROM artifacts JOIN jobs ON jobs.id = job_id
        JOIN counted ON counted.tenant_id = jobs.tenant_id AND counted.kind = 'adapters'
        WHERE deleted_at IS NULL
        -- Exports apart: they can be made again, and push out no adapter.
        WINDOW newest AS (PARTITION BY counted.tenant_id, artifacts.kind = 'export'
                          ORDER BY artifacts.created_at DESC, artifacts.id DESC)
    ), expired_artifacts AS (
        SELECT * FROM (
            SELECT id, job_id, size_bytes FROM old_artifacts
            UNION
            SELECT id, job_id, size_bytes FROM ranked_artifacts
            WHERE state <> 'failed' AND (place > keep OR bytes > max_bytes)
        ) AS expired
        WHERE id NOT IN ({needed_artifacts()})
    )
"""  # noqa: S608 (joined from constants)

# A failed job that still has a checkpoint goes on from there, on the same data or not at all.
_PREPARED = f"""
    unused AS (
        SELECT digest, url, size_bytes, last_used_at FROM prepared_data
        WHERE deleted_at IS NULL AND last_used_at
              < clock_timestamp() - make_interval(secs => :orphan_seconds)
    ), used AS (
        SELECT digest, url, size_bytes, jobs.tenant_id,
               greatest(last_used_at, max(finished_at)) AS used_at,
               bool_or(state IN ({UNFINISHED}) OR state = 'failed' AND (
                   max_age IS NULL OR finished_at > statement_timestamp() - max_age
                   OR EXISTS (SELECT FROM checkpoints
                              WHERE checkpoints.job_id = jobs.id AND deleted_at IS NULL)
               )) AS needed
        FROM unused JOIN jobs ON jobs.prepared_url = url
        JOIN rules ON rules.tenant_id = jobs.tenant_id AND rules.kind = 'prepared'
        GROUP BY digest, url, size_bytes, last_used_at, jobs.tenant_id
    ), ranked AS (
        SELECT used.*, row_number() OVER newest AS place, sum(size_bytes) OVER newest AS bytes
        FROM used WINDOW newest AS (PARTITION BY tenant_id ORDER BY used_at DESC, digest)
    ), expired_prepared AS (
        SELECT digest, url, size_bytes
        FROM ranked JOIN rules USING (tenant_id) WHERE kind = 'prepared'
        GROUP BY digest, url, size_bytes
        HAVING bool_and(NOT needed AND coalesce(
            used_at < statement_timestamp() - max_age OR place > keep OR bytes > max_bytes, false))
        UNION ALL
        SELECT digest, url, size_bytes FROM unused
        WHERE last_used_at < statement_timestamp() - :default_days * interval '1 day'
          AND NOT EXISTS (SELECT FROM jobs WHERE jobs.prepared_url = url)
    )
"""  # noqa: S608 (joined from constants)

_PREVIEW = with_rules(f"""
    WITH {RULES}, {_CHECKPOINTS}, {_ARTIFACTS}, {_PREPARED}
    SELECT 'checkpoints' AS kind, count(*) AS count, coalesce(sum(size_bytes), 0) AS bytes
    FROM expired_checkpoints
    UNION ALL
    SELECT 'adapters', count(*), coalesce(sum(size_bytes), 0) FROM expired_artifacts
    UNION ALL
    SELECT 'prepared', count(*), coalesce(sum(size_bytes), 0) FROM expired_prepared
""")  # noqa: S608

_FIND_CHECKPOINTS = with_rules(
    f"WITH {RULES}, {_CHECKPOINTS} SELECT id, job_id, statement_timestamp()"  # noqa: S608
    " FROM expired_checkpoints ORDER BY job_id, id"
)
_FIND_ARTIFACTS = with_rules(
    f"WITH {RULES}, {_ARTIFACTS} SELECT id, job_id, statement_timestamp()"  # noqa: S608
    " FROM expired_artifacts ORDER BY job_id, id"
)
_FIND_PREPARED = with_rules(
    f"WITH {RULES}, {_PREPARED} SELECT digest, url, statement_timestamp()"  # noqa: S608
    " FROM expired_prepared ORDER BY digest"
)

_LOCK_JOBS = text("""
    SELECT id FROM jobs WHERE id = ANY (CAST(:job_ids AS text[]))
    ORDER BY tenant_id, id FOR NO KEY UPDATE SKIP LOCKED
""")

# Over, and not run again since.
_STILL_OVER = f"""
    jobs.state NOT IN ({UNFINISHED}) AND coalesce(jobs.finished_at, jobs.created_at) < :looked_at
"""

_MARK_CHECKPOINTS = text(f"""
    UPDATE checkpoints SET deleted_at = clock_timestamp()
    FROM jobs
    WHERE checkpoints.id = ANY (CAST(:ids AS bigint[])) AND checkpoints.deleted_at IS NULL
      AND jobs.id = checkpoints.job_id AND {_STILL_OVER}
    RETURNING 'checkpoints', checkpoints.url, checkpoints.size_bytes
""")  # noqa: S608

_MARK_ARTIFACTS = {
    on_request: text(f"""
    WITH marked AS (
        UPDATE artifacts SET deleted_at = clock_timestamp()
        FROM jobs
        WHERE artifacts.id = ANY (CAST(:ids AS bigint[])) AND artifacts.deleted_at IS NULL
          AND jobs.id = artifacts.job_id AND {_STILL_OVER}
          AND artifacts.id NOT IN ({needed_artifacts(by_failed=not on_request)})
        RETURNING artifacts.job_id, artifacts.url, artifacts.size_bytes
    ), forgotten AS (
        UPDATE jobs SET adapter_url = NULL
        FROM marked WHERE jobs.id = marked.job_id AND jobs.adapter_url = marked.url
    )
    SELECT 'adapters', url, size_bytes FROM marked
""")  # noqa: S608
    for on_request in (False, True)
}

# A retry of one of them waits for us, or we for it: the mark then sees that it is needed.
_LOCK_FAILED = text("""
    SELECT FROM jobs WHERE prepared_url = ANY (CAST(:urls AS text[])) AND state = 'failed'
    ORDER BY tenant_id, id FOR NO KEY UPDATE
""")

# The condition on `last_used_at` is tested once more on the row, after waiting for whoever has it.
_MARK_PREPARED = text(f"""
    UPDATE prepared_data SET deleted_at = clock_timestamp()
    WHERE digest = ANY (CAST(:ids AS text[])) AND deleted_at IS NULL
      AND last_used_at < clock_timestamp() - make_interval(secs => :orphan_seconds)
      AND NOT EXISTS (
          SELECT FROM jobs WHERE jobs.prepared_url = url AND NOT ({_STILL_OVER}))
    RETURNING 'prepared', url, size_bytes
""")  # noqa: S608

_FORGET_PREPARED = text("""
    UPDATE jobs SET prepared_url = NULL,
        stage = CASE WHEN state = 'failed' AND stage = 'train' THEN 'preprocess' ELSE stage END
    WHERE prepared_url = ANY (CAST(:urls AS text[]))
""")
