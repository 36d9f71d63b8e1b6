"""Between a chat's rows and its trainer: hands questions in, writes answers out, sees who has left.

One thread does it all, a few times a second: the trainer's reader only adds to a text, and an
answer of a thousand tokens is a few dozen writes. What is said is in no log, and in no error.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy.orm import Session

from gpu_worker.protocol import AnswerPart, Turn
from models.errors import StaleFenceError, UnavailableError
from models.queries import chats
from models.queries.chats import ASKED_CHANNEL
from models.queries.notify import Listener, listen
from models.session import transaction
from models.settings import settings

_log = logging.getLogger(__name__)

_TICK_SECONDS = 0.25  # between two writes of an answer that grows
_RETRY_SECONDS = 0.5
_CUT_OFF = "the chat ended before the answer did"


@dataclass(frozen=True)
class ChatOver:
    """The chat is to end, and why, in words."""

    why: str


@dataclass
class _Answer:
    text: str = ""
    tokens: int = 0
    whole: bool = False
    error: str | None = None
    written: bool = True  # as it stands


class ChatDesk:
    """`hand_in` gives a question to the trainer; `on_over` is called once, when it is time to end;
    `on_stale` when the fence is gone. Both in the desk's thread."""

    def __init__(
        self,
        job_id: str,
        fence: int,
        *,
        hand_in: Callable[[Turn], None],
        on_over: Callable[[ChatOver], None],
        on_stale: Callable[[], None],
    ) -> None:
        self._job_id, self._fence = job_id, fence
        self._hand_in, self._on_over, self._on_stale = hand_in, on_over, on_stale
        self._answers: dict[int, _Answer] = {}  # by position of the turn
        self._taken = 0  # position of the last turn that was handed in
        self._active_at = time.monotonic()
        self._away_at: float | None = None  # when the database last did not answer
        self._over = False
        self._open = False
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="chat", daemon=True)

    @property
    def turns(self) -> int:
        return self._taken

    @property
    def tokens(self) -> int:
        with self._lock:
            return sum(answer.tokens for answer in self._answers.values())

    def start(self) -> None:
        self._thread.start()

    def open(self) -> None:
        """The trainer is fit for this chat: from now on it is handed questions."""
        self._active_at = time.monotonic()
        self._open = True

    def part(self, part: AnswerPart) -> None:
        """From the trainer's reader: returns at once."""
        with self._lock:
            answer = self._answers.setdefault(part.position, _Answer())
            answer.text += part.text
            answer.tokens = part.tokens
            answer.whole, answer.error = part.whole, part.error
            answer.written = False
            self._active_at = time.monotonic()

    def stop(self) -> None:
        """End the thread; what it has not written stays for `write_rest`."""
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join()

    def abandon(self) -> None:
        """Write nothing more; what the thread is just sending falls to the fence."""
        self._closed.set()

    def write_rest(self, session: Session) -> None:
        """In the transaction that ends the stage, which may be tried again: no question is left
        without a word."""
        with self._lock:
            for position in range(1, self._taken + 1):
                answer = self._answers.setdefault(position, _Answer())
                if not answer.whole:
                    answer.whole, answer.error, answer.written = True, _CUT_OFF, False
        self._write(session, self._unwritten())

    def _run(self) -> None:
        while not self._closed.is_set():
            try:
                with listen(ASKED_CHANNEL) as asked:
                    self._serve(asked)
            except StaleFenceError:
                self._closed.set()
                self._on_stale()
            except UnavailableError as error:
                _log.warning("chat %s: %s; trying again", self._job_id, error.what)
                self._away_at = time.monotonic()
                self._closed.wait(_RETRY_SECONDS)
            except Exception as error:  # noqa: BLE001 (its text may hold what was said)
                _log.error("chat %s: %s", self._job_id, type(error).__name__)
                self._closed.wait(_RETRY_SECONDS)

    def _serve(self, asked: Listener) -> None:
        look_at = 0.0
        was_open = self._open
        while not self._closed.is_set():
            if self._open is not was_open:
                was_open, look_at = True, 0.0
            if unwritten := self._unwritten():
                with transaction() as session:
                    self._write(session, unwritten)
                self._note_written(unwritten)
            if time.monotonic() >= look_at:
                look_at = time.monotonic() + settings().control_seconds
                self._look()
            if self._job_id in asked.wait(_TICK_SECONDS):
                look_at = 0.0

    def _look(self) -> None:
        """Hand in what was asked; see whether anybody still sits there."""
        while not self._over:
            with transaction() as session:
                found = chats.waiting(session, self._job_id, self._taken)
            why = self._why_over(found)
            if why is not None:
                self._over = True
                self._on_over(ChatOver(why))
                return
            if found.next is None or not self._open:
                return
            self._taken = found.next.position
            self._active_at = time.monotonic()
            turn = found.next
            self._hand_in(Turn(position=turn.position, subject=turn.subject, prompt=turn.prompt))

    def _why_over(self, found: chats.Waiting) -> str | None:
        # While the database is away, a client cannot say that it lives.
        lost = settings().chat_lost_seconds
        away = self._away_at is not None and time.monotonic() - self._away_at < lost
        if (why := why_left(found)) and (found.closed or not away):
            return why
        idle = time.monotonic() - self._active_at
        if (
            self._open
            and found.next is None
            and not self._busy()
            and idle > settings().chat_idle_seconds
        ):
            return f"nothing was asked for {settings().chat_idle_seconds:g} s"
        return None

    def _busy(self) -> bool:
        with self._lock:
            last = self._answers.get(self._taken)
            return self._taken > 0 and (last is None or not last.whole)

    def _unwritten(self) -> dict[int, _Answer]:
        with self._lock:
            return {
                position: _Answer(one.text, one.tokens, one.whole, one.error)
                for position, one in self._answers.items()
                if not one.written
            }

    def _write(self, session: Session, answers: dict[int, _Answer]) -> None:
        for position, answer in answers.items():
            chats.write_answer(
                session,
                self._job_id,
                self._fence,
                position,
                answer.text,
                tokens=answer.tokens,
                whole=answer.whole,
                error=answer.error,
            )

    def _note_written(self, answers: dict[int, _Answer]) -> None:
        """Once it is committed: what is rolled back is written again."""
        with self._lock:
            for position, answer in answers.items():
                now = self._answers[position]
                now.written = (now.text, now.whole) == (answer.text, answer.whole)


def why_left(found: chats.Waiting) -> str | None:
    """Why nobody sits at the chat any more; none while somebody does."""
    if found.closed:
        return "closed by its user"
    if found.unseen_seconds > settings().chat_lost_seconds:
        return f"its client was not heard of for {settings().chat_lost_seconds:g} s"
    return None
