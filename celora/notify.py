"""Who is told about jobs, from Python: targets, a test message, the log of deliveries."""

from __future__ import annotations

import base64
import os
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy.orm import Session

from celora.client import current_user
from celora.views import Job
from models import secrets, tables
from models.errors import InputError
from models.notices import ASKABLE, OF_A_JOB, DeliveryState, Format, Kind, Notice
from models.queries import deliveries as delivery_queries
from models.queries import jobs as job_queries
from models.queries import targets as target_queries
from models.queries.deliveries import DeliveryView
from models.queries.targets import TargetView
from models.reach import require_webhook_url
from models.session import transaction

_SECRET_BYTES = 32
DEFAULT_ON = (Notice.COMPLETED.value, Notice.FAILED.value, Notice.CANCELLED.value)


@dataclass(frozen=True, slots=True)
class AddedTarget:
    name: str
    tenant: str
    address: str  # what may be shown of it
    secret: str | None  # of a webhook: to verify its signature with; not shown again


def add_target(
    name: str,
    *,
    webhook: str | None = None,
    apprise: str | None = None,
    on: Sequence[str] = DEFAULT_ON,
    tenant: str = "default",
    job: str | Job | None = None,
    format: str = Format.CELORA,  # noqa: A002 (its name everywhere)
    wait_seconds: float = 3600,
    budget_percent: float = 80,
) -> AddedTarget:
    """Tell a webhook, or a service by its Apprise URL, about a tenant's jobs, or about one `job`.

    Specifications may then name it in `notify`. `on`: started, completed, failed, cancelled,
    waiting, budget. Raises InputError, NotFoundError; SetupError without CELORA_SECRET_KEY.
    """
    if (webhook is None) == (apprise is None):
        raise InputError("give a webhook or an Apprise URL", where="target", remedy="one of them")
    secrets.require_key()
    events = notices(on)
    secret = None
    if webhook is not None:
        parts = require_webhook_url(webhook)
        kind, address, shown = Kind.WEBHOOK, webhook, f"{parts.scheme}://{parts.hostname}/…"
        secret = "whsec_" + base64.b64encode(os.urandom(_SECRET_BYTES)).decode()
    else:
        from tasks.delivery.service import require_service_url

        kind, address = Kind.APPRISE, apprise or ""
        if format != Format.CELORA:
            raise InputError("only webhooks have a format", where="format", remedy="leave it out")
        shown = require_service_url(address)
    wanted = _format(format)
    target_queries.require_askable(events, wanted, of_a_job=job is not None)
    with transaction() as session:
        row = None if job is None else _job_row(session, job)
        owner = tenant if row is None else row.tenant.name
        target_queries.add_target(
            session,
            tenant=owner,
            name=name,
            kind=kind,
            format=wanted,
            sealed_url=secrets.seal(address),
            sealed_secret=None if secret is None else secrets.seal(secret),
            shown=shown,
            events=events if row is None else [],
            wait_seconds=wait_seconds,
            budget_percent=budget_percent,
            created_by=current_user(),
        )
        if row is not None:
            target = target_queries.find_target(session, owner, name)
            target_queries.hear_of(session, row, target, events, None)
    return AddedTarget(name, owner, shown, secret)


def notify_of(job: str | Job, name: str, on: Sequence[str] = DEFAULT_ON) -> None:
    """Let a target that there is hear of one job. Raises InputError, NotFoundError."""
    events = notices(on)
    with transaction() as session:
        row = _job_row(session, job)
        target = target_queries.find_target(session, row.tenant.name, name)
        target_queries.require_askable(events, Format(target.format), of_a_job=True)
        target_queries.hear_of(session, row, target, events, None)


def targets(tenant: str | None = None) -> list[TargetView]:
    with transaction() as session:
        return target_queries.list_targets(session, tenant)


def remove_target(name: str, *, tenant: str = "default") -> int:
    """Forget a target and its secrets; returns how many messages are not sent any more.

    Raises NotFoundError.
    """
    with transaction() as session:
        return target_queries.remove_target(session, tenant, name)


def send_test(name: str, *, tenant: str = "default") -> int:
    """Ask for a test message; returns its delivery's id. Raises NotFoundError."""
    with transaction() as session:
        target = target_queries.find_target(session, tenant, name)
        return delivery_queries.ask_test(session, target.id, current_user())


def deliveries(
    *,
    tenant: str | None = None,
    target: str | None = None,
    job: str | Job | None = None,
    state: str | None = None,
    limit: int = 50,
) -> list[DeliveryView]:
    """The log of messages, newest first. Raises InputError, NotFoundError."""
    try:
        wanted = None if state is None else DeliveryState(state)
    except ValueError:
        known = ", ".join(DeliveryState)
        raise InputError(f"there is no state {state!r}", where="state", remedy=known) from None
    with transaction() as session:
        return delivery_queries.deliveries(
            session,
            tenant=tenant,
            target=target,
            job_id=None if job is None else _job_row(session, job).id,
            state=wanted,
            limit=limit,
        )


def delivery(delivery_id: int) -> DeliveryView:
    """Raises NotFoundError."""
    with transaction() as session:
        return delivery_queries.get_delivery(session, delivery_id)


def retry_delivery(delivery_id: int) -> DeliveryView:
    """Try a message now: one that waits for its next try, or anew one that was given up.

    Raises NotFoundError; StateError where its target is removed.
    """
    with transaction() as session:
        delivery_queries.send_now(session, delivery_id)
        return delivery_queries.get_delivery(session, delivery_id)


def notices(names: Sequence[str]) -> list[Notice]:
    """Raises InputError."""
    found = []
    for name in names:
        if name not in {notice.value for notice in ASKABLE}:
            raise InputError(
                f"there is no notice {name!r}", where="on", remedy=f"use {', '.join(ASKABLE)}"
            )
        found.append(Notice(name))
    if not found:
        raise InputError("name what to tell of", where="on", remedy=", ".join(OF_A_JOB))
    return found


def _format(text: str) -> Format:
    try:
        return Format(text)
    except ValueError:
        raise InputError(
            f"there is no format {text!r}", where="format", remedy="use celora or openai"
        ) from None


def _job_row(session: Session, job: str | Job) -> tables.Job:
    job_id = job.id if isinstance(job, Job) else job_queries.resolve_job_id(session, job)
    return job_queries.get_job(session, job_id)
