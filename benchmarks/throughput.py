"""Tokens per second of a job against the same recipe as a bare TRL script, and the same losses.

Two processes, each with the same fixed number of threads, take turns on the same base, data and
recipe. The script leaves to TRL whatever the recipe does not say. A second row leaves it TRL's
default of recomputing activations as well, which a job does on a CUDA device only.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpu_worker.protocol import Trained
from gpu_worker.trainer.tiny_base import random_base
from tests.trainer_driver import Trainer, make_run, prepared_data

THREADS = 1  # two threads that wait for each other measure who else uses the machine
ROUNDS = 4
STEPS = 20
AIM = 1.05
LOSS_TOLERANCE = 2e-4  # between two orders of summation over the steps in float32
_WINDOW = 10  # steps between two losses that TRL logs, by its default


@dataclass(frozen=True)
class Round:
    tokens_per_second: float
    losses: list[float]  # means over `_WINDOW` steps


class BareScript:
    """`benchmarks.bare_trl` in a process of its own."""

    def __init__(self) -> None:
        environment = os.environ | _threads() | {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.bare_trl"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        self._answer()

    def run(self, recipe: dict[str, Any]) -> Round:
        assert self._process.stdin is not None  # noqa: S101 - it was started with pipes
        print(json.dumps(recipe), file=self._process.stdin, flush=True)
        said = self._answer()
        return Round(said["tokens"] / said["seconds"], said["losses"])

    def close(self) -> None:
        self._process.kill()
        self._process.wait()

    def _answer(self) -> Any:
        assert self._process.stdout is not None  # noqa: S101 - as above
        return json.loads(self._process.stdout.readline())


def run(*, rounds: int = ROUNDS, steps: int = STEPS) -> float:
    """Print the table and return the ratio of the best rounds, job over script."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        base = random_base(root / "base", hidden=256, layers=2, mlp=704, vocab=2000)
        data = prepared_data(root / "data", rows=400, length=(20, 120), vocab=500)
        job, script, defaults = _measure(root, base, data, rounds=rounds, steps=steps)
    ratio = _best(job) / _best(script)
    apart = max(
        abs(a - b)
        for one, other in zip(job, script, strict=True)
        for a, b in zip(one.losses, other.losses, strict=True)
    )
    print(
        f"   2.2M parameters, {THREADS} thread each, the best of {rounds} rounds of {steps} steps"
    )
    print(f"   {'a job':<44}{_best(job):>10,.0f} tokens/s")
    print(f"   {'bare TRL, same recipe':<44}{_best(script):>10,.0f} tokens/s")
    print(f"   {'bare TRL, recomputing activations as well':<44}{_best(defaults):>10,.0f} tokens/s")
    print(f"   ratio {ratio:.2f} (aim {AIM}), losses at most {apart:.1e} apart")
    if apart > LOSS_TOLERANCE:
        print(f"   the losses differ by more than {LOSS_TOLERANCE}")
        return 0.0
    return ratio


def _measure(
    root: Path, base: Path, data: Path, *, rounds: int, steps: int
) -> tuple[list[Round], list[Round], list[Round]]:
    script = BareScript()
    job: list[Round] = []
    same: list[Round] = []
    defaults: list[Round] = []
    try:
        with Trainer(environment=_threads()) as trainer:
            for n in range(rounds + 1):  # the first warms both up
                job.append(_job(trainer, base, data, root / f"job{n}", steps))
                recipe = _recipe(base, data, root / f"script{n}", steps)
                same.append(script.run(recipe))
                recipe["sft"]["gradient_checkpointing"] = True
                defaults.append(script.run(recipe))
    finally:
        script.close()
    return job[1:], same[1:], defaults[1:]


def _job(trainer: Trainer, base: Path, data: Path, output: Path, steps: int) -> Round:
    trainer.forget()
    command = make_run(
        base,
        data,
        output,
        max_steps=steps,
        rank=16,
        batch_size=4,
        gradient_accumulation=2,
        learning_rate=1e-4,
        log_every_steps=_WINDOW,
        warmup_steps=0,
    )
    done = trainer.run(command)
    if not isinstance(done, Trained):
        raise SystemExit(f"the job did not finish: {done}")
    losses = list(trainer.values("train_loss").values())
    seconds = done.result["last_step_ended"] - done.result["first_step_began"]
    windows = [losses[n : n + _WINDOW] for n in range(0, len(losses), _WINDOW)]
    return Round(done.trained_tokens / seconds, [statistics.fmean(w) for w in windows])


def _recipe(base: Path, data: Path, output: Path, steps: int) -> dict[str, Any]:
    """The job's recipe in TRL's words."""
    return {
        "base": str(base),
        "data": str(data / "train.arrow"),
        "output": str(output),
        "lora": {
            "r": 16,
            "lora_alpha": 32,
            "lora_dropout": 0.05,
            "task_type": "CAUSAL_LM",
            "target_modules": [
                f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")
            ],
        },
        "sft": {
            "max_steps": steps,
            "per_device_train_batch_size": 4,
            "gradient_accumulation_steps": 2,
            "learning_rate": 1e-4,
            "lr_scheduler_type": "cosine",
            "max_grad_norm": 0.3,
            "seed": 42,
            "bf16": False,
            "use_cpu": True,
            "gradient_checkpointing": False,
            "dataset_kwargs": {"skip_prepare_dataset": True},
            "max_length": None,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
        },
    }


def _threads() -> dict[str, str]:
    return {"OMP_NUM_THREADS": str(THREADS), "MKL_NUM_THREADS": str(THREADS)}


def _best(rounds: list[Round]) -> float:
    """Whatever else runs on the machine only ever slows a round down."""
    return max(r.tokens_per_second for r in rounds)


if __name__ == "__main__":
    sys.exit(0 if run() >= AIM else 1)
