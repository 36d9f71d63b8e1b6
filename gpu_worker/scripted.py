"""`python -m gpu_worker.scripted`: a trainer that plays a script instead of training.

A real process that speaks gpu_worker/protocol.py, writes real checkpoints and resumes from them,
and does on demand what real trainers do in bad hours. Placement, fault and chaos tests use it; it
is taken only where CELORA_ALLOW_SCRIPTED is set. It imports the standard library alone (and its own
other half, scripted_work.py), to start fast.

The script is the query of the job's base model, `scripted:?steps=20&step_seconds=0.01`:

    steps=20 step_seconds=0.01 eval_seconds=0.01 load_seconds=0 save_seconds=0 tokens=100
    checkpoint_every      steps between checkpoints; default: the spec's checkpoint_every_steps
    fail_at nan_at oom_at the stage fails in that step; out of memory only above oom_above=1 rows
    hang_at exit_at       the step never ends; the process kills itself with signal 9
    eval_fail=0 eval_hang=0 eval_exit=0       the same in evaluation
    export_seconds=0.01 export_exit=0 export_differs=0      in an export
    word_seconds=0.01 chat_exit_at                          in a chat; killed in that turn
    fault_fences=0        faults only up to that fence (0: in every attempt)
    save_exit_at          killed in the middle of the checkpoint of that step
    ignore_stop=0         stop requests are read and ignored
    leave=0               the process leaves that many seconds after its stage, unasked
    fresh=0               asks to be replaced when the process has run anything before
    children=0            processes forked beside, as data loaders are
    memory_mib=0 noise=0  memory to hold; lines printed to standard output
"""

from __future__ import annotations

import json
import math
import os
import queue
import shutil
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import parse_qsl

from gpu_worker import scripted_work
from gpu_worker.scripted_work import Ended, digest

Json = dict[str, Any]

DEFAULTS: dict[str, float] = {
    "steps": 20,
    "step_seconds": 0.01,
    "eval_seconds": 0.01,
    "export_seconds": 0.01,
    "word_seconds": 0.01,
    "load_seconds": 0,
    "save_seconds": 0,
    "tokens": 100,
    "oom_above": 1,
}
_FLUSH_SECONDS = 0.1


class Trainer:
    """The process: commands in, messages out, and what it remembers between two stages."""

    def __init__(self, message_fd: int) -> None:
        self._fd = message_fd
        self.commands: queue.Queue[Json] = queue.Queue()
        self.turns: queue.Queue[Json] = queue.Queue()
        self.stop: str | None = None
        self.base: str | None = None  # what is "loaded"
        self.used = False
        self.ballast = b""

    def send(self, **message: Any) -> None:
        data = memoryview(json.dumps(message).encode() + b"\n")
        while data:
            data = data[os.write(self._fd, data) :]

    def read_commands(self) -> None:
        """Runs in a thread; the end of standard input means that nobody needs us any more."""
        for line in sys.stdin.buffer:
            command = json.loads(line)
            if command["type"] == "stop":
                self.stop = command["reason"]
            elif command["type"] == "turn":
                self.turns.put(command)
            else:
                command["received_at"] = time.time()
                # Here, not where the command is taken up: a stop that follows must not be wiped.
                self.stop, self.turns = None, queue.Queue()
                self.commands.put(command)
        os._exit(0)

    def serve(self) -> None:
        threading.Thread(target=self.read_commands, daemon=True).start()
        versions = {"python": sys.version.split()[0], "scripted": "1"}
        self.send(type="ready", pid=os.getpid(), versions=versions, device="scripted")
        while (command := self.commands.get())["type"] == "run":
            play = Play(self, command)
            try:
                play.stage()
            except Ended as ended:
                play.flush()
                self.send(**ended.message)
                if ended.message["type"] == "replace":
                    return
                if play.asked("leave"):
                    time.sleep(play.asked("leave"))
                    return


class Play:
    """One stage of one attempt, as the script says."""

    def __init__(self, trainer: Trainer, run: Json) -> None:
        self.trainer = trainer
        self.run = run
        self.output = Path(run["output_path"])
        query = str(run["spec"]["base_model"]).partition("?")[2]
        self.script = DEFAULTS | {name: float(value) for name, value in parse_qsl(query)}
        self.points: list[Json] = []
        self.step = 0
        self.tokens = 0
        self.flushed = time.monotonic()

    def asked(self, name: str) -> float:
        return self.script.get(name, 0)

    def faulty(self) -> bool:
        return not self.asked("fault_fences") or self.run["fence"] <= self.asked("fault_fences")

    def stage(self) -> NoReturn:
        match self.run["stage"]:
            case "train":
                self.train()
            case "export":
                scripted_work.export(self)
            case "generate":
                scripted_work.chat(self, self.trainer.turns)
        self.evaluate()

    def train(self) -> NoReturn:
        self.load()
        self.resume()
        total = int(self.script["steps"])
        started = time.monotonic()
        self.trainer.send(
            type="started",
            start_step=self.step,
            total_steps=total,
            trainable_parameters=1,
            total_parameters=1,
            precision="fp32",
            attention="none",
            optimizer="none",
        )
        every = int(self.asked("checkpoint_every") or self.run["spec"]["checkpoint_every_steps"])
        for line in range(int(self.asked("noise"))):
            print(f"noise {line}", flush=True)  # noqa: T201 (libraries print; this plays one)
        while self.step < total:
            self.one_step(total)
            if self.step % every == 0 and self.step < total:
                self.checkpoint()
            self.stop_if_asked()
        adapter = self.save_adapter()
        raise Ended(
            type="trained",
            path=str(adapter),
            kind="adapter",
            size_bytes=(adapter / "adapter_model.safetensors").stat().st_size,
            digest=digest(adapter / "adapter_model.safetensors"),
            step=self.step,
            trained_tokens=self.tokens,
            result={
                "train_loss": self.loss(),
                "train_seconds": time.monotonic() - started,
                "command_received": self.run["received_at"],
            },
        )

    def load(self) -> None:
        trainer, base = self.trainer, self.run["base_name"]
        if trainer.used and self.asked("fresh"):
            raise Ended(type="replace", why="the script wants a fresh process")
        warm = trainer.base == base
        if not warm:
            self.activity("loading the base model")
            time.sleep(self.script["load_seconds"])
            trainer.ballast = bytes(int(self.asked("memory_mib") * 1024**2))
        trainer.base, trainer.used = base, True
        for _ in range(int(self.asked("children"))):
            if os.fork() == 0:
                time.sleep(3600)
                os._exit(0)
        trainer.send(type="base_checked", warm=warm, differences=[], seconds=0.0)

    def resume(self) -> None:
        folder = self.run.get("resume_from")
        if folder is None:
            return
        try:
            state = json.loads((Path(folder) / "state.json").read_text())
        except (OSError, ValueError) as error:
            raise self.failed(
                "training_failed", f"the checkpoint cannot be read: {error}"
            ) from None
        self.step, self.tokens = state["step"], state["trained_tokens"]

    def one_step(self, total: int) -> None:
        at = self.step + 1
        if self.faulty():
            self.play_fault(at)
        time.sleep(self.script["step_seconds"])
        self.step = at
        self.tokens += int(self.script["tokens"])
        seconds = self.script["step_seconds"]
        speed = self.script["tokens"] / max(seconds, 1e-6)
        values = {"train_loss": self.loss(), "learning_rate": 1e-4, "tokens_per_second": speed}
        values["step_seconds"] = seconds
        self.points += [{"name": n, "step": at, "value": v} for n, v in values.items()]
        if time.monotonic() - self.flushed > _FLUSH_SECONDS or at == total:
            self.flush()

    def play_fault(self, at: int) -> None:
        if at == self.asked("exit_at"):
            os.kill(os.getpid(), signal.SIGKILL)
        if at == self.asked("hang_at"):
            self.flush()
            time.sleep(86_400)
        if at == self.asked("fail_at"):
            raise self.failed("training_failed", "the script fails here")
        if at == self.asked("nan_at"):
            raise self.failed("non_finite_loss", "the loss is nan", where=f"step {at}")
        if at == self.asked("oom_at") and self.run["batch_size"] > self.script["oom_above"]:
            raise self.failed("out_of_memory", "out of memory", out_of_memory=True)

    def failed(
        self, code: str, what: str, *, where: str | None = None, out_of_memory: bool = False
    ) -> Ended:
        error = {"code": code, "message": what, "where": where, "remedy": None}
        return Ended(type="failed", error=error, step=self.step, out_of_memory=out_of_memory)

    def loss(self) -> float:
        return 0.1 + 4 * math.exp(-self.step / 50)

    def flush(self) -> None:
        self.flushed = time.monotonic()
        if not self.points:
            return
        points, self.points = self.points, []
        self.trainer.send(
            type="metrics",
            points=points,
            step=self.step,
            epoch=self.step / self.script["steps"],
            trained_tokens=self.tokens,
        )

    def activity(self, what: str, done: int | None = None, total: int | None = None) -> None:
        self.trainer.send(type="activity", what=what, done=done, total=total)

    def checkpoint(self) -> None:
        self.flush()
        self.activity("writing a checkpoint")
        final = self.output / "checkpoints" / f"step-{self.step}"
        staging = final.with_name(final.name + ".tmp")
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        state = json.dumps({"step": self.step, "trained_tokens": self.tokens}).encode()
        _write_synced(staging / "state.json", state)
        if self.faulty() and self.step == self.asked("save_exit_at"):
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(self.script["save_seconds"])
        shutil.rmtree(final, ignore_errors=True)
        staging.rename(final)
        self.trainer.send(
            type="checkpoint_saved",
            step=self.step,
            path=str(final),
            size_bytes=len(state),
            trained_tokens=self.tokens,
            metrics={"train_loss": self.loss()},
        )

    def stop_if_asked(self) -> None:
        reason = self.trainer.stop
        if reason is None or self.asked("ignore_stop"):
            return
        saved = None
        if reason != "cancel" and self.step:
            self.checkpoint()
            saved = self.step
        raise Ended(type="stopped", reason=reason, step=self.step, checkpoint_step=saved)

    def save_adapter(self) -> Path:
        final = self.output / "adapter"
        staging = final.with_name("adapter.tmp")
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        # An empty but valid safetensors file: a header of length 2, and "{}" for no tensor.
        content = (2).to_bytes(8, "little") + b"{}"
        _write_synced(staging / "adapter_model.safetensors", content)
        _write_synced(staging / "adapter_config.json", json.dumps({"steps": self.step}).encode())
        shutil.rmtree(final, ignore_errors=True)
        staging.rename(final)
        return final

    def evaluate(self) -> NoReturn:
        self.load()
        adapter = self.run.get("adapter_path") or str(self.output / "adapter")
        if not (Path(adapter) / "adapter_config.json").exists():
            raise self.failed("training_failed", f"there is no adapter at {adapter}")
        self.activity("evaluating", 0, 2)
        self.wait(self.script["eval_seconds"])
        if self.faulty():
            self.play_evaluation_fault()
        self.stop_if_asked()
        known = self.run.get("base_evaluation")
        raise Ended(
            type="evaluated",
            base=known or _evaluation(loss=4.0, right=0.05, answer="no idea"),
            tuned=_evaluation(loss=0.5, right=0.95, answer="42"),
            base_cached=known is not None,
            samples=[
                {
                    "prompt": "6 × 7",
                    "expected": "42",
                    "base_answer": "no idea",
                    "tuned_answer": "42",
                }
            ],
        )

    def wait(self, seconds: float) -> None:
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            self.stop_if_asked()
            time.sleep(min(0.02, max(0.0, ends - time.monotonic())))

    def play_evaluation_fault(self) -> None:
        if self.asked("eval_exit"):
            os.kill(os.getpid(), signal.SIGKILL)
        if self.asked("eval_hang"):
            time.sleep(86_400)
        if self.asked("eval_fail"):
            raise self.failed("training_failed", "the script fails the evaluation")


def _evaluation(*, loss: float, right: float, answer: str) -> Json:
    return {
        "rows": 1,
        "generated_rows": 1,
        "loss": loss,
        "perplexity": math.exp(loss),
        "token_accuracy": right,
        "exact_match": right,
        "bleu": 100 * right,
        "rouge_l": right,
        "seconds": 0.01,
        "answers": [answer],
    }


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def main() -> None:
    # As the real trainer: a signal meant for the worker must not tear a checkpoint.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with suppress(BrokenPipeError):
        Trainer(int(os.environ["CELORA_MESSAGE_FD"])).serve()
    sys.stdout.flush()
    os._exit(0)  # the reading thread holds standard input: an ordinary exit aborts over its lock


if __name__ == "__main__":
    main()
