"""Jobs straight to a trainer process, over the product's own pipe, without database or broker."""

from __future__ import annotations

import json
import queue
import random
import statistics
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from gpu_worker.devices import Device
from gpu_worker.protocol import Failed, Message, Metrics, Ready, Replace, Run, Trained
from gpu_worker.trainer_process import TRAINER_MODULE, Died, Line, TrainerProcess
from models.errors import SetupError
from models.spec import JobSpec

SECONDS = 1_800  # for one job; a measurement that takes longer has gone wrong

_WORDS = [
    "model",
    "train",
    "batch",
    "token",
    "layer",
    "loss",
    "rate",
    "step",
    "data",
    "queue",
    "lease",
    "fence",
    "job",
    "base",
]


def synthetic_rows(path: Path, *, rows: int, seed: int = 1) -> Path:
    """Instruction rows of very different lengths, most of them short, as real data has them."""
    source = random.Random(seed)
    with path.open("w") as out:
        for number in range(rows):
            answer = source.choices(_WORDS, k=int(source.lognormvariate(3.6, 0.9)) + 4)
            row = {"instruction": f"say it, number {number}", "output": " ".join(answer)}
            out.write(json.dumps(row) + "\n")
    return path


@dataclass(frozen=True)
class Job:
    """A job whose data is prepared."""

    spec: JobSpec
    folder: Path
    verdict: dict[str, Any]

    @classmethod
    def prepare(cls, base: Path, dataset: Path, folder: Path, fields: dict[str, Any]) -> Self:
        from training_data.prepare import prepare

        spec = JobSpec.model_validate(fields | {"base_model": str(base), "dataset": str(dataset)})
        prepared = prepare(spec, tokenizer_path=str(base), scratch=folder / "prepared")
        return cls(spec, folder, prepared.verdict)

    def command(self) -> Run:
        return Run(
            job_id=self.folder.name,
            fence=1,
            stage="train",
            spec=self.spec.model_dump(mode="json"),
            batch_size=self.spec.batch_size,
            gradient_accumulation=self.spec.gradient_accumulation,
            base_path=self.spec.base_model,
            base_name="random-llama",
            base_revision="1",
            prepared_path=str(self.folder / "prepared"),
            output_path=str(self.folder),
        )


@dataclass(frozen=True)
class Outcome:
    """What one job did."""

    result: dict[str, Any]
    metrics: dict[str, list[float]]  # by name, in the order of steps

    def tokens_per_second(self, skip: int) -> float:
        """Median over the steps after the first `skip`."""
        return statistics.median(self.metrics["tokens_per_second"][skip:])

    @property
    def whole_tokens_per_second(self) -> float:
        """Over the run, from the first step's beginning to the last one's end."""
        seconds = self.last_step_ended - self.first_step_began
        return float(self.result["trained_tokens"]) / seconds

    @property
    def losses(self) -> list[float]:
        return self.metrics["train_loss"]

    @property
    def peak_memory_bytes(self) -> int:
        return int(self.result["peak_memory_bytes"])

    @property
    def precision(self) -> str:
        return str(self.result["precision"])

    @property
    def attention(self) -> str:
        return str(self.result["attention"])

    @property
    def first_step_began(self) -> float:
        return float(self.result["first_step_began"])

    @property
    def last_step_ended(self) -> float:
        return float(self.result["last_step_ended"])


class TrainerSession:
    """One warm trainer process; `run` gives it a job and waits for the end."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._said: queue.SimpleQueue[Message | Line | Died] = queue.SimpleQueue()
        self._lines: list[str] = []
        self._process = self._start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.leave()

    @property
    def pid(self) -> int:
        return self._process.pid

    def run(self, job: Job) -> Outcome:
        """Raises SetupError with what the trainer said when the job does not complete."""
        self._process.send(job.command())
        metrics: dict[str, list[float]] = {}
        while True:
            said = self._next()
            match said:
                case Metrics():
                    for point in said.points:
                        metrics.setdefault(point.name, []).append(point.value)
                case Trained():
                    return Outcome(said.result, metrics)
                case Replace():
                    self._process.leave()
                    self._process = self._start()
                    self._process.send(job.command())
                case Failed():
                    raise SetupError(f"the job failed: {said.error}\n{said.traceback}")
                case _:
                    pass

    def _start(self) -> TrainerProcess:
        process = TrainerProcess(TRAINER_MODULE, self._device)
        process.listener = self._said.put
        if process.ready is None:
            while not isinstance(self._next(), Ready):
                pass
        return process

    def _next(self) -> Message | Line | Died:
        try:
            said = self._said.get(timeout=SECONDS)
        except queue.Empty:
            raise SetupError(f"the trainer was silent for {SECONDS} s") from None
        if isinstance(said, Line):
            self._lines.append(said.text)
        if isinstance(said, Died):
            raise SetupError(f"the trainer died ({said.code}): " + "\n".join(self._lines[-20:]))
        return said
