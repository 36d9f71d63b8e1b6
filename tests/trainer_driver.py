"""Talk to a real trainer process over real pipes, and make prepared data for it."""

from __future__ import annotations

import os
import queue
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

import pyarrow as pa

from gpu_worker.protocol import (
    MESSAGE_FD_VARIABLE,
    BaseChecked,
    CheckpointSaved,
    Evaluated,
    Exit,
    Failed,
    Metrics,
    Ready,
    Replace,
    Run,
    Stop,
    Stopped,
    Trained,
    Turn,
    parse_message,
)
from models.spec import JobSpec

M = TypeVar("M")
FINAL = (Trained, Evaluated, Stopped, Failed, Replace)
_TIMEOUT = 120.0  # seconds for any one answer; a wait ends with it, never a sleep


class Trainer:
    """One trainer process. Messages are kept in `seen`, in order of arrival."""

    def __init__(
        self, command: Sequence[str] = (), environment: dict[str, str] | None = None
    ) -> None:
        read, write = os.pipe()
        self._log: list[bytes] = []
        self.process = subprocess.Popen(
            [sys.executable, *(command or ("-m", "gpu_worker.trainer"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=[write],
            env=os.environ
            | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
            | (environment or {})
            | {MESSAGE_FD_VARIABLE: str(write)},
        )
        os.close(write)
        self.seen: list[Any] = []
        self._arrived: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._read_messages, args=(read,), daemon=True),
            threading.Thread(target=self._read_log, daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Self:
        self.wait_for(Ready)
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def send(self, command: Run | Stop | Turn | Exit) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(command.encode())
        self.process.stdin.flush()

    def close_input(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()

    def run(self, command: Run) -> Any:
        """Send a run and return its final message."""
        self.send(command)
        return self.wait_for(*FINAL)

    def wait_for(self, *types: type[Any], matching: Callable[[Any], bool] | None = None) -> Any:
        """The next message of one of `types`; everything before it goes to `seen` as well."""
        deadline = time.monotonic() + _TIMEOUT
        while True:
            try:
                message = self._arrived.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"no {types} in time; {self.tail()}") from None
            if message is None:
                raise AssertionError(f"the trainer left before {types}; {self.tail()}")
            self.seen.append(message)
            if isinstance(message, types) and (matching is None or matching(message)):
                return message

    def wait_for_end(self) -> None:
        """Take in what a process that is gone had still said."""
        while (message := self._arrived.get(timeout=_TIMEOUT)) is not None:
            self.seen.append(message)

    def all(self, kind: type[M]) -> list[M]:
        return [message for message in self.seen if isinstance(message, kind)]

    def forget(self) -> None:
        self.seen.clear()

    def values(self, name: str) -> dict[int, float]:
        """A metric by step, over everything seen."""
        points = [p for message in self.all(Metrics) for p in message.points]
        return {p.step: p.value for p in points if p.name == name}

    def checked(self) -> BaseChecked:
        return self.all(BaseChecked)[-1]

    def checkpoints(self) -> list[CheckpointSaved]:
        return self.all(CheckpointSaved)

    def rss_bytes(self) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmRSS"))
        return int(line.split()[1]) * 1024

    def tail(self) -> str:
        return b"".join(self._log[-40:]).decode(errors="replace") + f"\n{self.seen[-5:]}"

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        for thread in self._threads:
            thread.join(timeout=10)
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None and not stream.closed:
                stream.close()

    def _read_messages(self, descriptor: int) -> None:
        with os.fdopen(descriptor, "rb") as stream:
            for line in stream:
                self._arrived.put(parse_message(line))
        self._arrived.put(None)

    def _read_log(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._log.append(line)


def prepared_data(
    folder: Path,
    *,
    rows: int = 64,
    eval_rows: int = 8,
    vocab: int = 512,
    length: tuple[int, int] = (8, 40),
    packed_to: int | None = None,
    seed: int = 0,
) -> Path:
    """train.arrow and eval.arrow as preprocessing writes them: half of each row is the answer."""
    folder.mkdir(parents=True, exist_ok=True)
    source = random.Random(seed)
    train = [_row(source, vocab, length) for _ in range(rows)]
    held_out = [_row(source, vocab, length) for _ in range(eval_rows)]
    columns = _packed(train, packed_to) if packed_to else _columns(train)
    _write(folder / "train.arrow", columns)
    prompts = [[t for t, label in zip(*row, strict=True) if label == -100] for row in held_out]
    table = _columns(held_out)
    table["prompt_ids"] = pa.array(prompts, pa.list_(pa.int32()))
    table["prompt"] = pa.array([f"prompt {i}" for i in range(eval_rows)])
    table["answer"] = pa.array([f"answer {i}" for i in range(eval_rows)])
    _write(folder / "eval.arrow", table)
    return folder


def make_run(
    base: Path, prepared: Path, output: Path, *, job_id: str = "ftjob-test", **fields: Any
) -> Run:
    """A train command; keyword arguments are fields of the JobSpec, or else of Run."""
    of_run = {k: fields.pop(k) for k in list(fields) if k not in JobSpec.model_fields}
    defaults = {
        "base_model": "tiny/base",
        "dataset": "test.jsonl",
        "batch_size": 2,
        "gradient_accumulation": 2,
        "max_steps": 4,
        "rank": 4,
        "log_every_steps": 2,
        "evaluate": False,
        "learning_rate": 1e-3,
    }
    spec = JobSpec.model_validate(defaults | fields)
    arguments = {
        "job_id": job_id,
        "fence": 1,
        "stage": "train",
        "spec": spec.model_dump(mode="json"),
        "batch_size": spec.batch_size,
        "gradient_accumulation": spec.gradient_accumulation,
        "base_path": str(base),
        "base_name": "tiny/base",
        "base_revision": "0" * 40,
        "prepared_path": str(prepared),
        "output_path": str(output),
        "facts": {"rows_train": 64, "data_digest": "sha256:feed"},
    }
    return Run.model_validate(arguments | of_run)


def moment_types(checkpoint: Path) -> set[Any]:
    """In what types bitsandbytes' optimizer has saved the moments of all parameters."""
    import torch

    saved = torch.load(checkpoint / "optimizer.pt", weights_only=True)["state"]
    states = [state["__bnb_optimizer_quant_state__"] for state in saved.values()]
    assert states
    return {state[name].dtype for state in states for name in ("state1", "state2")}


def trained(message: Any) -> Trained:
    assert isinstance(message, Trained), message
    return message


def _row(source: random.Random, vocab: int, length: tuple[int, int]) -> tuple[list[int], list[int]]:
    ids = [source.randrange(3, vocab) for _ in range(source.randint(*length))]
    half = len(ids) // 2
    return ids, [-100] * half + ids[half:]


def _columns(rows: list[tuple[list[int], list[int]]]) -> dict[str, pa.Array]:
    kind = pa.list_(pa.int32())
    return {
        "input_ids": pa.array([ids for ids, _ in rows], kind),
        "labels": pa.array([labels for _, labels in rows], kind),
    }


def _packed(rows: list[tuple[list[int], list[int]]], size: int) -> dict[str, pa.Array]:
    """Rows in order, each pack as full as it gets."""
    packs = list(_packs(rows, size))
    rows = [
        ([t for ids, _ in p for t in ids], [t for _, labels in p for t in labels]) for p in packs
    ]
    columns = _columns(rows)
    lengths = [[len(ids) for ids, _ in pack] for pack in packs]
    return columns | {"seq_lengths": pa.array(lengths, pa.list_(pa.int32()))}


def _packs(
    rows: list[tuple[list[int], list[int]]], size: int
) -> Iterator[list[tuple[list[int], list[int]]]]:
    pack: list[tuple[list[int], list[int]]] = []
    for row in rows:
        if pack and sum(len(ids) for ids, _ in pack) + len(row[0]) > size:
            yield pack
            pack = []
        pack.append(row)
    yield pack


def _write(path: Path, columns: dict[str, pa.Array]) -> None:
    table = pa.table(columns)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table, max_chunksize=16)
