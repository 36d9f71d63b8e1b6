"""The tenants and their jobs: what they submit, and what they do to it afterwards.

Most jobs play a script, some of them with faults of their own; a few train a tiny base for real.
Every promise that is given goes into the ledger.
"""

from __future__ import annotations

import json
import random
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

from amqp.exceptions import AMQPError
from celery import Celery
from kombu import Connection
from kombu.exceptions import OperationalError

import celora
from models.errors import StateError, UnavailableError
from models.states import JobState
from tests.chaos.ledger import Entry, Ledger

T = TypeVar("T")

# Weight, jobs that may run at once, and of each of its users.
TENANTS: dict[str, tuple[float, int | None, int | None]] = {
    "anchor": (1, None, None),
    "birch": (2, 3, None),
    "cedar": (1, None, 1),
    "delta": (1, None, None),
}

# What a job plays; "faults" are up to its second fence, so that it gets through in the end.
_SCRIPTS = (
    "steps=120&step_seconds=0.03&checkpoint_every=10",
    "steps=60&step_seconds=0.02&checkpoint_every=20&children=1",
    "steps=200&step_seconds=0.02&checkpoint_every=15&noise=3",
    "steps=80&step_seconds=0.03&checkpoint_every=10&save_seconds=0.15",
    "steps=30&step_seconds=0.01&checkpoint_every=7&eval_seconds=1",
    "steps=100&step_seconds=0.03&checkpoint_every=20&exit_at=33&fault_fences=2",
    "steps=60&step_seconds=0.02&checkpoint_every=20&save_exit_at=40&fault_fences=2",
    "steps=40&step_seconds=0.02&checkpoint_every=10&eval_exit=1&fault_fences=2",
    "steps=40&step_seconds=0.02&checkpoint_every=10&fresh=1",
    "steps=50&step_seconds=0.02&checkpoint_every=10&oom_at=20&oom_above=1&fault_fences=3",
    "steps=150&step_seconds=0.04&checkpoint_every=10&memory_mib=20",
)
_FAILING = (
    "steps=40&step_seconds=0.02&checkpoint_every=10&fail_at=25",
    "steps=40&step_seconds=0.02&checkpoint_every=10&nan_at=15",
    "steps=10&step_seconds=0.02&eval_fail=1",
)


@dataclass(order=True)
class _Act:
    due: float
    what: str = field(compare=False)
    entry: Entry = field(compare=False)


class Workload:
    """One thread submits and acts; a refusal for want of a server is tried again until it works."""

    def __init__(
        self, ledger: Ledger, rng: random.Random, broker_url: str, *, jobs: int, real: int
    ) -> None:
        self._ledger, self._rng, self._broker_url = ledger, rng, broker_url
        # Spread over the run; the first two are there from the beginning.
        trains = set(range(0, jobs, max(1, jobs // real))) if real else set()
        self._left = deque("real" if number in trains else "scripted" for number in range(jobs))
        self._acts: list[_Act] = []
        self._fields: dict[str, Any] = {}
        self._client = Celery("chaos", broker=broker_url)
        self.submitted = 0
        self.acts: dict[str, int] = {}

    def train_on(self, folder: Path) -> None:
        """Make the tiny base and the rows that the real jobs use."""
        from gpu_worker.trainer.tiny_base import random_base

        lines = (json.dumps({"prompt": f"say {n}", "completion": f"number {n}"}) for n in range(99))
        rows = folder / "rows.jsonl"
        rows.write_text("\n".join(lines))
        self._fields = {
            "base_model": str(random_base(folder / "tiny-llama")),
            "dataset": str(rows),
            "max_steps": 40,
            "max_sequence_length": 64,
            "batch_size": 2,
            "gradient_accumulation": 1,
            "checkpoint_every_steps": 5,
            "eval_generate_rows": 0,
        }

    @property
    def left(self) -> int:
        return len(self._left)

    def submit_next(self) -> None:
        """Raises UnavailableError; the job is the next one still then."""
        rng, number = self._rng, self.submitted
        fields, entry = self._draw(self._left[0], number)
        try:
            if entry.over_broker:
                self._send(entry, fields)
            else:
                self._put(entry, fields)
        finally:
            self._ledger.write()
        self._left.popleft()
        self.submitted += 1
        self._plan(entry, rng)

    def _draw(self, kind: str, number: int) -> tuple[dict[str, Any], Entry]:
        rng = self._rng
        entry = Entry(str(uuid4()), rng.choice(list(TENANTS)), "completed")
        entry.over_broker = number % 7 == 3
        if kind == "real":
            fields = dict(self._fields)
        else:
            fails = number % 9 == 5
            script = rng.choice(_FAILING if fails else _SCRIPTS)
            entry.expected = "failed" if fails else "completed"
            fields = {"base_model": f"scripted:?{script}", "dataset": "none", "batch_size": 4}
        fields |= {"priority": rng.randrange(4), "evaluate": rng.random() < 0.8}
        if "eval_" in fields["base_model"]:
            fields["evaluate"] = True
        fields |= {"urgent": number % 8 == 6, "preemptible": number % 3 == 0}
        if number % 10 == 9 and (first := self._predecessor(entry.tenant)):
            fields["after"] = first
        return fields, entry

    def _predecessor(self, tenant: str) -> str | None:
        """A job that will complete, as nobody cancels it."""
        acted = {act.entry.key for act in self._acts if act.what == "cancel"}
        for entry in reversed(self._ledger.entries):
            sure = entry.expected == "completed" and not entry.cancelled
            if entry.tenant == tenant and entry.job_id and sure and entry.key not in acted:
                return entry.job_id
        return None

    def _put(self, entry: Entry, fields: dict[str, Any]) -> None:
        """A caller that gets no answer asks again, with the same key."""

        def put() -> str:
            user = f"user-{self._rng.randrange(2)}"
            return celora.submit(
                tenant=entry.tenant, user=user, idempotency_key=entry.key, **fields
            ).id

        entry.job_id = _insist(put)
        self._ledger.add(entry)

    def _send(self, entry: Entry, fields: dict[str, Any]) -> None:
        """Acknowledged when the broker has confirmed the message; the task's id is the key."""
        options = {"confirm_publish": True, "read_timeout": 5, "write_timeout": 5, "max_retries": 0}

        def send() -> None:
            with Connection(
                self._broker_url, connect_timeout=4, transport_options=options
            ) as connection:
                self._client.send_task(
                    "celora.submit",
                    [fields],
                    {"tenant": entry.tenant, "user": "remote"},
                    task_id=entry.key,
                    queue="celora.cpu",
                    connection=connection,
                    retry=False,
                    confirm_timeout=5,
                    ignore_result=True,
                )

        _insist(send)
        self._ledger.add(entry)

    # What tenants do to their jobs

    def _plan(self, entry: Entry, rng: random.Random) -> None:
        now, kind = time.monotonic(), self.submitted % 6
        if entry.job_id is None:
            return
        if kind == 1:
            self._acts.append(_Act(now + rng.uniform(0.5, 20), "cancel", entry))
        if kind in {2, 4}:
            paused = now + rng.uniform(1, 20)
            self._acts.append(_Act(paused, "pause", entry))
            self._acts.append(_Act(paused + rng.uniform(1, 8), "resume", entry))

    def act(self) -> None:
        """Do what is due. Raises UnavailableError; it is still due then."""
        for act in sorted(self._acts):
            if act.due > time.monotonic():
                return
            self._do(act)
            self._acts.remove(act)

    def _do(self, act: _Act) -> None:
        assert act.entry.job_id is not None
        calls: dict[str, Callable[[str], celora.Job]] = {
            "cancel": celora.cancel,
            "pause": celora.pause,
            "resume": celora.resume,
        }
        try:
            job = calls[act.what](act.entry.job_id)
        except StateError:
            return  # it was over
        if act.what == "cancel" and job.state not in {JobState.COMPLETED, JobState.FAILED}:
            act.entry.cancelled = True
            self._ledger.write()
        self.acts[act.what] = self.acts.get(act.what, 0) + 1

    def act_on_all(self) -> None:
        """At the end: what is still to be done, at once."""
        for act in self._acts:
            act.due = 0.0
        self.act()

    def close(self) -> None:
        self._client.pool.force_close_all()
        self._client.close()


def _insist(call: Callable[[], T]) -> T:
    """Until it is acknowledged: servers come and go."""
    while True:
        with suppress(UnavailableError, OperationalError, AMQPError, OSError):
            return call()
        time.sleep(0.5)
