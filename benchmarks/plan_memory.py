"""What `celora plan` says of memory, against real models. Prints two tables for the docs.

The first needs no GPU to be exact: the bytes that autograd keeps for the backward pass of a real
model, tensor by tensor, against the estimated activations. An estimate that is off by more than its
own low and high figures is a miss.

The second is of real trainers, each job in a process of its own. On a CUDA device the measured
figure is what torch had allocated at most. On a CPU it is the most that the process had resident
during the job, less what it had before it loaded the base. Either is compared with the planned
parts without the overhead, which is neither torch's nor a CPU's.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.trainer_session import Job, TrainerSession
from celora.planning.architecture import architecture_of
from celora.planning.memory import activation_bytes, cast_bytes, estimate
from celora.planning.plan import on_device
from gpu_worker.devices import Device, discover
from models.errors import SetupError
from models.spec import JobSpec

ROW_TOKENS, ROWS, STEPS = 256, 32, 3
METHODS: dict[str, dict[str, Any]] = {
    "lora": {"method": "lora"},
    "qlora": {"method": "qlora"},
    "full": {"method": "full"},
    "dpo": {"method": "dpo"},
    "dpo, qlora base": {"method": "dpo", "dpo_base": "qlora"},
}
_TITLES = (
    "model",
    "method",
    "parameters",
    "trained",
    "weights",
    "adapter, gradients, optimizer",
    "activations, logits, reference",
    "low / expected / high",
    "measured",
)
# Method, precision of a job → types of the weights and of autocast, as precision_for has them.
KEPT: dict[str, tuple[dict[str, Any], str, bool]] = {
    "lora, bf16": ({"method": "lora"}, "bfloat16", True),
    "lora, bf16, no dropout": ({"method": "lora", "dropout": 0}, "bfloat16", True),
    "lora, fp32": ({"method": "lora", "precision": "fp32"}, "float32", False),
    "full, bf16 autocast": ({"method": "full"}, "float32", True),
    "full, `bf16_pure`": ({"method": "full", "bf16_pure": True}, "bfloat16", False),
    "full, fp32": ({"method": "full", "precision": "fp32"}, "float32", False),
}
LOW, HIGH = 0.7, 1.4  # the estimate's own spread


@dataclass(frozen=True)
class Shape:
    """A Llama that is made on the spot."""

    hidden: int
    layers: int
    heads: int
    mlp: int
    vocab: int


SHAPES = {
    "tiny": Shape(hidden=128, layers=2, heads=4, mlp=384, vocab=1000),
    "small": Shape(hidden=512, layers=8, heads=8, mlp=1408, vocab=4096),
}


@dataclass(frozen=True)
class Row:
    """Bytes."""

    model: str
    method: str
    parameters: int
    trained: int
    parts: dict[str, float]
    low: float
    high: float
    measured: float

    @property
    def expected(self) -> float:
        return sum(self.parts.values())


def main() -> int:
    device = _device()
    with tempfile.TemporaryDirectory(prefix="celora-plan-memory-") as name:
        folder = Path(name)
        misses = 0
        print("| method | planned | kept by autograd | of the plan |\n| --- | --- | --- | --- |")
        for title, planned, kept in compare_kept(folder):
            misses += not LOW <= kept / planned <= HIGH
            print(f"| {title} | {_mb(planned)} | {_mb(kept)} | {kept / planned:.2f} |", flush=True)
        print()
        print("\n".join(table([]).splitlines()))
        for row in measure(device, folder):
            print(table([row]).splitlines()[-1], flush=True)
    return 1 if misses else 0


def compare_kept(folder: Path) -> Iterator[tuple[str, float, float]]:
    """(what, planned bytes, kept bytes), a decoder of four layers without recomputation."""
    from gpu_worker.trainer.tiny_base import random_base

    base = random_base(folder / "kept", hidden=256, layers=4, heads=8, mlp=704, vocab=512)
    rows, tokens = 2, 128
    for title, (fields, weights, autocast) in KEPT.items():
        spec = JobSpec.model_validate(fields | {"base_model": str(base), "dataset": "none"})
        model = architecture_of(spec)
        compute = 4 if spec.precision == "fp32" else 2
        layers = activation_bytes(spec, model, rows * tokens, tokens, compute, checkpointing=False)
        planned = layers + model.quantisable * 2 * bool(cast_bytes(spec, model))
        yield title, planned, kept_bytes(spec, base, weights, (rows, tokens), autocast=autocast)


def kept_bytes(
    spec: JobSpec, base: Path, weights: str, shape: tuple[int, int], *, autocast: bool
) -> float:
    """Of all storages that the layers' forward pass saves, but for the weights themselves."""
    import torch
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    from gpu_worker.trainer.adapter import lora_config

    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=getattr(torch, weights))
    layers = model.model
    if spec.method != "full":
        model = get_peft_model(model, lora_config(spec, model))
    model.train()
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    sizes: dict[int, int] = {}
    alive = []  # a freed storage's address could be another's

    def pack(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
        alive.append(tensor)
        return tensor

    ids = torch.randint(3, 500, shape)
    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast), hooks:
        layers(input_ids=ids, use_cache=False)
    return float(sum(sizes.values()))


def table(rows: list[Row]) -> str:
    lines = [
        f"| {' | '.join(_TITLES)} |",
        f"| {' | '.join('---' for _ in _TITLES)} |",
    ]
    for row in rows:
        trained = sum(row.parts[name] for name in ("adapter", "gradients", "optimizer"))
        moving = row.expected - trained - row.parts["weights"]
        cells = [
            row.model,
            row.method,
            f"{row.parameters:,}",
            f"{row.trained:,}",
            *map(_mb, (row.parts["weights"], trained, moving)),
            " / ".join(map(_mb, (row.low, row.expected, row.high))),
            _mb(row.measured),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def measure(device: Device, folder: Path) -> Iterator[Row]:
    from gpu_worker.trainer.tiny_base import random_base

    data = _pairs(folder / "pairs.jsonl")
    for name, shape in SHAPES.items():
        base = random_base(folder / name, **vars(shape))
        for number, (method, fields) in enumerate(METHODS.items()):
            common = {
                "columns": {} if fields["method"] == "dpo" else {"completion": "chosen"},
                "max_sequence_length": ROW_TOKENS,
                "packing": "off",
                "max_steps": STEPS,
                "gradient_accumulation": 1,
                "evaluate": True,  # the process stays, with its model, and can be asked
                "validation_fraction": 0,
            }
            job = Job.prepare(base, data, folder / f"{name}-{number}", common | fields)
            yield _row(name, method, job, device)


def _row(name: str, method: str, job: Job, device: Device) -> Row:
    model = architecture_of(job.spec)
    spec: JobSpec = on_device(job.spec, device.kind)
    planned = estimate(spec, model, micro_batch=spec.batch_size, row_tokens=ROW_TOKENS)
    parts = [part for part in planned.parts if part.name not in {"overhead", "cache"}]
    with TrainerSession(device) as trainer:
        before = _status(trainer.pid, "VmRSS")
        _forget_peak(trainer.pid)
        outcome = trainer.run(job)
        measured = float(outcome.peak_memory_bytes)
        if device.kind != "cuda":
            measured = _status(trainer.pid, "VmHWM") - before
    return Row(
        model=name,
        method=method,
        parameters=model.parameters,
        trained=model.trainable,
        parts={part.name: part.expected for part in parts},
        low=sum(part.low for part in parts),
        high=sum(part.high for part in parts),
        measured=measured,
    )


def _device() -> Device:
    try:
        return discover("all")[0]
    except SetupError:
        return discover("cpu:1")[0]


def _pairs(path: Path) -> Path:
    """Every answer is longer than a row may be: all rows are cut to the same length."""
    source = random.Random(1)
    words = [f"{source.randrange(10**6):06}" for _ in range(100)]
    with path.open("w") as out:
        for number in range(ROWS):
            answers = [" ".join(source.choices(words, k=2 * ROW_TOKENS)) for _ in range(2)]
            row = {"prompt": f"number {number}: ", "chosen": answers[0], "rejected": answers[1]}
            out.write(json.dumps(row) + "\n")
    return path


def _status(pid: int, name: str) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    line = next(line for line in lines if line.startswith(f"{name}:"))
    return float(line.split()[1]) * 1024


def _forget_peak(pid: int) -> None:
    Path(f"/proc/{pid}/clear_refs").write_text("5")  # proc(5): VmHWM begins anew


def _mb(count: float) -> str:
    return f"{count / 1e6:,.1f}"


if __name__ == "__main__":
    sys.exit(main())
