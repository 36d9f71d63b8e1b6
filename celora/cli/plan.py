"""`celora plan`: what a job would need, before it is submitted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from celora.cli.output import AsJson, console, duration, facts, print_json, table
from celora.cli.spec_options import given_fields, in_options, read_spec_file, with_spec_options
from models.errors import SpecError

if TYPE_CHECKING:
    from celora.planning.plan import Fit, Plan


@with_spec_options()
def plan(
    *,
    spec: Annotated[
        Path | None,
        typer.Option(help="A .json, .yaml or .toml file with fields; options win over it."),
    ] = None,
    data: Annotated[
        bool, typer.Option("--data/--no-data", help="Read and tokenise the data for it.")
    ] = True,
    as_json: AsJson = False,
    **options: Any,
) -> None:
    """Tell what a job would train, need, take and cost, before a GPU is used.

    celora plan --base-model BASE --dataset rows.jsonl --method qlora
    """
    import celora
    from celora.planning.plan import record

    fields = read_spec_file(spec) if spec is not None else {}
    try:
        made = celora.plan(read_data=data, **(fields | given_fields(options)))
    except SpecError as error:
        raise in_options(error, "celora plan") from None
    if as_json:
        print_json(record(made))
    else:
        _print(made)


def _print(plan: Plan) -> None:
    out = console()
    out.print(facts(_facts(plan)))
    each = "pairs of 2 ×" if plan.method == "dpo" else "rows of"
    print(f"\nGPU memory, micro-batch {plan.micro_batch} {each} {plan.row_tokens} tokens")
    memory = plan.memory
    rows = [(p.name, _gb(p.low), _gb(p.expected), _gb(p.high)) for p in memory.parts]
    rows.append(("all", _gb(memory.low), _gb(memory.expected), _gb(memory.high)))
    out.print(table(["GB", "low", "expected", "high"], rows, right="low expected high"))
    if plan.correction.jobs:
        factor, jobs = plan.correction.factor, plan.correction.jobs
        print(f"Activations × {factor:.2f}, from the measured peaks of {jobs} finished jobs.")
    if plan.fits:
        print("\nGPUs of the pool")
        titles = ["device", "GB", "count", "fits", "micro-batch × accumulation", "GPU time"]
        pool = (_fit(one) for one in plan.fits)
        out.print(table([*titles, "cost"], pool, right="GB count cost"))
        for note in _notes(plan):
            print(note)
    for warning in plan.data.verdict.get("warnings", ()) if plan.data else ():
        print(f"! {warning}")
    if plan.data is not None and not plan.data.ok:
        print(f"! the data cannot be used: {plan.data.error}; `celora validate` lists the rows")


def _notes(plan: Plan) -> Iterator[str]:
    """What the table's hours and costs rest on, or why there are none."""
    for pace in sorted({one.pace for one in plan.fits if one.pace}):
        yield f"Hours from {pace}."
    if plan.training_tokens is not None and not any(one.pace for one in plan.fits):
        yield "No job of this method has finished on these GPUs yet, and their speed is not among"
        yield "the published ones that Celora knows: no hours are known, and no cost."
    for device in sorted({one.device for one in plan.fits if one.price_per_hour is None}):
        yield f"No price is set for {device}: `celora prices set` sets one."


def _facts(plan: Plan) -> Iterator[tuple[str, str]]:
    model = plan.model
    share = model.trainable / model.parameters if plan.method == "full" else (
        model.trainable / (model.parameters + model.trainable)
    )  # fmt: skip
    yield "base model", f"{plan.base_model} ({model.architecture})"
    yield "parameters", f"{model.parameters:,}"
    yield "trained", f"{model.trainable:,} ({share:.2%}), method {plan.method}"
    yield "precision", plan.memory.precision
    rows = plan.micro_batch * plan.gradient_accumulation
    yield "effective batch", f"{rows} = {plan.micro_batch} × {plan.gradient_accumulation}"
    yield "row length", f"{plan.row_tokens} tokens ({plan.row_tokens_from})"
    if plan.total_steps is not None:
        tokens = plan.training_tokens or 0
        yield "run", f"{plan.total_steps:,} steps, {tokens:,} tokens (from {plan.steps_from})"
    else:
        yield "run", f"not known: {plan.steps_from}"


def _fit(fit: Fit) -> tuple[str, ...]:
    rows = "—" if fit.micro_batch is None else f"{fit.micro_batch} × {fit.gradient_accumulation}"
    hours = "" if fit.gpu_hours is None else duration(fit.gpu_hours * 3600)
    cost = "" if fit.cost is None else f"{fit.cost:,.2f}"
    return (fit.device, _gb(fit.memory_bytes), str(fit.count), fit.fits, rows, hours, cost)


def _gb(count: float) -> str:
    return f"{count / 1e9:,.2f}"
