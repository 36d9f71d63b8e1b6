"""One stage of one attempt under its lease: what is decided as things happen.

    fetch the inputs → the trainer runs → register what it made → end the attempt

The lease outlives the stage where another follows. After it is lost nothing more is written.
"""

from __future__ import annotations

import logging
from collections import deque
from contextlib import suppress
from threading import Event
from typing import NoReturn

from gpu_worker import inputs, told
from gpu_worker.gpu_session import GpuSession, TrainerStuckError
from gpu_worker.inbox import Done, Due, Inbox, Said
from gpu_worker.inbox import Event as InboxEvent
from gpu_worker.lease import Lease, LeaseLostError, now
from gpu_worker.patience import patiently
from gpu_worker.protocol import (
    Activity,
    BaseChecked,
    CheckpointSaved,
    Evaluated,
    Exported,
    Failed,
    Log,
    Message,
    Metrics,
    Ready,
    Replace,
    Run,
    Started,
    Stop,
    Stopped,
    Trained,
)
from gpu_worker.stage_end import StageEnd
from gpu_worker.told import Told
from gpu_worker.trainer_process import (
    SCRIPTED_MODULE,
    TRAINER_MODULE,
    Died,
    Line,
    TrainerProcess,
)
from models import disk
from models.errors import CeloraError, SetupError, StaleFenceError, UnavailableError
from models.queries.attempts import Claim
from models.settings import settings
from models.states import Stage, StopReason

_log = logging.getLogger(__name__)

_MOST_REPLACEMENTS = 2
_LAST_LINES = 3

Verdict = Trained | Evaluated | Exported | Stopped | Failed


class StopNow(Exception):  # noqa: N818 (no error: a stop that waits for no word of the trainer)
    """`reason` is None for the time limit."""

    def __init__(self, reason: StopReason | None) -> None:
        super().__init__(reason)
        self.reason = reason


class TrainerLostError(CeloraError):
    """The trainer died, or never became ready."""


class StageRun:
    """One stage of one attempt; chat_run.py has the other kind."""

    def __init__(self, session: GpuSession, claim: Claim, lease: Lease) -> None:
        self.session, self.claim, self.lease = session, claim, lease
        self.inbox = Inbox()
        self.end = StageEnd(session, claim, lease, self.inbox)
        self.trainer: TrainerProcess | None = None
        self.stop_reason: StopReason | None = None
        self.over_time = False
        self.replacements = 0
        self.heard = False  # anything since the command was sent
        self.last_lines: deque[str] = deque(maxlen=_LAST_LINES)

    def run(self) -> Told:
        self.session.attach(self.inbox.put)
        try:
            if self.claim.stage is Stage.EVALUATE and self.claim.rows_held_out == 0:
                return self.end.nothing_to_evaluate()
            return self._stage()
        except (LeaseLostError, StaleFenceError) as error:
            _log.warning("job %s fence %s: %s", self.claim.job_id, self.claim.fence, error.what)
            self._abandon()
            return told.dropped(error.what)
        finally:
            if self.trainer is not None:
                self.trainer.listener = None

    def _stage(self) -> Told:
        limit = self.claim.spec.time_limit_seconds - self.claim.gpu_seconds_so_far
        self.inbox.set_deadline(Due.LIMIT, self.lease.claimed_at + max(0.0, limit))
        try:
            return self._conclude(self._play(self._gather()))
        except (LeaseLostError, StaleFenceError):
            raise
        except StopNow as stop:
            return self._stopped_now(stop)
        except (TrainerLostError, TrainerStuckError, UnavailableError) as error:
            away = error if isinstance(error, UnavailableError) else None
            return self._give_up(error.what, away)
        except CeloraError as error:
            return self.end.failed(error.record())
        except Exception as error:  # noqa: BLE001 (whatever it is, the attempt must end)
            if disk.is_full(error):
                return self.end.failed(disk.full(error, settings().at_home()).record())
            _log.exception("job %s fence %s", self.claim.job_id, self.claim.fence)
            return self._give_up("the worker met an error of its own; its log tells it")

    def _stopped_now(self, stop: StopNow) -> Told:
        return self.end.stopped(stop.reason)

    def _gather(self) -> Run:
        """Fetch the inputs in a thread, while the trainer starts; a stop waits for neither."""
        self._start_trainer()
        kind = self.session.device.kind
        over = Event()

        def gather() -> Run:
            return inputs.gather(self.claim, self.lease, kind, self._say)

        self.inbox.in_background(lambda: patiently(gather, say=self._say, wait=over.wait))
        try:
            return self._gathered()
        finally:
            over.set()

    def _gathered(self) -> Run:
        while True:
            match self.inbox.next():
                case Done(error=BaseException() as error):
                    raise error
                case Done(value=Run() as command):
                    return command
                case StopReason() as reason:
                    raise StopNow(reason)
                case Due.LIMIT:
                    raise StopNow(None)
                case Due.READY:
                    self._not_ready()
                case Said(trainer, Ready()) if trainer is self.trainer:
                    self.inbox.set_deadline(Due.READY, None)
                case Said(trainer, Died() as died) if trainer is self.trainer:
                    raise self._lost(died)

    def _play(self, command: Run) -> Verdict:
        """Let the trainer run the stage, until it says how it went."""
        self._send(command)
        while True:
            match self.inbox.next():
                case StopReason() as reason:
                    self._ask_to_stop(reason)
                case Due.LIMIT:
                    self._ask_to_stop(None)
                case Due.GRACE:
                    self._say_now("the trainer did not stop in time and was killed")
                    self.session.end_trainer()
                    raise StopNow(self.stop_reason)
                case Due.READY:
                    self._not_ready()
                case Said(trainer, what) if trainer is self.trainer:
                    verdict = self._take(what, command)
                    if verdict is not None:
                        return verdict
                case event:
                    self._meet(event)

    def _meet(self, event: InboxEvent) -> None:
        """What else can happen, to stages of another kind."""

    def _take(self, said: Verdict | Ready | Replace | Died, command: Run) -> Verdict | None:
        match said:
            case Ready():
                self.inbox.set_deadline(Due.READY, None)
            case Replace():
                self._replace(command, said.why)
            case Died(code=0, killed=False) if not self.heard:
                # It was just leaving, as one does that has trained all weights of its base.
                self._replace(command, "the one before had left")
            case Died():
                raise self._lost(said)
            case _:
                return said
        return None

    def _conclude(self, verdict: Verdict) -> Told:
        match verdict:
            case Trained():
                return self.end.trained(verdict)
            case Evaluated():
                return self.end.evaluated(verdict)
            case Exported():
                return self.end.exported(verdict)
            case Stopped():
                if self.stop_reason is None and not self.over_time:
                    return self._give_up("the trainer stopped unasked")
                self.end.keep_checkpoints()
                return self.end.stopped(self.stop_reason, step=verdict.step)
            case Failed():
                return self._failed(verdict)

    def _failed(self, failed: Failed) -> Told:
        if failed.out_of_memory:
            # Its process may hold what is left of the failed step: the retry gets a fresh one.
            self.session.end_trainer()
            return self.end.out_of_memory(failed)
        if failed.traceback:
            self._log_lines("error", failed.traceback.splitlines())
        return self.end.failed(failed.error, step=failed.step)

    # The trainer

    def _start_trainer(self) -> None:
        module = SCRIPTED_MODULE if self.claim.spec.scripted else TRAINER_MODULE
        if self.claim.spec.scripted and not settings().allow_scripted:
            raise SetupError(
                "scripted jobs are not allowed on this worker",
                remedy="set CELORA_ALLOW_SCRIPTED=true for tests; nowhere else",
            )
        trainer = self.session.trainer_for(module)
        self.trainer = trainer
        trainer.listener = lambda said: self._hear(trainer, said)
        if trainer.ready is None:
            self.inbox.set_deadline(Due.READY, now() + settings().trainer_start_seconds)
        if not trainer.alive:  # it may have died before anybody listened
            self.inbox.put(Said(trainer, Died(0, killed=False, empty=True)))

    def _send(self, command: Run) -> None:
        self.heard = False
        if self.trainer is not None:
            self.trainer.send(command)

    def _replace(self, command: Run, why: str) -> None:
        self.replacements += 1
        if self.replacements > _MOST_REPLACEMENTS:
            raise SetupError(f"a fresh trainer asked to be replaced again: {why}")
        self._log_lines("info", [f"a fresh trainer process is started: {why}"])
        self.session.end_trainer(gently=True)
        self._start_trainer()
        self._send(command)
        if self.stop_reason is not None:
            self._ask_to_stop(self.stop_reason)

    def _ask_to_stop(self, reason: StopReason | None) -> None:
        """Ask the trainer to stop at its next step; it has a grace to do so."""
        if reason is None:
            self.over_time = True
            if self.stop_reason is not None:
                return  # it stops already, for what somebody wants
        self.stop_reason = reason
        cancel = reason is StopReason.CANCEL
        grace = settings().cancel_grace_seconds if cancel else settings().stop_grace_seconds
        self.inbox.set_deadline(Due.GRACE, now() + grace)
        if self.trainer is not None:
            # Over the time limit it stops as for a preemption: with a checkpoint.
            self.trainer.send(Stop(reason=(reason or StopReason.PREEMPT).value))

    def _not_ready(self) -> NoReturn:
        self.session.end_trainer()
        raise TrainerLostError(
            f"the trainer was not ready after {settings().trainer_start_seconds:g} s"
        )

    def _lost(self, died: Died) -> TrainerLostError:
        if died.code < 0:
            how = f"was killed by signal {-died.code}"
            if died.code == -9:  # noqa: PLR2004 (SIGKILL)
                how += " (the system does that when memory runs out)"
        else:
            how = f"left with exit code {died.code}"
        said = f": {self.last_lines[-1]}" if self.last_lines else ""
        return TrainerLostError(f"the trainer process {how}{said}")

    def _hear(self, trainer: TrainerProcess, said: Message | Line | Died) -> None:
        """In the reader's thread: pass on at once, decide nothing."""
        recorder = self.end.recorder
        match said:
            case (
                Trained()
                | Evaluated()
                | Exported()
                | Stopped()
                | Failed()
                | Ready()
                | Replace()
                | Died()
            ):
                self.inbox.put(Said(trainer, said))
            case Metrics():
                recorder.metrics(said)
            case Line():
                self.last_lines.append(said.text)
                recorder.log("info", said.text)
            case Log():
                recorder.log(said.level, said.line)
            case Activity():
                self.heard = True
                count = f" {said.done} of {said.total}" if said.total else ""
                recorder.activity(said.what + count)
            case CheckpointSaved():
                self.end.keeper.add(said)
                recorder.activity("training")
            case Started():
                self.heard = True
                start = self.claim.start_checkpoint
                tokens = start.trained_tokens if start is not None else 0
                recorder.started(said.start_step, said.total_steps, tokens)
                recorder.activity("training")
            case BaseChecked():
                self._base_checked(trainer, said)

    def _base_checked(self, trainer: TrainerProcess, checked: BaseChecked) -> None:
        self.heard = True
        self.end.recorder.trainer(trainer.pid, warm=checked.warm)
        if not checked.differences:
            self.session.loaded_base = self.claim.spec.base_model
            self.session.beat()

    # Ends

    def _give_up(self, why: str, error: CeloraError | None = None) -> Told:
        """The attempt is lost for a reason that may be gone next time: the job is placed again.

        `error` is the job's where that has happened too often.
        """
        if self.trainer is not None and self.trainer.used:
            self.session.end_trainer()
        return self.end.gave_up(why, error)

    def _abandon(self) -> None:
        """The lease is lost: nothing may run for it any more, and nothing is written."""
        with suppress(TrainerStuckError):  # the device is reported in doubt
            self.session.end_trainer()
        self.end.abandon()

    def _say(self, what: str) -> None:
        self.end.recorder.activity(what, at_once=True)

    def _say_now(self, what: str) -> None:
        _log.warning("job %s: %s", self.claim.job_id, what)
        self._log_lines("warn", [what])

    def _log_lines(self, level: str, lines: list[str]) -> None:
        for line in lines:
            self.end.recorder.log(level, line)
