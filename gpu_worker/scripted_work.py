"""What the scripted trainer plays on a job that has been trained: exports and chats."""

from __future__ import annotations

import hashlib
import os
import queue
import shutil
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from gpu_worker.scripted import Play


class Ended(Exception):  # noqa: N818 (no error: how a stage leaves its loop, with its last message)
    def __init__(self, **message: Any) -> None:
        super().__init__(message["type"])
        self.message = message


def export(play: Play) -> NoReturn:
    """A copy of the adapter, with a report that compares nothing."""
    play.load()
    adapter = Path(play.run["adapter_path"])
    if not (adapter / "adapter_config.json").exists():
        raise play.failed("training_failed", f"there is no adapter at {adapter}")
    play.activity("merging")
    play.wait(play.script["export_seconds"])
    if play.faulty() and play.asked("export_exit"):
        os.kill(os.getpid(), signal.SIGKILL)
    if play.faulty() and play.asked("export_differs"):
        raise play.failed("export_differs", "KL 3 nats; allowed: KL 0.01 nats")
    final = play.output / "export"
    shutil.rmtree(final, ignore_errors=True)
    shutil.copytree(adapter, final)
    raise Ended(
        type="exported",
        path=str(final),
        size_bytes=sum(file.stat().st_size for file in final.iterdir()),
        digest=digest(final / "adapter_model.safetensors"),
        report={
            "format": play.run["work"]["format"],
            "source": play.run["work"]["reference"],
            "rank": play.run["spec"]["rank"],
            "said": "nothing was compared: this is a script",
            "concerns": [],
        },
    )


def chat(play: Play, turns: queue.Queue[dict[str, Any]]) -> NoReturn:
    """Says who was asked, and repeats what."""
    play.load()
    play.activity("waiting for a question")
    while True:
        try:
            turn = turns.get(timeout=0.02)
        except queue.Empty:
            play.stop_if_asked()
            continue
        if play.faulty() and turn["position"] == play.asked("chat_exit_at"):
            os.kill(os.getpid(), signal.SIGKILL)
        words = (turn["subject"], "says", turn["prompt"])
        for count, word in enumerate(words, start=1):
            play.wait(play.script["word_seconds"])
            play.trainer.send(
                type="answer_part",
                position=turn["position"],
                text=word if count == len(words) else f"{word} ",
                tokens=count,
                whole=count == len(words),
            )


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
