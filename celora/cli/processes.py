"""Commands that run until they are told to stop: up, dispatcher, cpu-worker, gpu-worker, api,
flower."""

from __future__ import annotations

import os
import signal
import sys
import threading
from typing import Annotated

import typer

from models.errors import InputError, SetupError

# Flower's own choice leaves out what tells one job from another, and what came of it. Beyond the
# worker a screen of usual width ends.
_FLOWER_COLUMNS = "name,args,kwargs,state,result,worker,runtime,received,uuid"
_DEVICES_HELP = "`all` (CUDA devices), `cuda:0,cuda:2`, or `cpu:2` (slots of this machine's cores)"


def up(
    devices: Annotated[
        str | None,
        typer.Option(help=f"{_DEVICES_HELP}. Default: all CUDA devices, else cpu:1."),
    ] = None,
) -> None:
    """Run all of Celora on this machine until Ctrl-C.

    Without CELORA_DATABASE_URL it brings its own PostgreSQL, without CELORA_BROKER_URL it uses a
    folder as broker; both lie in CELORA_HOME. A second Ctrl-C stops without waiting for
    checkpoints.
    """
    from celora.local.stack import Stack

    stop, hurry = threading.Event(), threading.Event()

    def ask(*_: object) -> None:
        if stop.is_set():
            hurry.set()
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, ask)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup means it
        signal.signal(signal.SIGHUP, ask)
    stack = Stack(devices=devices, say=_say, hurry=hurry.is_set)
    stack.take_home()
    try:
        stack.start()
        stack.wait_ready(stop.is_set)
        if not stop.is_set():
            named = ", ".join(f"{d.kind}:{d.index} {d.model}" for d in stack.devices)
            _say(f"devices      {named}")
            _say("ready        `celora submit` hands it a job; Ctrl-C stops it")
        while not stop.wait(0.5):
            stack.tend()
    finally:
        _say("stopping     running jobs write a checkpoint first; Ctrl-C once more: at once")
        stack.stop()
        _say("stopped")


def dispatcher() -> None:
    """Run the dispatcher: it places jobs on free GPUs and repairs what was lost.

    Several may run; one at a time places.
    """
    import logging

    from tasks.dispatcher import run

    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    run(stop)


def cpu_worker(
    concurrency: Annotated[
        int, typer.Option(min=1, help="Jobs that are prepared at the same time.")
    ] = 2,
) -> None:
    """Run a CPU worker: it prepares training data and takes jobs from the broker."""
    from models.settings import settings
    from tasks.names import CPU_QUEUES, DEFAULT_QUEUE
    from tasks.names import cpu_worker as worker_name

    os.execv(  # noqa: S606 (no shell, and the operator sees the plain Celery command)
        sys.executable,
        [
            sys.executable, "-m", "celery", "--app", "tasks.app", "worker",
            "--hostname", worker_name(settings().resolved_host),
            "--queues", ",".join((*CPU_QUEUES, DEFAULT_QUEUE)),
            "--concurrency", str(concurrency), "--pool", "prefork",
            "--without-gossip", "--without-mingle", "--loglevel", "INFO",
        ],
    )  # fmt: skip


def gpu_worker(
    devices: Annotated[str, typer.Option(help=_DEVICES_HELP)] = "all",
) -> None:
    """Run one pinned worker for each device, and start it again when it dies."""
    from gpu_worker.launcher import main

    main(devices)


def api(
    port: Annotated[int, typer.Option(min=0, max=65_535, help="TCP port; 0: any free one.")] = 8000,
    address: Annotated[
        str, typer.Option(help="Address to listen on; put a TLS proxy in front of any other.")
    ] = "127.0.0.1",
) -> None:
    """Serve the HTTP API: OpenAI's fine-tuning endpoints, and its own page at /docs.

    Several may run on one database. Keys are made with `celora keys create`.
    """
    from importlib.util import find_spec

    if find_spec("fastapi") is None or find_spec("uvicorn") is None:
        raise SetupError("the HTTP API is not installed", remedy="pip install 'celora[api]'")
    from celora.api.serve import serve

    serve(address, port)


def flower(
    port: Annotated[int, typer.Option(min=1, max=65_535, help="TCP port.")] = 5555,
    address: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
) -> None:
    """Start Flower, Celery's dashboard, on Celora's broker.

    It asks for the user and password in CELORA_FLOWER_USER and CELORA_FLOWER_PASSWORD; without
    them it makes a password and prints it once.
    """
    from importlib.util import find_spec

    if find_spec("flower") is None:
        raise SetupError("Flower is not installed", remedy="pip install 'celora[flower]'")
    import secrets

    user = os.environ.get("CELORA_FLOWER_USER") or "celora"
    password = os.environ.get("CELORA_FLOWER_PASSWORD")
    if "," in f"{user}{password}" or ":" in user:
        raise InputError(
            "Flower takes no comma in user or password, and no colon in the user",
            where="CELORA_FLOWER_USER, CELORA_FLOWER_PASSWORD",
            remedy="choose others",
        )
    if not password:
        password = secrets.token_urlsafe(12)
        print(f"http://{address}:{port}/  user {user}  password {password}", flush=True)
    else:
        print(f"http://{address}:{port}/  user {user}", flush=True)
    # Through the environment: an argument list is for everybody to read.
    environment = os.environ | {
        "FLOWER_BASIC_AUTH": f"{user}:{password}",
        "FLOWER_ADDRESS": address,
        "FLOWER_PORT": str(port),
    }
    environment.setdefault("FLOWER_TASKS_COLUMNS", _FLOWER_COLUMNS)
    os.execve(  # noqa: S606 (as above)
        sys.executable,
        [sys.executable, "-m", "celery", "--app", "tasks.app", "flower"],
        environment,
    )


def _say(line: str) -> None:
    print(line, flush=True)
