"""Delivering notifications: what is written goes out, beside everything else.

In a thread of its own, with an event loop: receivers that are slow or dead cost nobody anything but
themselves. Any number of dispatchers may deliver: each target is one sender's at a time.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from models.errors import CeloraError, UnavailableError
from models.notices import DeliveryState, Kind
from models.queries import deliveries
from models.queries.deliveries import Sending
from models.session import transaction
from tasks.delivery.answer import Answer
from tasks.delivery.sender import attempt, lease_seconds

log = logging.getLogger(__name__)

T = TypeVar("T")

# Sent at once. A webhook costs a socket; a service costs a process of half a second's work.
_AT_ONCE = {Kind.WEBHOOK: 100, Kind.APPRISE: 4}
LOOK_SECONDS = 1.0
_STOP_CHECK_SECONDS = 0.25
_AFTER_A_FAULT_SECONDS = 5.0
_RETRY_SECONDS = 1.0


def run(stop: threading.Event) -> None:
    """Deliver until `stop`. What is on its way then is sent again when its lease has run out."""
    asyncio.run(_Deliverer(stop).serve())


class _Deliverer:
    def __init__(self, stop: threading.Event) -> None:
        self.stop = stop
        self.running: dict[asyncio.Task[None], Kind] = {}
        # Not the loop's own threads: names that nobody answers for may hold those up.
        self.database = ThreadPoolExecutor(2, "deliver")

    async def serve(self) -> None:
        look_at = 0.0
        loop = asyncio.get_running_loop()
        # The loop's own threads look up names: one that nobody answers for holds up no other.
        loop.set_default_executor(ThreadPoolExecutor(_AT_ONCE[Kind.WEBHOOK], "resolve"))
        while not self.stop.is_set():
            if loop.time() >= look_at:
                try:
                    found = await self._take()
                    look_at = loop.time() + (0.0 if found else LOOK_SECONDS)
                except CeloraError as error:
                    look_at = loop.time() + _AFTER_A_FAULT_SECONDS
                    log.debug("nothing is delivered: %s", error)  # the main loop says it already
                except Exception:
                    look_at = loop.time() + _AFTER_A_FAULT_SECONDS
                    log.exception("nothing is delivered; it is tried again")
            if await self._wait(min(_STOP_CHECK_SECONDS, max(0.0, look_at - loop.time()))):
                look_at = min(look_at, loop.time())  # a target is free again
        for task in self.running:
            task.cancel()
        await asyncio.gather(*self.running, return_exceptions=True)
        self.database.shutdown(wait=False)

    async def _take(self) -> bool:
        found = False
        for kind, most in _AT_ONCE.items():
            free = most - sum(one is kind for one in self.running.values())
            if free <= 0:
                continue
            for sending in await self._do(_claim, kind, free):
                found = True
                task = asyncio.create_task(self._deliver(sending))
                self.running[task] = kind
        return found

    async def _wait(self, seconds: float) -> bool:
        """Until something is done or the time is up; whether something is."""
        if not self.running:
            await asyncio.sleep(seconds)
            return False
        done, _ = await asyncio.wait(
            self.running, timeout=seconds, return_when=asyncio.FIRST_COMPLETED
        )
        for task in done:
            del self.running[task]
            if (error := task.exception()) is not None:
                log.error("a delivery was not finished", exc_info=error)
        return bool(done)

    async def _deliver(self, sending: Sending) -> None:
        loop = asyncio.get_running_loop()
        until = loop.time() + lease_seconds()
        answer = await attempt(sending)
        while True:
            try:
                state = await self._do(_finish, sending, answer)
            except UnavailableError:
                if loop.time() > until:
                    return  # it is sent once more: the receiver knows it by its id
                await asyncio.sleep(_RETRY_SECONDS)
            else:
                break
        if state is DeliveryState.FAILED:
            log.warning(
                "notification %d to %r is given up after %d tries: %s",
                sending.id,
                sending.target,
                sending.attempt,
                answer.cause,
            )

    async def _do(self, work: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self.database, work, *arguments)


def _claim(kind: Kind, limit: int) -> list[Sending]:
    with transaction() as session:
        return deliveries.claim(session, kind, limit, lease_seconds())


def _finish(sending: Sending, answer: Answer) -> DeliveryState:
    with transaction() as session:
        return deliveries.finish(
            session,
            sending,
            status=answer.status,
            cause=answer.cause,
            retry_after=answer.retry_after,
            give_up=answer.give_up,
        )
