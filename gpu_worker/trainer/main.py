"""The trainer process: one command after another, on one base that is kept in memory."""

from __future__ import annotations

import gc
import os
import time
import traceback
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import torch
from datasets.utils.logging import disable_progress_bar
from peft import PeftModel
from transformers.utils import logging as transformers_logging

from gpu_worker.protocol import Activity, BaseChecked, Ready, Replace, Run
from gpu_worker.protocol import Stopped as StoppedMessage
from gpu_worker.trainer import base_model, sft
from gpu_worker.trainer.base_model import Base, BaseKey
from gpu_worker.trainer.callbacks import Progress
from gpu_worker.trainer.channel import Channel, StopRequested
from gpu_worker.trainer.checkpoint import open_checkpoint
from gpu_worker.trainer.failures import failed
from gpu_worker.trainer.job import Job
from gpu_worker.trainer.paged import PagedMemory
from gpu_worker.trainer.precision import Device, Precision, precision_for
from gpu_worker.trainer.preferences import REFERENCE
from gpu_worker.trainer.versions import device_name, versions
from models.adapter_work import ChatWork, ExportWork
from models.errors import CeloraError, DeviceMemoryError, TrainingError
from models.spec import JobSpec, parse_spec


class Unfit(Exception):  # noqa: N818 - no error of the job: a fresh process takes the command
    """This process may not run the command."""


@dataclass(frozen=True)
class Tuned:
    """A trained model that is still in memory, for the evaluation that may follow."""

    job_id: str
    fence: int
    model: Any
    precision: Precision


def run(channel: Channel) -> None:
    """Serve commands until Exit, end of file, or until this process is no longer fit."""
    disable_progress_bar()
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    process = Process(channel)
    channel.send(Ready(pid=os.getpid(), versions=versions(), device=device_name()))
    for command in channel.commands():
        process.serve(command)
        if process.spent:
            break
    channel.leave()


class Process:
    """What one trainer process holds: the base, and between two stages the tuned model."""

    def __init__(self, channel: Channel) -> None:
        self.spent = False  # leaves as soon as the command in hand is answered
        self._channel = channel
        self._base: Base | None = None
        self._tuned: Tuned | None = None
        self._used = False
        self._full = False  # a full job has changed the base's own weights
        self._progress: Progress | None = None
        self._paged = PagedMemory()
        self._stages = {
            "train": self._train,
            "evaluate": self._evaluate,
            "export": self._export,
            "generate": self._generate,
        }

    def serve(self, command: Run) -> None:
        """One command, answered by exactly one of Trained, Evaluated, Exported, Stopped, Failed,
        Replace."""
        self._progress = None
        try:
            self._channel.raise_if_stopped()
            spec = parse_spec(command.spec)
            self._stages[command.stage](command, spec)
        except Unfit as why:
            self._channel.send(Replace(why=str(why)))
            self.spent = True
        except StopRequested as stop:
            self._release()
            step = _saved_step(command) if self._step is None else self._step
            self._channel.send(StoppedMessage(reason=stop.reason, step=step))
        except BaseException as error:  # noqa: BLE001 - whatever it is, the supervisor must know
            self._fail(error)
        if not self._channel.waiting:
            gc.collect()  # while idle it costs nothing; otherwise the next job's start does it

    @property
    def _step(self) -> int | None:
        return None if self._progress is None else self._progress.step

    # Training

    def _train(self, run: Run, spec: JobSpec) -> None:
        self._release()
        self._require_fit(spec)
        precision = precision_for(spec, Device.current())
        base, warm = self._base_for(run, spec, precision)
        self._used = True
        self._full = spec.method == "full"
        job = Job(run, spec, precision, base, self._channel, warm)
        outcome = sft.train(job, self._note, lambda model: self._keep(run, precision, model))
        if isinstance(outcome, sft.Stopped):
            self._release()
            message = StoppedMessage(
                reason=outcome.reason, step=outcome.step, checkpoint_step=outcome.checkpoint_step
            )
            self._channel.send(message)
        else:
            self._channel.send(outcome)
            if not spec.evaluate:
                self._release()  # after the answer: the supervisor's next move takes time, too
        self.spent = self._full and not (spec.evaluate and self._tuned is not None)

    def _note(self, progress: Progress) -> None:
        self._progress = progress

    def _keep(self, run: Run, precision: Precision, model: Any) -> None:
        self._tuned = Tuned(run.job_id, run.fence, model, precision)

    def _require_fit(self, spec: JobSpec) -> None:
        if self._full:
            raise Unfit("a full job has trained this process's base")
        if spec.method == "full" and self._used:
            raise Unfit("a full job needs a process that no job has used")
        if self._paged.too_much:
            raise Unfit(f"earlier jobs lost {self._paged.lost_bytes} bytes of paged memory")

    # Evaluation

    def _evaluate(self, run: Run, spec: JobSpec) -> None:
        tuned = self._tuned
        if tuned is None or (tuned.job_id, tuned.fence) != (run.job_id, run.fence):
            self._release()
            self._require_fit(spec)
            tuned = self._load_tuned(run, spec)
        from gpu_worker.trainer.evaluate import evaluate

        base = self._base
        assert base is not None  # noqa: S101 - a tuned model stands on it
        autocast = tuned.precision.autocast_dtype
        with torch.autocast(base.model.device.type, dtype=autocast, enabled=autocast is not None):
            message = evaluate(
                tuned=tuned.model,
                base_context=self._base_context(tuned, run),
                tokenizer=base.tokenizer,
                run=run,
                report=self._report,
            )
        self._channel.send(message)
        self._release()
        self.spent = self._full

    # What was trained before: exports and chats

    def _export(self, run: Run, spec: JobSpec) -> None:
        self._release()
        work = ExportWork.of(run.work)
        from gpu_worker.trainer.export import Export

        export = Export(run, spec, work, self._report)
        precision = precision_for(spec, Device.current())

        def load(folder: Path) -> Any:
            self._release()
            self._require_fit(spec)
            return self._load_tuned(
                run.model_copy(update={"adapter_path": str(folder)}), spec
            ).model

        if work.format == "adapter":
            message = export.adapter(load)
            self._release()
        else:
            as_trained = None
            if precision.quantized:
                tuned = load(Path(run.adapter_path or ""))
                dtype = precision.autocast_dtype
                with torch.autocast(tuned.device.type, dtype=dtype, enabled=dtype is not None):
                    as_trained = export.read(tuned, "quantised base with the adapter")
                del tuned
                self._release()
            message = export.merged(self._place_for(export.model_bytes), as_trained)
        self._channel.send(message)

    def _place_for(self, size: int) -> str:
        """The device for a second model of this many bytes; a warm base that leaves it no room
        goes. A model that no device holds is worked on in the host's memory. Raises Unfit;
        DeviceMemoryError where it fits there neither, before the system would kill somebody."""
        needed = _ROOM * size
        if _free_bytes() <= needed:
            self._drop_base()
        if torch.cuda.is_available() and _free_bytes() > needed:
            return "cuda:0"
        if (free := _free_host_bytes()) <= needed:
            raise DeviceMemoryError(
                f"the model takes {needed / 1e9:.1f} GB in bfloat16, and this machine has"
                f" {free / 1e9:.1f} GB of memory free",
                where="export",
                remedy="export it as adapter, which needs no second model in memory; or export it"
                " again when a machine with more memory is free",
            )
        return "cpu"

    def _generate(self, run: Run, spec: JobSpec) -> None:
        """Serve a chat; it ends by a stop."""
        self._release()
        self._require_fit(spec)
        work = ChatWork.of(run.work)
        from gpu_worker.trainer.chat import talk

        tuned = self._load_tuned(run, spec)
        base = self._base
        assert base is not None  # noqa: S101 - a tuned model stands on it
        autocast = tuned.precision.autocast_dtype
        with torch.autocast(base.model.device.type, dtype=autocast, enabled=autocast is not None):
            talk(
                tuned=tuned.model,
                base_context=self._base_context(tuned, run),
                tokenizer=base.tokenizer,
                work=work,
                channel=self._channel,
            )

    def _load_tuned(self, run: Run, spec: JobSpec) -> Tuned:
        """The base with a saved adapter, on a process that did not train it."""
        adapter = run.adapter_path
        if adapter is None:
            raise TrainingError(
                "there is no tuned model: this process trained no such job, and was given none",
                remedy="retry the job",
            )
        precision = precision_for(spec, Device.current())
        if spec.method == "full":
            # The tuned model takes the base's place; the base itself is loaded for its turn.
            run = run.model_copy(update={"base_path": adapter})
        base, _ = self._base_for(run, spec, precision)
        self._used = True
        self._full = spec.method == "full"
        model = base.model
        if not self._full:
            model = PeftModel.from_pretrained(base.model, adapter)
            if spec.method == "dpo" and run.start_adapter_path is not None:
                model.load_adapter(run.start_adapter_path, adapter_name=REFERENCE)
        tuned = Tuned(run.job_id, run.fence, model.eval(), precision)
        self._tuned = tuned
        return tuned

    def _base_context(self, tuned: Tuned, run: Run) -> Callable[[], Any]:
        if isinstance(tuned.model, PeftModel):
            return lambda: _without_adapter(tuned.model)
        return lambda: self._untrained(tuned, run)

    @contextmanager
    def _untrained(self, tuned: Tuned, run: Run) -> Iterator[Any]:
        """The base of a full job, loaded anew in the tuned model's place on the device."""
        assert self._base is not None  # noqa: S101 - the caller's model stands on it
        device = tuned.model.device
        tuned.model.to("cpu")
        key = self._base.key
        base = base_model.load_model(replace(key, path=run.base_path))
        try:
            yield base
        finally:
            del base
            _free()
            tuned.model.to(device)

    def _report(self, what: str, done: int, total: int) -> None:
        self._channel.raise_if_stopped()
        self._channel.send(Activity(what=what, done=done, total=total))

    # The base

    def _base_for(self, run: Run, spec: JobSpec, precision: Precision) -> tuple[Base, bool]:
        """The base for this job, and whether it was warm. Raises Unfit where it is unclean."""
        key = BaseKey.of(run.base_path, run.base_revision, precision, trust=spec.trust_remote_code)
        began = time.perf_counter()
        if self._base is not None and self._base.key == key:
            found = self._base.differences()
            self._tell_checked(found, began, warm=True)
            if found:
                raise Unfit(f"the base is not as it was loaded: {'; '.join(found)}")
            return self._base, True
        self._drop_base()
        self._channel.send(Activity(what="loading the base model"))
        self._base = base_model.load(key, name=run.base_name)
        self._tell_checked([], began, warm=False)
        return self._base, False

    def _tell_checked(self, found: list[str], began: float, *, warm: bool) -> None:
        seconds = time.perf_counter() - began
        self._channel.send(BaseChecked(warm=warm, differences=found, seconds=seconds))

    def _drop_base(self) -> None:
        """Make room for another base. Raises Unfit if something still holds the old one."""
        if self._base is None:
            return
        old = weakref.ref(self._base.model)
        self._base = None
        gc.unfreeze()
        _free()
        if old() is not None:
            raise Unfit("the earlier base model could not be taken out of memory")

    def _release(self) -> None:
        """Take the adapter off and put the base back as it was."""
        tuned, self._tuned = self._tuned, None
        if tuned is not None and self._base is not None and not self._full:
            self._base.restore(tuned.model)
        self._paged.forget_job()

    def _fail(self, error: BaseException) -> None:
        progress = self._progress
        in_step = progress is not None and progress.first_step_began is not None
        message = failed(error, step=self._step, in_step=in_step)
        _let_go(error)
        del error
        try:
            self._release()
        except Exception as second:  # noqa: BLE001 - then the base is not clean
            self._channel.log(f"the base could not be cleaned: {second}", "warn")
            self.spent = True
        _free()
        self.spent = self.spent or self._full
        self._channel.send(message)


def _let_go(error: BaseException | None) -> None:
    """Empty the frames of a traceback: they hold the trainer and its tensors."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def _saved_step(command: Run) -> int:
    """How far the job is when it is stopped before it could go on."""
    if command.resume_from is None:
        return 0
    with suppress(CeloraError):
        return open_checkpoint(Path(command.resume_from)).step
    return 0


@contextmanager
def _without_adapter(model: PeftModel) -> Iterator[Any]:
    with model.disable_adapter():
        yield model


# A second model beside the base, with what reading a few prompts takes.
_ROOM = 1.3


def _free_bytes() -> int:
    """Of the device's memory; without a device, of the machine's."""
    if torch.cuda.is_available():
        return int(torch.cuda.mem_get_info()[0])
    return _free_host_bytes()


def _free_host_bytes() -> int:
    return int(psutil.virtual_memory().available)


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
