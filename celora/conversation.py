"""A chat from the client's side: questions in, answers out as they grow, and a sign of life.

The worker ends a chat whose client is not heard of for a while, so a thread says every few seconds
that somebody still sits there.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from celora.client import current_user
from celora.views import Job
from models.adapter_work import Subject
from models.errors import CeloraError, StateError, UnavailableError
from models.queries import adapter_work, chats
from models.queries.adapters import resolve
from models.queries.history import JOB_CHANNEL, events_of
from models.queries.jobs import get_job, request_stop
from models.queries.notify import listen
from models.queries.waiting import why_waiting
from models.session import transaction
from models.settings import settings
from models.states import JobState, StopReason

_LOOK_SECONDS = 1.0  # between two looks, should a notification be lost
_RETRY_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Answer:
    text: str
    tokens: int
    seconds: float  # from the question to the end of the answer


class Conversation:
    """One chat; leave it through `with`, or its GPU is kept until the worker misses you.

    `waiting` is called with a sentence whenever it changes why no answer comes yet.
    """

    def __init__(self, job: Job, reference: str, waiting: Callable[[str], None]) -> None:
        self.job = job
        self.reference = reference
        self._waiting = waiting
        self._said = ""
        self._closed = threading.Event()
        self._keeper = threading.Thread(target=self._keep, name="chat-keeper", daemon=True)

    @classmethod
    def begin(
        cls,
        reference: str,
        *,
        tenant: str | None = None,
        user: str | None = None,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        waiting: Callable[[str], None] = lambda _: None,
    ) -> Self:
        """Put the chat on record: it waits for a GPU.

        Raises NotFoundError, InputError; StateError for a job that has left no adapter.
        """
        with transaction() as session:
            found = resolve(session, tenant, reference)
            row = adapter_work.insert_chat(
                session,
                found,
                user=user or current_user(),
                max_new_tokens=max_new_tokens,
                temperature=temperature,
            )
            job = Job.of(row)
        return cls(job, found.reference, waiting)

    def __enter__(self) -> Self:
        self._keeper.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closed.set()
        # With the database away it cannot be said; the worker misses us soon.
        with suppress(UnavailableError), transaction() as session:
            chats.close(session, self.job.id)
            if get_job(session, self.job.id).state == JobState.QUEUED:
                request_stop(session, self.job.id, StopReason.CANCEL)

    def ask(
        self, prompt: str, subject: Subject = "tuned", *, each: Callable[[str], None] | None = None
    ) -> Answer:
        """Wait for the whole answer; `each` gets it piece by piece.

        Raises StateError when the chat is over, or this question gets no answer.
        """
        asked_at = time.monotonic()
        with transaction() as session:
            position = chats.ask(session, self.job.id, prompt, subject)
        shown = 0
        for text, tokens in self._looks(position):
            if each is not None and len(text) > shown:
                each(text[shown:])
            shown = len(text)
            answer = Answer(text, tokens, time.monotonic() - asked_at)
        return answer

    def _looks(self, position: int) -> Iterator[tuple[str, int]]:
        """The answer so far, again and again, until it is whole."""
        while True:
            try:
                with listen(JOB_CHANNEL) as news:
                    while True:
                        found = self._look(position)
                        if found is not None:
                            text, tokens, whole = found
                            yield text, tokens
                            if whole:
                                return
                        end = time.monotonic() + _LOOK_SECONDS
                        while (left := end - time.monotonic()) > 0:
                            if self.job.id in news.wait(left):
                                break
            except UnavailableError as error:
                self._tell(f"{error.what}; trying again")
                time.sleep(_RETRY_SECONDS)

    def _look(self, position: int) -> tuple[str, int, bool] | None:
        """(answer so far, tokens, whole); None while the chat waits. Raises StateError."""
        with transaction() as session:
            job = get_job(session, self.job.id)
            state = JobState(job.state)
            turn = chats.turn(session, self.job.id, position)
            if turn is not None and turn.error is None and turn.answered_at is not None:
                return turn.answer, turn.tokens, True
            if Job.of(job).finished or state is JobState.PAUSED:
                raise self._over(job.error, [one.message for one in events_of(session, job.id)])
            if turn is not None and turn.error is not None:
                raise StateError(turn.error, where="this question")
            if state is JobState.QUEUED:
                self._tell(why_waiting(session, job.id).sentence)
            elif turn is not None and not turn.answer and job.activity:
                self._tell(job.activity)
        return None if turn is None else (turn.answer, turn.tokens, False)

    def _over(self, error: dict[str, object] | None, told: list[str]) -> StateError:
        why = str(error["message"]) if error else (told or ["it ended"])[-1]
        return StateError(f"the chat is over: {why}", remedy="start it again")

    def _tell(self, sentence: str) -> None:
        if sentence != self._said:
            self._said = sentence
            self._waiting(sentence)

    def _keep(self) -> None:
        pause = settings().chat_lost_seconds / 6
        while not self._closed.wait(pause):
            try:
                with transaction() as session:
                    chats.stay(session, self.job.id)
            except CeloraError:
                continue  # the database is away: the worker cannot see us, nor miss us
