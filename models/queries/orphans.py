"""What the records know of files that lie in the store: who may still write, what is registered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from sqlalchemy import text
from sqlalchemy.orm import Session


@dataclass(slots=True)
class KnownJob:
    """A job on record. Paths are relative to its folder: 3/checkpoints/step-20, 3/adapter."""

    finished: bool  # for good: it cannot be run again
    ended: dict[int, float | None] = field(
        default_factory=dict
    )  # fence → seconds since; none: live
    registered: set[str] = field(default_factory=set)


def known_jobs(session: Session, job_ids: Sequence[str]) -> dict[str, KnownJob]:
    """Those of the jobs that are on record, with their attempts and what of theirs stands.

    Told by job and fence, not by URL: the same store may be spelled in several ways.
    """
    ids = {"job_ids": list(job_ids)}
    jobs = {row.id: KnownJob(row.finished) for row in session.execute(_JOBS, ids)}
    for row in session.execute(_ATTEMPTS, ids):
        jobs[row.job_id].ended[row.fence] = None if row.live else float(row.seconds)
    for row in session.execute(_REGISTERED, ids):
        jobs[row.job_id].registered.add(_below(row.url, f"/jobs/{row.job_id}/"))
    return jobs


def known_prepared(session: Session) -> set[str]:
    """Names of the folders of prepared data that are on record, or that a job points at."""
    return {_name(url) for url in session.scalars(_PREPARED)}


def needed_prepared(session: Session) -> set[str]:
    """Names of the folders that a job which is not over points at."""
    return {_name(url) for url in session.scalars(_NEEDED_PREPARED)}


def unrecorded_prepared(session: Session) -> list[tuple[str, str]]:
    """(digest, URL) of what jobs point at and nothing records: made by an earlier version."""
    return [(row.data_digest, row.prepared_url) for row in session.execute(_UNRECORDED)]


def database_identity(session: Session) -> str:
    """Tells this database from every other, a restored copy of itself among them."""
    return str(session.scalar(_IDENTITY))


def _below(url: str, folder: str) -> str:
    return url.rpartition(folder)[2]


def _name(url: str) -> str:
    return url.rstrip("/").rpartition("/")[2]


_JOBS = text("""
    SELECT id, state IN ('completed', 'cancelled') AS finished FROM jobs
    WHERE id = ANY (CAST(:job_ids AS text[]))
""")

_ATTEMPTS = text("""
    SELECT job_id, fence, ended_at IS NULL AS live,
           extract(epoch FROM clock_timestamp() - ended_at) AS seconds
    FROM attempts WHERE job_id = ANY (CAST(:job_ids AS text[]))
""")

_REGISTERED = text("""
    SELECT job_id, url FROM checkpoints
    WHERE job_id = ANY (CAST(:job_ids AS text[])) AND deleted_at IS NULL
    UNION ALL
    SELECT job_id, url FROM artifacts
    WHERE job_id = ANY (CAST(:job_ids AS text[])) AND deleted_at IS NULL
""")

_PREPARED = text("""
    SELECT url FROM prepared_data WHERE deleted_at IS NULL
    UNION
    SELECT prepared_url FROM jobs WHERE prepared_url IS NOT NULL
""")

_NEEDED_PREPARED = text("""
    SELECT DISTINCT prepared_url FROM jobs
    WHERE prepared_url IS NOT NULL AND state NOT IN ('completed', 'cancelled')
""")

_UNRECORDED = text("""
    SELECT DISTINCT ON (data_digest) data_digest, prepared_url FROM jobs
    WHERE prepared_url IS NOT NULL AND data_digest IS NOT NULL
      AND NOT EXISTS (SELECT FROM prepared_data WHERE digest = data_digest)
""")

_IDENTITY = text("""
    SELECT concat_ws('/', system_identifier, (
        SELECT oid FROM pg_database WHERE datname = current_database()))
    FROM pg_control_system()
""")
