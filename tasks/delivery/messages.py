"""What a message says: the body of a webhook, and the words for people.

The body is documented in docs/notifications.md. `version` is 1 as long as fields are only added.
"""

from __future__ import annotations

import json
from typing import Any

from models.duration import duration
from models.notices import OPENAI_TYPES, TYPES, Format, Notice
from models.queries.deliveries import Sending

VERSION = 1


def webhook_body(sending: Sending) -> str:
    """The same at every try, to the byte."""
    event: dict[str, Any] = {
        "id": sending.message_id,
        "object": "event",
        "created_at": int(sending.created_at.timestamp()),
    }
    if sending.format == Format.OPENAI:
        event["type"] = OPENAI_TYPES.get(sending.notice, TYPES[sending.notice])
        event["data"] = {"id": sending.data.get("id")}
    else:
        event["version"] = VERSION
        event["type"] = TYPES[sending.notice]
        event["message"] = said(sending)
        event["next"] = next_command(sending)
        event["data"] = sending.data
    return json.dumps(event, separators=(",", ":"))


def title(sending: Sending) -> str:
    data = sending.data
    match sending.notice:
        case Notice.BUDGET:
            return f"Celora: GPU hours of {data['month']} are nearly used up"
        case Notice.TEST:
            return "Celora: a test message"
        case Notice.WAITING:
            return f"Celora: {_job(data)} waits"
        case notice:
            return f"Celora: {_job(data)} {_VERBS[notice]}"


def text(sending: Sending) -> str:
    """For a service that shows plain text."""
    command = next_command(sending)
    return said(sending) + (f"\nNext: {command}" if command else "")


def said(sending: Sending) -> str:
    """One or two sentences."""
    data = sending.data
    match sending.notice:
        case Notice.BUDGET:
            who = f"User {data['user']} of tenant" if data["user"] else "Tenant"
            return (
                f"{who} {data['tenant']} has used {data['gpu_hours_used']:g} of "
                f"{data['gpu_hours_per_month']:g} GPU hours in {data['month']}. "
                "Once all are used, jobs wait for the next month."
            )
        case Notice.TEST:
            return f"A test message, asked for by {data['asked_by']}. Nothing has happened."
        case Notice.WAITING:
            waited = duration(data["waited_seconds"])
            return f"Job {_job(data)} of {data['user']} has waited for a GPU for {waited}."
        case Notice.STARTED:
            return (
                f"Job {_job(data)} of {data['user']} has started: "
                f"{data['method']} on {data['base_model']}."
            )
        case Notice.FAILED:
            error = data.get("error") or {}
            return (
                f"Job {_job(data)} of {data['user']} failed: {error.get('message') or 'no cause'}."
            )
        case notice:
            return (
                f"Job {_job(data)} of {data['user']} {_VERBS[notice]} after "
                f"{data['step']} steps and {duration(data['gpu_seconds'])} of GPU time."
            )


def next_command(sending: Sending) -> str | None:
    """What to run next."""
    if sending.notice is Notice.TEST:
        return None
    if sending.notice is Notice.BUDGET:
        return "celora tenants"
    return f"celora {_COMMANDS[sending.notice]} {sending.data['id']}"


def _job(data: dict[str, Any]) -> str:
    return f"{data['name']} ({data['id']})" if data["name"] else str(data["id"])


_VERBS = {
    Notice.STARTED: "has started",
    Notice.COMPLETED: "has completed",
    Notice.FAILED: "failed",
    Notice.CANCELLED: "was cancelled",
}
_COMMANDS = {
    Notice.STARTED: "watch",
    Notice.COMPLETED: "report",
    Notice.FAILED: "logs",
    Notice.CANCELLED: "job",
    Notice.WAITING: "why",
}
