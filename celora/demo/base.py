"""The demo's base model: made by a process of its own, kept for the next demo."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from celora.demo.scene import Scene
from gpu_worker import tether
from models.errors import SetupError

_MAKER = "gpu_worker.trainer.tiny_base"


def make_base(home: Path, scene: Scene) -> Path:
    """The folder of the pre-trained tiny base below `home`. Raises SetupError."""
    base = home / "bases" / f"tiny-{_recipe()}"
    if (base / "config.json").is_file():
        scene.say(f"made by an earlier demo: {base}")
        return base
    if find_spec("torch") is None:
        raise SetupError("torch is not installed", remedy="pip install 'celora[train]'")
    staging = base.with_name(base.name + ".new")
    shutil.rmtree(staging, ignore_errors=True)
    staging.parent.mkdir(parents=True, exist_ok=True)
    log = home / "logs" / "tiny-base.log"
    with log.open("w") as errors, scene.progress("pre-training") as tell:
        process = subprocess.Popen(
            tether.command(_MAKER, "--out", str(staging)),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )
        try:
            _follow(process, tell)
        finally:
            process.kill()
            code = process.wait()
            if process.stdout is not None:
                process.stdout.close()
    if code != 0 or not (staging / "config.json").is_file():
        raise SetupError(
            f"making the base model ended with {code}: {log.read_text()[-500:].strip()}",
            where=str(log),
            remedy="read that log; `celora doctor` checks this machine",
        )
    staging.rename(base)
    scene.say(f"made {base}")
    return base


def _recipe() -> str:
    """A digest of what the base is made by: another version of it makes another folder."""
    spec = find_spec(_MAKER)
    sources = [spec.origin] if spec is not None and spec.origin else []
    task = find_spec("gpu_worker.smart_home")
    if task is not None and task.origin:
        sources.append(task.origin)
    digest = hashlib.sha256()
    for source in sources:
        digest.update(Path(source).read_bytes())
    return digest.hexdigest()[:12]


def _follow(process: subprocess.Popen[str], tell: Any) -> None:
    """Read its progress, JSON objects a line, until it ends."""
    assert process.stdout is not None  # noqa: S101 (narrows the type)
    for line in process.stdout:
        try:
            news = json.loads(line)
        except ValueError:
            continue  # a library that prints
        if isinstance(news, dict) and "step" in news and "total" in news:
            loss = news.get("loss")
            note = "" if loss is None else f"loss {loss:.3f}"
            tell(int(news["step"]), int(news["total"]), note)
    process.wait()
