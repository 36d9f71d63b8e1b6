"""One message from its claim to its end, whichever way it is sent."""

from __future__ import annotations

import logging

from models import secrets
from models.errors import CeloraError
from models.notices import Kind
from models.queries.deliveries import Sending
from models.settings import settings
from tasks.delivery import messages, service, webhook
from tasks.delivery.answer import Answer

log = logging.getLogger(__name__)

# What a try may take beside its time-out: starting a process, writing what came of it.
_MARGIN_SECONDS = 30.0


def lease_seconds() -> float:
    return settings().notify_timeout_seconds + _MARGIN_SECONDS


async def attempt(sending: Sending) -> Answer:
    """Try once. Never raises: whatever happens is an answer, which holds no secret."""
    try:
        url = secrets.unseal(sending.sealed_url)
        if sending.kind == Kind.APPRISE:
            return await service.send(
                url, sending.notice, messages.title(sending), messages.text(sending)
            )
        secret = secrets.unseal(sending.sealed_secret or "")
        body = messages.webhook_body(sending)
        return await webhook.send(url, secret, sending.message_id, body)
    except CeloraError as error:
        return Answer(error.what)
    except Exception as error:  # noqa: BLE001 (of the libraries; its words may hold the address)
        log.error("notification %d: %s", sending.id, type(error).__name__)  # noqa: TRY400 (as above)
        return Answer(f"the sender met an error of its own: {type(error).__name__}")
