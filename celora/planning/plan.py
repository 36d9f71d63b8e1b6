"""A plan: what a job would train, need, take and cost, in seconds and without a GPU."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from celora.planning.architecture import architecture_of
from celora.planning.correction import Correction, correction_from
from celora.planning.memory import Architecture, Memory, estimate, largest_micro_batch
from celora.planning.paces import pace_on
from models.errors import UnavailableError
from models.gpu_wish import GpuWish
from models.queries.gpus import GpuView, list_gpus
from models.queries.rollups import hourly_prices
from models.queries.throughput import (
    Measured,
    Peak,
    Work,
    measured_peaks,
    measured_throughput,
    measured_work,
)
from models.session import transaction
from models.spec import JobSpec
from training_data.validate import Report

# Left free for what other processes and the driver take while a job runs.
USABLE_SHARE = 0.97


@dataclass(frozen=True, slots=True)
class Fit:
    """One kind of GPU: `fits` says yes, tight (the expected need fits, the high one does not), no.

    With `micro_batch` rows at a time and `gradient_accumulation` of them per step the effective
    batch stays what was asked; none when not even one row fits.
    """

    device: str
    memory_bytes: int
    count: int
    fits: str
    micro_batch: int | None
    gradient_accumulation: int | None
    gpu_hours: float | None
    pace: str | None  # what `gpu_hours` rests on
    price_per_hour: float | None  # none: no price is set for this model
    cost: float | None  # in the administrator's currency; none without hours or without a price


@dataclass(frozen=True, slots=True)
class Plan:
    base_model: str
    method: str
    model: Architecture
    micro_batch: int
    gradient_accumulation: int
    row_tokens: int
    row_tokens_from: str
    memory: Memory
    correction: Correction  # of the activations, from measured peaks
    fits: tuple[Fit, ...]
    total_steps: int | None
    training_tokens: int | None
    steps_from: str
    data: Report | None  # what preparing the data would say; none when it was not read


def make_plan(spec: JobSpec, data: Report | None = None, model: Architecture | None = None) -> Plan:
    """The plan of a job. `data` is the report on its data, tokenised with its base model, and
    `model` what an earlier plan of the same model and method has counted.

    Raises BaseModelError, SpecError, SetupError.
    """
    if model is None:
        model = architecture_of(spec)
    row_tokens, row_tokens_from = _row_tokens(spec, data)
    steps, tokens, steps_from = _steps(spec, data)
    known = _on_record(spec)
    correction = correction_from(spec, model, known.peaks)
    memory = estimate(
        spec,
        model,
        micro_batch=spec.batch_size,
        row_tokens=row_tokens,
        correction=correction.factor,
    )
    return Plan(
        base_model=spec.base_model,
        method=spec.method,
        model=model,
        micro_batch=spec.batch_size,
        gradient_accumulation=spec.gradient_accumulation,
        row_tokens=row_tokens,
        row_tokens_from=row_tokens_from,
        memory=memory,
        correction=correction,
        fits=tuple(
            _fit(
                spec,
                model,
                view,
                count,
                row_tokens=row_tokens,
                # Only CUDA peaks are on record: a CPU's estimate stays as it is.
                factor=correction.factor if view.kind == "cuda" else 1.0,
                hours=_hours(view, tokens, spec, model, known),
                price=known.prices.get(view.model),
            )
            for view, count in known.gpus
        ),
        total_steps=steps,
        training_tokens=tokens,
        steps_from=steps_from,
        data=data,
    )


def on_device(spec: JobSpec, kind: str) -> JobSpec:
    """What `auto` means on a device of this kind, as far as memory is concerned: a CPU computes in
    fp32 unless the base is quantised, and recomputes nothing (gpu_worker/trainer/precision.py)."""
    if kind == "cuda":
        return spec
    changes = {}
    if spec.precision == "auto" and spec.held_as != "qlora" and not spec.bf16_pure:
        changes["precision"] = "fp32"
    if spec.gradient_checkpointing == "auto":
        changes["gradient_checkpointing"] = "off"
    return spec.model_copy(update=changes)


def _row_tokens(spec: JobSpec, data: Report | None) -> tuple[int, str]:
    """The longest row decides about memory. Rows are padded to the longest of their batch."""
    verdict = data.verdict if data is not None else {}
    longest = verdict.get("lengths", {}).get("max")
    if longest is None or verdict.get("packed"):
        why = "rows are packed" if verdict.get("packed") else "the data was not read"
        return spec.max_sequence_length, f"max_sequence_length: {why}"
    return min(longest, spec.max_sequence_length), "the longest row of the data"


def _steps(spec: JobSpec, data: Report | None) -> tuple[int | None, int | None, str]:
    verdict = data.verdict if data is not None else {}
    if "total_steps" in verdict:
        steps = verdict["total_steps"]
        return steps, round(steps * verdict["tokens_per_step"]), "the data"
    if spec.max_steps is not None:
        sequences = spec.effective_batch_size * (2 if spec.method == "dpo" else 1)
        at_most = spec.max_steps * sequences * spec.max_sequence_length
        return spec.max_steps, at_most, "max_steps, with rows as long as they may be"
    return None, None, "the data was not read"


@dataclass(frozen=True, slots=True)
class _Known:
    """What the database knows; nothing without one: a plan needs none."""

    gpus: tuple[tuple[GpuView, int], ...] = ()  # that the job may use, each kind once with a count
    paces: tuple[Measured, ...] = ()
    work: tuple[Work, ...] = ()
    peaks: tuple[Peak, ...] = ()
    prices: dict[str, float | None] = field(default_factory=dict)


def _on_record(spec: JobSpec) -> _Known:
    base_model, method = spec.base_model, spec.method
    try:
        with transaction() as session:
            views = list_gpus(session)
            paces = tuple(
                measured_throughput(
                    session, base_model=base_model, method=method, dpo_base=spec.dpo_base
                )
            )
            work = tuple(measured_work(session, method=method, dpo_base=spec.dpo_base))
            peaks = tuple(measured_peaks(session, base_model=base_model, method=method))
            prices = hourly_prices(session)
    except UnavailableError:
        return _Known()
    kinds: dict[tuple[str, int], list[GpuView]] = {}
    for view in views:
        if view.state != "stale" and _is_wanted(GpuWish.of(spec), view):
            kinds.setdefault((view.model, view.memory_bytes), []).append(view)
    gpus = tuple((same[0], len(same)) for same in kinds.values())
    return _Known(gpus, paces, work, peaks, prices)


def _is_wanted(wish: GpuWish, gpu: GpuView) -> bool:
    return (
        gpu.memory_bytes >= wish.memory_bytes
        and (wish.model is None or wish.model in gpu.model.lower())
        and wish.plain_labels.items() <= gpu.labels.items()
    )


def _fit(
    spec: JobSpec,
    model: Architecture,
    view: GpuView,
    count: int,
    *,
    row_tokens: int,
    factor: float,
    hours: tuple[float | None, str | None],
    price: float | None,
) -> Fit:
    usable = view.memory_bytes * USABLE_SHARE
    there = on_device(spec, view.kind)
    need = estimate(
        there, model, micro_batch=spec.batch_size, row_tokens=row_tokens, correction=factor
    )
    micro = largest_micro_batch(
        there, model, row_tokens=row_tokens, available_bytes=usable, correction=factor
    )
    taken, pace = hours
    return Fit(
        device=view.model,
        memory_bytes=view.memory_bytes,
        count=count,
        fits="yes" if need.high <= usable else "tight" if need.expected <= usable else "no",
        micro_batch=micro,
        gradient_accumulation=None if micro is None else spec.effective_batch_size // micro,
        gpu_hours=taken,
        pace=pace,
        price_per_hour=price,
        cost=None if taken is None or price is None else taken * price,
    )


def _hours(
    view: GpuView, tokens: int | None, spec: JobSpec, model: Architecture, known: _Known
) -> tuple[float | None, str | None]:
    pace = pace_on(view.model, on_device(spec, view.kind), model, known.paces, known.work)
    if tokens is None or pace is None:
        return None, None
    return tokens / pace.tokens_per_second / 3600, pace.basis


def record(plan: Plan) -> dict[str, Any]:
    """JSON types only; bytes as whole numbers."""
    from dataclasses import asdict

    told = asdict(plan)
    told["data"] = None if plan.data is None else plan.data.record()
    told["memory"] = {
        "precision": plan.memory.precision,
        "parts": {
            part.name: {
                "low_bytes": round(part.low),
                "expected_bytes": round(part.expected),
                "high_bytes": round(part.high),
            }
            for part in plan.memory.parts
        },
        "low_bytes": round(plan.memory.low),
        "expected_bytes": round(plan.memory.expected),
        "high_bytes": round(plan.memory.high),
    }
    return told
