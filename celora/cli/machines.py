"""Commands about what trains and what it trains from: gpus, cordon, drain, label, pull."""

from __future__ import annotations

from typing import Annotated

import typer

from celora.cli.output import (
    AsJson,
    console,
    duration,
    print_json,
    short_id,
    size,
    state_text,
    table,
)
from models.errors import InputError


def gpus(as_json: AsJson = False) -> None:
    """List the GPUs and CPU slots with what they do."""
    from models.queries.gpus import list_gpus
    from models.session import transaction
    from tasks.shown import base_name

    with transaction() as session:
        found = list_gpus(session)
    if as_json:
        print_json(found)
        return
    if not found:
        print("No GPU has reported. `celora up` or `celora gpu-worker` starts a worker.")
        return
    console().print(
        table(
            [
                "host",
                "index",
                "device",
                "memory",
                "labels",
                "state",
                "job",
                "base in memory",
                "seen",
            ],
            (
                (
                    gpu.host,
                    gpu.index,
                    gpu.model,
                    size(gpu.memory_bytes),
                    " ".join(f"{name}={value}" for name, value in sorted(gpu.labels.items())),
                    state_text(gpu.state),
                    short_id(gpu.job_id or "") or (gpu.reason or "" if gpu.state != "free" else ""),
                    base_name(gpu.loaded_base or ""),
                    f"{duration(gpu.heartbeat_age_seconds)} ago",
                )
                for gpu in found
            ),
            right="index memory",
            spare=["labels", "seen", "base in memory", "memory"],
        )
    )


GpuName = Annotated[
    str,
    typer.Argument(
        metavar="[HOST:]INDEX",
        help="The GPU, as `celora gpus` names it; `HOST:` means all of that host.",
        show_default=False,
    ),
]


def cordon(
    gpu: GpuName,
    off: Annotated[bool, typer.Option("--off", help="Let jobs onto it again.")] = False,
    as_json: AsJson = False,
) -> None:
    """Keep new jobs off a GPU. What runs there goes on."""
    from models.queries.gpus import set_cordon
    from models.session import transaction

    host, index = _gpu_name(gpu)
    with transaction() as session:
        changed = set_cordon(session, host, index, not off)
    _show(changed, "takes jobs again" if off else "takes no new jobs", as_json)


def drain(gpu: GpuName, as_json: AsJson = False) -> None:
    """Empty a GPU: no new jobs, and what runs goes on elsewhere from a checkpoint.

    `celora cordon --off` lets jobs onto it again.
    """
    from models.queries.gpus import jobs_on, set_cordon
    from models.queries.jobs import request_stop
    from models.session import transaction
    from models.states import StopReason

    host, index = _gpu_name(gpu)
    with transaction() as session:
        changed = set_cordon(session, host, index, True)
        there = jobs_on(session, changed)
    for job_id in there:  # one transaction each: rows are locked gpus → jobs, and never two jobs
        with transaction() as session:
            request_stop(session, job_id, StopReason.DRAIN)
    moved = f"; asked to move: {', '.join(there)}" if there else ""
    _show(changed, f"takes no new jobs{moved}", as_json)


def label(
    gpu: GpuName,
    labels: Annotated[
        list[str],
        typer.Argument(metavar="KEY=VALUE…", help="Labels to set; `KEY=` takes one away."),
    ],
    as_json: AsJson = False,
) -> None:
    """Label a GPU, for jobs that ask for it with --gpu-labels."""
    from models.abilities import PREFIX
    from models.queries.gpus import set_labels
    from models.session import transaction

    given = [text.partition("=") for text in labels]
    for name, equals, value in given:
        if not (name and equals):
            raise InputError(f"{name}{equals}{value} is not KEY=VALUE", remedy="write zone=a")
        if name.startswith(PREFIX):
            raise InputError(
                f"{name} is what a worker says of itself", remedy="choose a name without celora/"
            )
    host, index = _gpu_name(gpu)
    with transaction() as session:
        changed = set_labels(
            session, host, index, {name: value or None for name, _, value in given}
        )
    _show(changed, "is labelled", as_json)


def _gpu_name(text: str) -> tuple[str, int | None]:
    """Host and index; no index for all of a host. Raises InputError."""
    from models.settings import settings

    host, colon, index = text.rpartition(":")
    if colon and host and not index:
        return host, None
    if not index.isdecimal():
        raise InputError(
            f"{text!r} is not [HOST:]INDEX", remedy="`celora gpus` lists hosts and indexes"
        )
    return host or settings().resolved_host, int(index)


def _show(gpu_ids: list[int], what: str, as_json: bool) -> None:
    from models.queries.gpus import list_gpus
    from models.session import transaction

    with transaction() as session:
        changed = [view for view in list_gpus(session) if view.id in gpu_ids]
    if as_json:
        print_json(changed[0] if len(changed) == 1 else changed)
        return
    for view in changed:
        print(f"{view.host}:{view.index} {what}")


def pull(
    base_model: Annotated[
        str, typer.Argument(help="Hub name, folder or fsspec URL of a base model.")
    ],
    revision: Annotated[
        str | None, typer.Option(help="Hub revision: a branch, tag or commit.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Fetch a base model into this machine's cache, so that its first job starts sooner."""
    from gpu_worker.bases import resolve

    base = resolve(base_model, revision, weights=True)
    if as_json:
        print_json({"name": base.name, "revision": base.revision, "path": str(base.path)})
    else:
        print(f"{base.name} at revision {base.revision}\n{base.path}")
