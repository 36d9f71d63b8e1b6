"""What people prefer, answer by answer: which pairs a person has not seen, and the tally."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select, text
from sqlalchemy.orm import Session

from models.errors import InputError, StateError
from models.queries.history import printable
from models.queries.jobs import get_job
from models.states import JobState
from models.tables import Sample
from models.win_rate import WinRate

PREFERENCES = ("tuned", "base", "tie", "skip")
_PERSON_LENGTH = 100


def unrated(
    session: Session, job_id: str, person: str, *, skipped: bool = False
) -> tuple[list[Sample], int]:
    """The pairs of answers that `person` has not been asked about, and how many there are in all.

    `skipped`: those it skipped as well. Raises NotFoundError; StateError for a job without answers.
    """
    require_person(person)
    job = get_job(session, job_id)
    pairs = session.scalars(
        select(Sample)
        .where(
            Sample.job_id == job_id,
            Sample.base_answer.is_not(None),
            Sample.tuned_answer.is_not(None),
        )
        .order_by(Sample.position)
    ).all()
    if job.state != JobState.COMPLETED or not pairs:
        raise StateError(
            f"job {job_id} ({job.state}) has no answers to rate",
            remedy="only a completed job has, with `evaluate` and `eval_generate_rows` over 0",
        )
    done = set(session.scalars(_DONE, {"job_id": job_id, "person": person, "skipped": skipped}))
    return [pair for pair in pairs if pair.position not in done], len(pairs)


def record_rating(
    session: Session, job_id: str, position: int, *, person: str, preferred: str, tuned_left: bool
) -> bool:
    """Keep a preference; False when the person has rated this pair before, and that one stays.

    A pair that was skipped may be rated later. Raises InputError.
    """
    require_person(person)
    if preferred not in PREFERENCES:
        raise InputError(
            f"{preferred!r} is no preference", where="preferred", remedy=", ".join(PREFERENCES)
        )
    values = {
        "job_id": job_id,
        "position": position,
        "person": person,
        "preferred": preferred,
        "tuned_left": tuned_left,
    }
    return session.execute(_RATE, values).one_or_none() is not None


def win_rates(session: Session, job_ids: Sequence[str]) -> dict[str, WinRate]:
    """Of those jobs that anybody has rated."""
    rows = session.execute(_TALLY, {"job_ids": list(job_ids)})
    return {job_id: WinRate(*counts) for job_id, *counts in rows}


def win_rate_of(session: Session, job_id: str) -> WinRate:
    return win_rates(session, [job_id]).get(job_id) or WinRate(0, 0, 0, 0)


def require_person(person: str) -> None:
    """Raises InputError."""
    if not 1 <= len(person) <= _PERSON_LENGTH or person != printable(person):
        raise InputError(
            f"a person's name has 1 to {_PERSON_LENGTH} characters",
            where="user",
            remedy="give another name",
        )


_DONE = text("""
    SELECT position FROM ratings
    WHERE job_id = :job_id AND person = :person AND NOT (:skipped AND preferred = 'skip')
""")

# Counted beside the evaluation as well, for admin.evaluations: only a skip is ever replaced.
_RATE = text("""
    WITH rated AS (
        INSERT INTO ratings (job_id, position, person, preferred, tuned_left, rated_at)
        VALUES (:job_id, :position, :person, :preferred, :tuned_left, clock_timestamp())
        ON CONFLICT (job_id, position, person) DO UPDATE
        SET preferred = excluded.preferred, tuned_left = excluded.tuned_left,
            rated_at = excluded.rated_at
        WHERE ratings.preferred = 'skip'
        RETURNING preferred
    ), counted AS (
        UPDATE evaluations
        SET preferred_tuned = preferred_tuned + CAST(rated.preferred = 'tuned' AS int),
            preferred_base = preferred_base + CAST(rated.preferred = 'base' AS int),
            preferred_tie = preferred_tie + CAST(rated.preferred = 'tie' AS int)
        FROM rated
        WHERE job_id = :job_id AND subject = 'tuned' AND rated.preferred <> 'skip'
    )
    SELECT 1 FROM rated
""")

_TALLY = text("""
    SELECT job_id, count(*) FILTER (WHERE preferred = 'tuned'),
           count(*) FILTER (WHERE preferred = 'base'), count(*) FILTER (WHERE preferred = 'tie'),
           count(DISTINCT person)
    FROM ratings WHERE job_id = ANY (CAST(:job_ids AS text[])) AND preferred <> 'skip'
    GROUP BY job_id
""")
