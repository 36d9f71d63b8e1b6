"""`make gpu-check`: what only shows on a CUDA device is checked and measured there.

Prints a table that is ready for docs/measurements.md, and exits non-zero when a check fails.
Without a device it says so and exits 0. `--rehearse` plays the same course on a CPU slot with a
tiny base: it shows that the check itself works, and measures nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.trainer_session import Job, Outcome, TrainerSession, synthetic_rows
from gpu_worker.devices import Device, discover
from models.errors import SetupError

WARM_UP_STEPS = 5  # kernels are chosen and memory is claimed in the first steps


@dataclass(frozen=True)
class Sizes:
    """How large the base and the jobs are."""

    hidden: int
    layers: int
    heads: int
    mlp: int
    vocab: int
    rows: int
    steps: int
    max_sequence_length: int
    batch_size: int


# About 0.9 billion parameters, made on the spot: large enough that kernels decide, not Python.
DEVICE = Sizes(
    hidden=2048,
    layers=16,
    heads=16,
    mlp=5632,
    vocab=32_000,
    rows=4_000,
    steps=40,
    max_sequence_length=1_024,
    batch_size=8,
)
REHEARSAL = Sizes(
    hidden=32,
    layers=1,
    heads=2,
    mlp=64,
    vocab=512,
    rows=120,
    steps=8,
    max_sequence_length=128,
    batch_size=2,
)


@dataclass
class Report:
    """Lines of the table; a failed check is a line as well."""

    lines: list[tuple[str, str, str]] = field(default_factory=list)
    failed: bool = False

    def say(self, what: str, value: str, note: str = "") -> None:
        self.lines.append((what, value, note))
        print(f"  {what}: {value} {note}".rstrip(), flush=True)

    def check(self, what: str, *, good: bool, value: str) -> None:
        self.failed = self.failed or not good
        self.say(what, value, "" if good else "**failed**")

    def table(self) -> str:
        rows = ["| | | |", "| --- | --- | --- |"]
        return "\n".join(rows + ["| " + " | ".join(line) + " |" for line in self.lines])


def main() -> int:
    arguments = argparse.ArgumentParser(prog="python -m benchmarks.gpu_check")
    arguments.add_argument("--rehearse", action="store_true", help="on a CPU slot, tiny base")
    rehearse = arguments.parse_args().rehearse
    try:
        devices = discover("cpu:1" if rehearse else "all")
    except SetupError:
        print("no CUDA device on this machine: nothing to check")
        return 0
    machine.show()
    report = Report()
    with tempfile.TemporaryDirectory(prefix="celora-gpu-check-") as folder:
        run(devices, REHEARSAL if rehearse else DEVICE, Path(folder), report, cuda=not rehearse)
    print("\n" + "\n".join(f"- {name}: {value}" for name, value in machine.facts().items()))
    print("\n" + report.table())
    return 1 if report.failed else 0


def run(devices: list[Device], sizes: Sizes, folder: Path, report: Report, *, cuda: bool) -> None:
    if cuda:
        for device in devices:
            _check_pinning(device, report)
    print("making the base and the data …", flush=True)
    jobs = list(_jobs(sizes, folder))
    with TrainerSession(devices[0]) as trainer:
        outcomes = {name: trainer.run(job) for name, job in jobs}
    for name, outcome in outcomes.items():
        _tell(name, outcome, report)
    _check_methods(outcomes, report, cuda=cuda)
    _compare(outcomes, report)
    bare = _bare(devices[0], jobs[0][1], cuda=cuda)
    ours = outcomes["LoRA, again (warm)"].whole_tokens_per_second
    report.say(
        "LoRA against a bare TRL script",
        f"{ours / bare:.2f} ×",
        f"{ours:,.0f} against {bare:,.0f} tokens/s, first step to last, the same recipe",
    )


def _bare(device: Device, job: Job, *, cuda: bool) -> float:
    """Tokens per second of the same recipe as TRL's documentation writes it; its second round."""
    spec = job.spec
    recipe = {
        "base": spec.base_model,
        "data": str(job.folder / "prepared" / "train.arrow"),
        "output": str(job.folder / "bare"),
        "lora": {
            "r": spec.rank,
            "lora_alpha": spec.alpha,
            "lora_dropout": spec.dropout,
            "task_type": "CAUSAL_LM",
            "target_modules": list(spec.target_modules),
        },
        "sft": {
            "max_steps": spec.max_steps,
            "per_device_train_batch_size": spec.batch_size,
            "gradient_accumulation_steps": spec.gradient_accumulation,
            "learning_rate": spec.resolved_learning_rate,
            "lr_scheduler_type": "cosine",
            "max_grad_norm": spec.gradient_clip,
            "seed": spec.seed,
            "bf16": cuda,
            "use_cpu": not cuda,
            "model_init_kwargs": {"dtype": "bfloat16" if cuda else "float32"},
            "gradient_checkpointing": cuda,  # as a job on this device
            "dataset_kwargs": {"skip_prepare_dataset": True},
            "max_length": None,
            "logging_steps": spec.max_steps,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
        },
    }
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.bare_trl"],
        input=f"{json.dumps(recipe)}\n" * 2,
        capture_output=True,
        text=True,
        env=os.environ | device.environment() | {"HF_HUB_OFFLINE": "1"},
        check=False,
    )
    if done.returncode != 0:
        raise SetupError(f"the bare script failed: {done.stderr[-1000:]}")
    last = json.loads(done.stdout.splitlines()[-1])
    return float(last["tokens"] / last["seconds"])


def _jobs(sizes: Sizes, folder: Path) -> Iterator[tuple[str, Job]]:
    from gpu_worker.trainer.tiny_base import random_base

    base = random_base(
        folder / "base",
        hidden=sizes.hidden,
        layers=sizes.layers,
        heads=sizes.heads,
        mlp=sizes.mlp,
        vocab=sizes.vocab,
    )
    data = synthetic_rows(folder / "rows.jsonl", rows=sizes.rows)
    common: dict[str, Any] = {
        "max_steps": sizes.steps,
        "max_sequence_length": sizes.max_sequence_length,
        "batch_size": sizes.batch_size,
        "gradient_accumulation": 2,
        "learning_rate": 1e-3,
        "warmup_steps": 0,
        "log_every_steps": 1,
        "checkpoint_every_steps": 10_000,
        "evaluate": False,
    }
    courses: dict[str, dict[str, Any]] = {
        "LoRA": {"method": "lora", "packing": "off"},
        "LoRA, again (warm)": {"method": "lora", "packing": "off"},
        "LoRA, packed": {"method": "lora", "packing": "on"},
        "QLoRA": {"method": "qlora", "packing": "off"},
        "QLoRA, packed": {"method": "qlora", "packing": "on"},
    }
    for number, (name, fields) in enumerate(courses.items()):
        yield name, Job.prepare(base, data, folder / f"job-{number}", common | fields)


def _check_pinning(device: Device, report: Report) -> None:
    """A process with the device's environment sees one device, and it is that one."""
    code = (
        "import torch; print(torch.cuda.device_count(), torch.cuda.get_device_properties(0).uuid)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PATH": "/usr/bin:/bin"} | _library_paths() | device.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    count, _, uuid = done.stdout.strip().partition(" ")
    good = count == "1" and uuid.removeprefix("GPU-") == device.uuid.removeprefix("GPU-")
    seen = f"{count or 'no'} device seen: {uuid or done.stderr.strip()[-200:]}"
    report.check(f"pinning of cuda:{device.index}", good=good, value=seen)


def _library_paths() -> dict[str, str]:
    names = ("LD_LIBRARY_PATH", "HOME", "VIRTUAL_ENV")
    return {name: os.environ[name] for name in names if name in os.environ}


def _tell(name: str, outcome: Outcome, report: Report) -> None:
    report.say(
        name,
        f"{outcome.tokens_per_second(WARM_UP_STEPS):,.0f} tokens/s, "
        f"peak {outcome.peak_memory_bytes / 1e9:.2f} GB",
        f"{outcome.precision}; attention {outcome.attention}; loss "
        f"{outcome.losses[0]:.3f} → {statistics.fmean(outcome.losses[-5:]):.3f}",
    )


def _check_methods(outcomes: dict[str, Outcome], report: Report, *, cuda: bool) -> None:
    lora, qlora = outcomes["LoRA"], outcomes["QLoRA"]
    for name, outcome in outcomes.items():
        falls = statistics.fmean(outcome.losses[-5:]) < outcome.losses[0]
        if not falls:
            report.check(f"{name}: the loss falls", good=False, value=str(outcome.losses[-1]))
    report.check("attention kernel", good=bool(lora.attention), value=lora.attention)
    if cuda:
        report.check("LoRA computes in bf16", good="bf16" in lora.precision, value=lora.precision)
        report.check("QLoRA stores NF4", good="nf4" in qlora.precision, value=qlora.precision)


def _compare(outcomes: dict[str, Outcome], report: Report) -> None:
    for method in ("LoRA", "QLoRA"):
        plain, packed = outcomes[method], outcomes[f"{method}, packed"]
        ratio = packed.tokens_per_second(WARM_UP_STEPS) / plain.tokens_per_second(WARM_UP_STEPS)
        report.say(f"{method}: packed against unpacked", f"{ratio:.2f} ×", "tokens per second")
    first, second = outcomes["LoRA"], outcomes["LoRA, again (warm)"]
    report.say(
        "warm gap",
        f"{second.first_step_began - first.last_step_ended:.2f} s",
        "last step ended → first step of the next job begun, on one base",
    )


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        sys.exit(main())
