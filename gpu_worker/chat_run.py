"""A chat, as its supervisor sees it: a stage that ends when nobody sits there any more."""

from __future__ import annotations

from gpu_worker.chat_desk import ChatDesk, ChatOver, why_left
from gpu_worker.inbox import Due, Event
from gpu_worker.lease import now
from gpu_worker.protocol import AnswerPart, BaseChecked, Message, Run, Stop, Stopped, Turn
from gpu_worker.session import LeaseLost
from gpu_worker.stage_run import StageRun, StopNow, Verdict
from gpu_worker.told import Told
from gpu_worker.trainer_process import Died, Line, TrainerProcess
from models.queries import chats
from models.settings import settings
from models.states import StopReason


class ChatRun(StageRun):
    over: str | None = None  # why, once nobody sits there any more

    def _stage(self) -> Told:
        job_id = self.claim.job_id
        found = self.lease.insist(lambda session: chats.waiting(session, job_id, 0))
        if why := why_left(found):
            return self.end.nobody_there(why)
        return super()._stage()

    def _send(self, command: Run) -> None:
        super()._send(command)
        if self.end.desk is None:
            self.end.desk = ChatDesk(
                self.claim.job_id,
                self.claim.fence,
                hand_in=self._hand_in,
                on_over=self.inbox.put,
                on_stale=lambda: self.inbox.put(LeaseLost("another ended the attempt")),
            )
            self.end.desk.start()

    def _hand_in(self, turn: Turn) -> None:
        if self.trainer is not None:
            self.trainer.send(turn)

    def _hear(self, trainer: TrainerProcess, said: Message | Line | Died) -> None:
        if not isinstance(said, AnswerPart):
            super()._hear(trainer, said)
        elif self.end.desk is not None:
            self.end.desk.part(said)

    def _base_checked(self, trainer: TrainerProcess, checked: BaseChecked) -> None:
        super()._base_checked(trainer, checked)
        if not checked.differences and self.end.desk is not None:
            self.end.desk.open()  # not before: a process that is to be replaced answers nothing

    def _meet(self, event: Event) -> None:
        """A trainer knows a chat's end as a stop; it stays warm if it obeys in time."""
        if not isinstance(event, ChatOver):
            return
        self.over = event.why
        if self.stop_reason is None and self.trainer is not None:
            self.inbox.set_deadline(Due.GRACE, now() + settings().cancel_grace_seconds)
            self.trainer.send(Stop(reason=StopReason.CANCEL.value))

    def _conclude(self, verdict: Verdict) -> Told:
        if isinstance(verdict, Stopped) and (why := self._ended()):
            return self.end.chatted(why)
        return super()._conclude(verdict)

    def _stopped_now(self, stop: StopNow) -> Told:
        if why := self._ended():
            return self.end.chatted(why)
        return super()._stopped_now(stop)

    def _ended(self) -> str | None:
        """Why, where nobody else wanted it to end."""
        return None if self.stop_reason is not None or self.over_time else self.over
