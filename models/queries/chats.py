"""A chat's turns: asked by the client, answered by the fence's holder, deleted soon after."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import func, select, text, update
from sqlalchemy.orm import Session

from models.adapter_work import Subject
from models.errors import StateError
from models.queries.fence import lock_job, require_fence
from models.queries.history import JOB_CHANNEL, printable
from models.states import TERMINAL, JobState
from models.tables import Chat, ChatTurn

# For the worker: something was asked, or the client has left. Answers are told as a job's news are.
ASKED_CHANNEL = "celora_chat"


@dataclass(frozen=True, slots=True)
class Turn:
    position: int
    subject: Subject
    prompt: str


@dataclass(frozen=True, slots=True)
class Waiting:
    """What a chat's worker looks for."""

    next: Turn | None  # the first one that it has not taken up
    closed: bool
    unseen_seconds: float  # since the client last said that it lives


def ask(session: Session, job_id: str, prompt: str, subject: Subject) -> int:
    """Put the user's turn on record; returns its position. Raises NotFoundError, StateError."""
    job, _ = lock_job(session, job_id)
    if JobState(job.state) in TERMINAL:
        raise StateError(f"chat {job_id} is over ({job.state})", remedy="start a new one")
    last = session.scalar(select(func.max(ChatTurn.position)).where(ChatTurn.job_id == job_id))
    position = (last or 0) + 1
    session.add(
        ChatTurn(job_id=job_id, position=position, subject=subject, prompt=printable(prompt))
    )
    session.flush()
    stay(session, job_id)
    session.execute(_TELL_WORKER, {"job_id": job_id})
    return position


def stay(session: Session, job_id: str) -> None:
    """The client says that somebody still sits at the chat."""
    session.execute(
        update(Chat).where(Chat.job_id == job_id).values(seen_at=func.clock_timestamp())
    )


def close(session: Session, job_id: str) -> None:
    """The client leaves: the worker ends the chat after what it is just saying."""
    session.execute(
        update(Chat)
        .where(Chat.job_id == job_id, Chat.closed_at.is_(None))
        .values(closed_at=func.clock_timestamp())
    )
    session.execute(_TELL_WORKER, {"job_id": job_id})


def waiting(session: Session, job_id: str, after: int) -> Waiting:
    """For the worker, which has taken up the turns up to position `after`."""
    row = session.execute(_WAITING, {"job_id": job_id, "after": after}).one_or_none()
    if row is None:  # deleted with its job
        return Waiting(None, closed=True, unseen_seconds=0.0)
    turn = None if row.position is None else Turn(row.position, row.subject, row.prompt)
    return Waiting(turn, row.closed, row.unseen_seconds)


def write_answer(
    session: Session,
    job_id: str,
    fence: int,
    position: int,
    answer: str,
    *,
    tokens: int,
    whole: bool,
    error: str | None = None,
) -> None:
    """The answer as far as it goes, all of it: a write whose answer was lost may be repeated.

    Raises StaleFenceError.
    """
    require_fence(session, job_id, fence)
    session.execute(
        _ANSWER,
        {
            "job_id": job_id,
            "position": position,
            "answer": printable(answer),
            "tokens": tokens,
            "whole": whole,
            "error": error,
        },
    )


def turn(session: Session, job_id: str, position: int) -> ChatTurn | None:
    return session.get(ChatTurn, (job_id, position), populate_existing=True)


def delete_turns(session: Session, keep_seconds: float, limit: int) -> int:
    """Delete what was said in chats that ended so long ago; returns how many turns.

    Some at a time: a later call deletes the rest.
    """
    gone = session.execute(_DELETE, {"keep_seconds": keep_seconds, "limit": limit})
    return len(gone.all())


_TELL_WORKER = text(f"SELECT pg_notify('{ASKED_CHANNEL}', :job_id)")

_WAITING = text("""
    SELECT next.position, next.subject, next.prompt, chats.closed_at IS NOT NULL AS closed,
           extract(epoch FROM clock_timestamp() - chats.seen_at)::float8 AS unseen_seconds
    FROM chats
    LEFT JOIN LATERAL (
        SELECT * FROM chat_turns
        WHERE chat_turns.job_id = chats.job_id AND position > :after
        ORDER BY position LIMIT 1
    ) AS next ON true
    WHERE chats.job_id = :job_id
""")

_ANSWER = text(f"""
    WITH told AS (
        UPDATE chat_turns
        SET answer = :answer, tokens = :tokens, error = :error,
            answered_at = CASE WHEN :whole THEN clock_timestamp() END
        WHERE job_id = :job_id AND position = :position
        RETURNING job_id
    )
    SELECT pg_notify('{JOB_CHANNEL}', job_id) FROM told
""")  # noqa: S608 (constants)

_DELETE = text("""
    DELETE FROM chat_turns WHERE (job_id, position) IN (
        SELECT chat_turns.job_id, position
        FROM chat_turns JOIN jobs ON jobs.id = chat_turns.job_id
        WHERE jobs.finished_at < clock_timestamp() - make_interval(secs => :keep_seconds)
        LIMIT :limit
    )
    RETURNING position
""")
