"""`celora demo`: one fine-tuning job from end to end, on a model small enough for two cores."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from celora.demo.base import make_base
from celora.demo.closing import show_result
from celora.demo.scene import Scene
from models.errors import CeloraError, SetupError

# What the demo promises: nothing known before, most of it known after.
BASE_BELOW, TUNED_FROM = 0.10, 0.80
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run(home: Path, *, devices: str | None = None) -> int:
    """Run it in `home`; 0 when the model learned what it should, else 1. Raises CeloraError."""
    began = time.monotonic()
    job_file = _job_file()
    _use_home(home)
    _forget_deleted_home(home)
    scene = Scene()
    with _interruptible(), _stack(scene, devices) as stack:
        scene.title("A tiny base model, made here and now")
        base = make_base(home, scene)
        scene.title("A LoRA job on it, through the ordinary API")
        job_id = _submit(job_file, base, scene)
        try:
            ended = _watch(job_id, stack)
        except BaseException:
            _cancel(job_id)
            raise
        scene.title("What came of it")
        return show_result(ended, scene, began)


def _job_file() -> Path:
    import celora

    path = Path(celora.__file__).parents[1] / "examples" / "smart_home" / "job.json"
    if not path.is_file():
        raise SetupError(
            "the demo's example data is not part of the installed package",
            where=str(path),
            remedy="clone Celora's repository and run `make demo` in it",
        )
    return path


def _use_home(home: Path) -> None:
    """The embedded defaults in a folder of its own, whatever is set for this user."""
    from models.session import engine_for
    from models.settings import settings

    for name in [name for name in os.environ if name.startswith("CELORA_")]:
        del os.environ[name]
    os.environ["CELORA_HOME"] = str(home.absolute())
    settings.cache_clear()
    engine_for.cache_clear()


def _forget_deleted_home(home: Path) -> None:
    """Root's database lies outside of `home` (see models/settings.py): whoever deleted the demo's
    folder meant that as well."""
    from celora.local.postgres import EmbeddedPostgres
    from models.settings import settings

    server = EmbeddedPostgres(settings().embedded_postgres)
    if not home.exists() and server.folder.exists():
        server.stop()
        shutil.rmtree(server.folder)


@contextmanager
def _stack(scene: Scene, devices: str | None) -> Iterator[Any]:
    from celora.local.stack import Stack

    scene.title("Celora on this machine: database, broker, dispatcher, workers")
    hurry = threading.Event()
    stack = Stack(devices=devices, say=scene.say, hurry=hurry.is_set)
    stack.take_home()
    try:
        stack.start()
        _end_earlier_jobs()
        stack.wait_ready()
        yield stack
    finally:
        # A second Ctrl-C must not leave half of it running: it only hurries the stop.
        _handle(lambda *_: hurry.set())
        scene.say("stopping everything that was started")
        stack.stop()


def _end_earlier_jobs() -> None:
    """A demo that was interrupted left its job in the queue: this one would wait for it."""
    import celora

    for job in celora.jobs(state=["pending", "queued", "running", "paused"]):
        celora.cancel(job)


def _submit(job_file: Path, base: Path, scene: Scene) -> str:
    import celora
    from celora.cli.spec_options import read_spec_file

    fields = read_spec_file(job_file) | {"base_model": str(base)}
    job = celora.submit(**fields)
    scene.say(f"celora submit --spec {_short(job_file)} --base-model {_short(base)}")
    scene.say(f"submitted {job.id}")
    return job.id


def _short(path: Path) -> Path:
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def _watch(job_id: str, stack: Any) -> Any:
    import celora
    from celora.cli.watch import show

    return show(celora.get(job_id), each=stack.tend)


def _cancel(job_id: str) -> None:
    import celora

    try:
        celora.cancel(job_id)
    except CeloraError:
        return  # the database is gone too: the next demo cancels it


@contextmanager
def _interruptible() -> Iterator[None]:
    """Each signal that ends a program unwinds it, so that everything is stopped."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in _SIGNALS}
    _handle(interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _handle(handler: Callable[..., None]) -> None:
    for number in _SIGNALS:
        signal.signal(number, handler)
