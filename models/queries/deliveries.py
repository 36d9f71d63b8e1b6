"""Sending what is written: who sends next, what came of it, and the log of it all.

A target is taken for one message at a time, with a lease: two senders never send to it at once, and
a slow one keeps nobody else waiting. A sender that dies leaves its message to be sent again, with
the same id: receivers may get one twice, and know it by that.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import text
from sqlalchemy.orm import Session

from models.errors import NotFoundError, StateError
from models.notices import DeliveryState, Kind, Notice, pause_after
from models.queries.history import printable
from models.queries.notices import MESSAGE_ID

# How long what a target is told once is remembered, whatever the log keeps: two months.
_ONCE_DAYS = 62
_LONGEST_CAUSE = 200  # characters


@dataclass(frozen=True, slots=True, kw_only=True)
class Sending:
    """One message in the hands of one sender."""

    id: int
    attempt: int  # this one, from 1
    target_id: int
    target: str
    sending: int  # of the target: a later one means that the lease was lost
    kind: str
    format: str
    sealed_url: str
    sealed_secret: str | None
    message_id: str
    notice: Notice
    data: dict[str, Any]
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryView:
    id: int
    tenant: str
    target: str
    notice: str
    job: str | None
    state: str
    attempts: int
    status: int | None
    cause: str | None
    created_at: datetime
    tried_at: datetime | None
    next_try_at: datetime | None
    ended_at: datetime | None


def claim(session: Session, kind: Kind, limit: int, lease_seconds: float) -> list[Sending]:
    """The next message of so many free targets of a kind, those tried longest ago first.

    What a later version tells of is left to that version's dispatcher.
    """
    asked = {
        "kind": kind,
        "limit": limit,
        "lease_seconds": lease_seconds,
        "known": [notice.value for notice in Notice],
    }
    rows = session.execute(_CLAIM, asked).mappings()
    return [Sending(**{**row, "notice": Notice(row["notice"])}) for row in rows]


def finish(
    session: Session,
    sending: Sending,
    *,
    status: int | None,
    cause: str | None,
    retry_after: float | None = None,
    give_up: bool = False,
) -> DeliveryState:
    """Write what came of a try; `cause` is None where it was delivered. Frees the target.

    `retry_after`: how long the receiver asks to be left alone.
    """
    state, pause = DeliveryState.DELIVERED, None
    if cause is not None:
        pause = None if give_up else pause_after(sending.attempt)
        state = DeliveryState.FAILED if pause is None else DeliveryState.WAITING
    # Targets before deliveries, as everywhere: two that lock them cannot wait for each other.
    session.execute(_FREE, {"target_id": sending.target_id, "sending": sending.sending})
    session.execute(
        _FINISH,
        {
            "id": sending.id,
            "attempt": sending.attempt,
            "state": state,
            "status": status,
            "cause": None if cause is None else printable(cause)[:_LONGEST_CAUSE],
            "pause": max(pause or 0.0, retry_after or 0.0),
        },
    )
    return state


def ask_test(session: Session, target_id: int, asked_by: str) -> int:
    """Write a message that says only that it came; returns its id."""
    return int(session.execute(_TEST, {"target_id": target_id, "asked_by": asked_by}).scalar_one())


def get_delivery(session: Session, delivery_id: int) -> DeliveryView:
    """Raises NotFoundError."""
    found = deliveries(session, delivery_id=delivery_id, limit=1)
    if not found:
        raise NotFoundError(
            f"there is no delivery {delivery_id}", remedy="`celora notify log` lists them"
        )
    return found[0]


def deliveries(
    session: Session,
    *,
    tenant: str | None = None,
    target: str | None = None,
    job_id: str | None = None,
    state: DeliveryState | None = None,
    delivery_id: int | None = None,
    limit: int = 50,
) -> list[DeliveryView]:
    """The log, newest first."""
    asked = {
        "tenant": tenant,
        "target": target,
        "job_id": job_id,
        "state": state,
        "id": delivery_id,
        "limit": limit,
    }
    return [DeliveryView(**row) for row in session.execute(_LOG, asked).mappings()]


def send_now(session: Session, delivery_id: int) -> None:
    """Try a message at once: one that waits for its next try, or anew one that was given up.

    Where its target just gets another, it is next in turn; one that is itself being sent goes on.
    One that was delivered stays so. Raises NotFoundError; StateError for a removed target.
    """
    found = session.execute(_SEND_NOW, {"id": delivery_id}).one_or_none()
    if found is None and get_delivery(session, delivery_id).state == DeliveryState.DROPPED:
        raise StateError(
            f"delivery {delivery_id} was dropped: its target is removed",
            remedy="`celora notify add` makes a new target",
        )


def prune(session: Session, days: float, limit: int = 5_000) -> int:
    """Delete so many of the messages that ended before so many days; returns how many."""
    values = {"days": days, "once_days": max(days, _ONCE_DAYS), "limit": limit}
    return len(session.execute(_PRUNE, values).all())


# Locking the targets first: of two senders each gets others. The oldest message that is due goes.
_CLAIM = text("""
    WITH free AS MATERIALIZED (
        SELECT id FROM notification_targets AS targets
        WHERE kind = :kind AND removed_at IS NULL
          AND (busy_until IS NULL OR busy_until < clock_timestamp())
          AND EXISTS (SELECT FROM deliveries
                      WHERE target_id = targets.id AND state = 'waiting'
                        AND next_at <= clock_timestamp() AND notice = ANY(:known))
        ORDER BY tried_at NULLS FIRST, id
        LIMIT :limit
        FOR NO KEY UPDATE SKIP LOCKED
    ), taken AS (
        UPDATE notification_targets AS targets
        SET busy_until = clock_timestamp() + make_interval(secs => :lease_seconds),
            tried_at = clock_timestamp(), sendings = sendings + 1
        FROM free WHERE targets.id = free.id
        RETURNING targets.*
    ), next AS (
        SELECT taken.id AS target_id, due.id
        FROM taken CROSS JOIN LATERAL (
            SELECT id FROM deliveries
            WHERE target_id = taken.id AND state = 'waiting' AND next_at <= clock_timestamp()
              AND notice = ANY(:known)
            ORDER BY next_at, id LIMIT 1
        ) AS due
    )
    UPDATE deliveries SET attempts = attempts + 1, tried_at = clock_timestamp()
    FROM next JOIN taken ON taken.id = next.target_id
    WHERE deliveries.id = next.id
    RETURNING deliveries.id, deliveries.attempts AS attempt, deliveries.target_id,
              taken.name AS target, taken.sendings AS sending, taken.kind, taken.format,
              taken.sealed_url, taken.sealed_secret, message_id, notice, data,
              deliveries.created_at
""")

# A later try has another number; a message whose target was removed meanwhile is over.
_FINISH = text("""
    UPDATE deliveries
    SET state = :state, status = :status, cause = :cause,
        next_at = clock_timestamp() + make_interval(secs => :pause),
        ended_at = CASE WHEN :state <> 'waiting' THEN clock_timestamp() END
    WHERE id = :id AND attempts = :attempt AND state = 'waiting'
""")

_FREE = text("""
    UPDATE notification_targets SET busy_until = NULL
    WHERE id = :target_id AND sendings = :sending
""")

_TEST = text(f"""
    INSERT INTO deliveries (message_id, target_id, notice, data)
    VALUES ({MESSAGE_ID}, :target_id, 'test',
            jsonb_build_object('asked_by', CAST(:asked_by AS text)))
    RETURNING id
""")  # noqa: S608 (joined from constants)

_SEND_NOW = text("""
    UPDATE deliveries
    SET state = 'waiting', next_at = clock_timestamp(), ended_at = NULL,
        attempts = CASE WHEN deliveries.state = 'failed' THEN 0 ELSE attempts END
    FROM notification_targets AS targets
    WHERE deliveries.id = :id AND targets.id = target_id AND targets.removed_at IS NULL
      AND deliveries.state IN ('waiting', 'failed')
    RETURNING deliveries.id
""")

_LOG = text("""
    SELECT deliveries.id, tenants.name AS tenant, targets.name AS target, notice, job_id AS job,
           deliveries.state, attempts, status, cause, deliveries.created_at, deliveries.tried_at,
           CASE WHEN deliveries.state = 'waiting' THEN next_at END AS next_try_at, ended_at
    FROM deliveries
    JOIN notification_targets AS targets ON targets.id = target_id
    JOIN tenants ON tenants.id = targets.tenant_id
    WHERE (CAST(:id AS bigint) IS NULL OR deliveries.id = :id)
      AND (CAST(:tenant AS text) IS NULL OR tenants.name = :tenant)
      AND (CAST(:target AS text) IS NULL OR targets.name = :target)
      AND (CAST(:job_id AS text) IS NULL OR job_id = :job_id)
      AND (CAST(:state AS text) IS NULL OR deliveries.state = :state)
    ORDER BY deliveries.id DESC
    LIMIT :limit
""")

_PRUNE = text("""
    DELETE FROM deliveries WHERE id IN (
        SELECT id FROM deliveries
        WHERE ended_at < clock_timestamp() - make_interval(secs => :days * 86400)
          AND (once_key IS NULL
               OR ended_at < clock_timestamp() - make_interval(secs => :once_days * 86400))
        LIMIT :limit
    )
    RETURNING id
""")
