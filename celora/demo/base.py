"""The demo's base model: made by a process of its own, kept for the next demo."""

from __future__ import annotations

import hashlib
import json
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from celora.demo.scene import Scene
from gpu_worker import tether
from models.errors import SetupError

_MAKER = "gpu_worker.trainer.tiny_base"
_RECIPE = (_MAKER, "gpu_worker.trainer.pretraining", "gpu_worker.smart_home")


def make_base(home: Path, scene: Scene) -> Path:
    """The folder of the pre-trained tiny base below `home`. Raises SetupError."""
    base = home / "bases" / f"tiny-{_recipe()}"
    if (base / "config.json").is_file():
        scene.say(f"made by an earlier demo: {base}")
        return base
    if find_spec("torch") is None:
        raise SetupError("torch is not installed", remedy="pip install 'celora[train]'")
    base.parent.mkdir(parents=True, exist_ok=True)
    log = home / "logs" / "tiny-base.log"
    with log.open("w") as errors, scene.progress("pre-training") as tell:
        process = subprocess.Popen(
            tether.command(_MAKER, "--out", str(base)),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        try:
            _follow(process, tell)
        finally:
            process.kill()
            code = process.wait()
            if process.stdout is not None:
                process.stdout.close()
    if code != 0:
        raise SetupError(
            f"making the base model ended with {code}: {log.read_text()[-500:].strip()}",
            where=str(log),
            remedy="read that log; `celora doctor` checks this machine",
        )
    scene.say(f"made {base}")
    return base


def _recipe() -> str:
    """A digest of what the base is made by: another version of it makes another folder."""
    digest = hashlib.sha256()
    for module in _RECIPE:
        spec = find_spec(module)
        if spec is not None and spec.origin is not None:
            digest.update(Path(spec.origin).read_bytes())
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
