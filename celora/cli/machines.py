"""Commands about what trains and what it trains from: gpus, cordon, pull."""

from __future__ import annotations

from typing import Annotated

import typer

from celora.cli.output import AsJson, console, duration, print_json, size, state_text, table
from models.errors import InputError


def gpus(as_json: AsJson = False) -> None:
    """List the GPUs and CPU slots with what they do."""
    from models.queries.gpus import list_gpus
    from models.session import transaction

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
            ["host", "index", "device", "memory", "state", "job", "base in memory", "last seen"],
            (
                (
                    gpu.host,
                    gpu.index,
                    gpu.model,
                    size(gpu.memory_bytes),
                    state_text(gpu.state),
                    gpu.job_id or (gpu.reason or "" if gpu.state != "free" else ""),
                    gpu.loaded_base or "",
                    f"{duration(gpu.heartbeat_age_seconds)} ago",
                )
                for gpu in found
            ),
            right="index memory",
        )
    )


def cordon(
    gpu: Annotated[
        str,
        typer.Argument(metavar="[HOST:]INDEX", help="The GPU, as `celora gpus` names it."),
    ],
    off: Annotated[bool, typer.Option("--off", help="Let jobs onto it again.")] = False,
    as_json: AsJson = False,
) -> None:
    """Keep new jobs off a GPU. What runs there goes on."""
    from models.queries.gpus import list_gpus, set_cordon
    from models.session import transaction
    from models.settings import settings

    host, _, index = gpu.rpartition(":")
    if not index.isdecimal():
        raise InputError(
            f"{gpu!r} is not [HOST:]INDEX", remedy="`celora gpus` lists hosts and indexes"
        )
    host = host or settings().resolved_host
    with transaction() as session:
        set_cordon(session, host, int(index), not off)
        view = next(
            view for view in list_gpus(session) if (view.host, view.index) == (host, int(index))
        )
    if as_json:
        print_json(view)
    else:
        print(f"{host}:{index} {'takes jobs again' if off else 'takes no new jobs'}")


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
