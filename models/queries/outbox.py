"""Tickets on their way to the broker. The row is written with the decision; publishing follows."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import bindparam, delete, exists, or_, select, text, update
from sqlalchemy.orm import Session, aliased, joinedload

from models.queries.history import printable
from models.tables import Attempt, Job, Tenant, Ticket

_LIVE = exists().where(
    Attempt.job_id == Ticket.job_id, Attempt.fence == Ticket.fence, Attempt.ended_at.is_(None)
)


def unsent(session: Session, limit: int = 100) -> list[Ticket]:
    """Tickets of live attempts that wait for the relay, the least tried first. Each comes with what
    those who watch the broker are to see of its job: tenant, name, base model, method.

    They are not locked: a lock would have to be held while the broker is spoken to. So two relays
    may publish one ticket twice, as a crash between the two steps does: the claim tells them apart.
    """
    return list(session.scalars(_UNSENT, {"limit": limit}))


_UNSENT = (
    select(Ticket)
    .options(
        joinedload(Ticket.job)
        .load_only(Job.name, Job.base_model, Job.method)
        .joinedload(Job.tenant)
        .load_only(Tenant.name)
    )
    .where(Ticket.sent_at.is_(None), _LIVE)
    .order_by(Ticket.send_attempts, Ticket.id)
    .limit(bindparam("limit"))
)


def mark_sent(session: Session, ids: Sequence[int]) -> None:
    session.execute(_SENT, {"ids": list(ids)})


_SENT = text("""
    UPDATE outbox SET sent_at = clock_timestamp(), send_attempts = send_attempts + 1
    WHERE id = ANY (CAST(:ids AS bigint[]))
""")


def mark_error(session: Session, ticket_id: int, error: str) -> None:
    """The broker did not take it; it stays unsent."""
    session.execute(
        update(Ticket)
        .where(Ticket.id == ticket_id)
        .values(send_attempts=Ticket.send_attempts + 1, last_error=printable(error))
        .execution_options(synchronize_session=False)
    )


def prune(session: Session, limit: int = 5000) -> int:
    """Delete tickets whose attempt is over, sent or not, and those that were sent again since.

    Returns how many.
    """
    later = aliased(Ticket)
    sent_again = exists().where(
        later.job_id == Ticket.job_id, later.fence == Ticket.fence, later.id > Ticket.id
    )
    useless = (
        select(Ticket.id)
        .where(or_(~_LIVE, sent_again))
        .limit(limit)
        .with_for_update(of=Ticket, skip_locked=True)
    )
    gone = session.execute(
        delete(Ticket).where(Ticket.id.in_(useless)).returning(Ticket.id),
        execution_options={"synchronize_session": False},
    )
    return len(gone.all())
