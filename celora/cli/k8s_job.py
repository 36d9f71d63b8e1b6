"""One job without the broker: `celora k8s-job` renders it for Kubernetes, `celora run-job` is what
its container runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from models.errors import InputError
from models.spec import JobSpec

SpecFile = Annotated[
    Path, typer.Argument(help="A .json, .yaml or .toml file with JobSpec's fields.")
]
Tenant = Annotated[str, typer.Option(help="Whose use of GPUs it counts as.")]
User = Annotated[
    str | None, typer.Option(help="Whose job it is. Default: who is logged in.", show_default=False)
]


def k8s_job(
    spec: SpecFile,
    *,
    name: Annotated[
        str | None,
        typer.Option(
            help="Name of the Kubernetes Job. The same name goes on with the same job. Default: a"
            " new one.",
            show_default=False,
        ),
    ] = None,
    namespace: Annotated[str, typer.Option(help="Where docker/k8s has been applied.")] = "celora",
    image: Annotated[
        str | None,
        typer.Option(help="The GPU image. Default: celora-gpu, this version.", show_default=False),
    ] = None,
    device: Annotated[Literal["cuda", "cpu"], typer.Option(help="What it trains on.")] = "cuda",
    memory: Annotated[int, typer.Option(min=1, help="Most of its memory, in GiB.")] = 32,
    node_selector: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LABEL=VALUE",
            help="Only nodes with this label; may be repeated.",
            show_default=False,
        ),
    ] = None,
    config: Annotated[str, typer.Option(help="Name of Celora's config map there.")] = "celora",
    secrets: Annotated[str, typer.Option(help="Name of Celora's secret there.")] = "celora",
    authority: Annotated[
        str, typer.Option(help="Name of the config map with ca.pem there.")
    ] = "celora-authority",
    shared_volumes: Annotated[
        bool,
        typer.Option(help="Mount the claims of artifacts and models; not with an object store."),
    ] = True,
    tenant: Tenant = "default",
    user: User = None,
) -> None:
    """Render one job as a Kubernetes Job, which runs it without the broker.

    celora k8s-job job.yaml | kubectl apply -f -
    """
    import yaml  # type: ignore[import-untyped]  # its stubs are a package of their own

    from celora.client import current_user
    from celora.k8s_job import Place, render

    chosen = Place(
        namespace=namespace,
        device=device,
        memory_gib=memory,
        node_selector=dict(map(_pair, node_selector or ())),
        config=config,
        secret=secrets,
        authority=authority,
        shared_volumes=shared_volumes,
        **({"image": image} if image else {}),
    )
    made = render(_read(spec), tenant=tenant, user=user or current_user(), name=name, place=chosen)
    print(yaml.safe_dump(made, sort_keys=False, allow_unicode=True, width=100), end="")


def run_job(
    spec: SpecFile,
    *,
    key: Annotated[
        str,
        typer.Option(
            help="Names the job: started again with it, the command goes on with the same one. One"
            " process at a time."
        ),
    ],
    devices: Annotated[
        str, typer.Option(help="`all` (the first CUDA device), `cuda:N`, or `cpu:1`")
    ] = "all",
    tenant: Tenant = "default",
    user: User = None,
) -> int:
    """Run one job in this process, without the broker: what the pod of `celora k8s-job` does.

    Exit code: 0 completed or cancelled; 1 failed, 2 a wrong field, 4 paused: no start will help; 75
    stopped with a checkpoint, 3 no database, 5 no such device: start it again.
    """
    import logging

    from celora.client import current_user
    from tasks.run_job import run

    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    return run(_read(spec), key=key, tenant=tenant, user=user or current_user(), devices=devices)


def _read(path: Path) -> JobSpec:
    from celora.cli.spec_options import read_spec_file
    from models.spec import parse_spec

    return parse_spec(read_spec_file(path))


def _pair(text: str) -> tuple[str, str]:
    label, equals, value = text.partition("=")
    if not (label and equals and value):
        raise InputError(f"{text!r} is not LABEL=VALUE", where="--node-selector")
    return label, value
