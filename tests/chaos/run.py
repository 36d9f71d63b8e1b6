"""One run: servers of its own, Celora's processes, jobs and faults; then calm, and the evidence."""

from __future__ import annotations

import random
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from sqlalchemy import make_url

import celora
import migrations
from models.errors import UnavailableError
from tests import postgres_server
from tests.chaos import audit, checker, ledger
from tests.chaos.broker import broker
from tests.chaos.faults import Fault, Faults
from tests.chaos.pool import HOSTS, Pool
from tests.chaos.workload import TENANTS, Workload
from tests.environment import variables

Say = Callable[[str], None]

_START_SECONDS = 120.0
_TELL_SECONDS = 30.0
_GPUS = """
    SELECT count(*), CASE WHEN heartbeat_at < now() - interval '8 s' THEN 'silent' ELSE reported END
    FROM gpus GROUP BY 2 ORDER BY 2
"""
# Jobs are submitted ahead of the faults, so that those at the end still meet some.
_AHEAD = 0.3
_INJECTORS = 2


@dataclass(frozen=True)
class Plan:
    jobs: int
    real: int  # of them train for real
    faults: int
    seconds: float  # at most, for jobs and faults; the calm comes after
    seed: int
    slots: int = 2  # of each of the two hosts
    calm_seconds: float = 300  # that the jobs have to end after the last fault


@dataclass(frozen=True)
class Outcome:
    findings: checker.Findings
    faults: list[Fault]
    broker: str
    restarts: int  # of processes, as a service manager would
    acts: dict[str, int]  # of the jobs' owners
    attempts: dict[str, int]  # by outcome
    trainers: int  # that the witness saw
    fault_seconds: float
    calm_seconds: float
    logs: str


def run(plan: Plan, say: Say) -> Outcome:
    """Raises SetupError where the servers cannot be started."""
    with _folder() as folder:
        for name in ("postgres", "broker", "stack"):
            (folder / name).mkdir(mode=0o755)
        with (
            postgres_server.own_server(folder / "postgres") as postgres,
            broker(folder / "broker") as queues,
        ):
            say(f"broker       {queues.what}")
            environment = {
                "CELORA_DATABASE_URL": postgres.create("chaos"),
                "CELORA_BROKER_URL": queues.url,
                "CELORA_HOME": str(folder / "stack" / "home"),
                "CELORA_ALLOW_SCRIPTED": "true",
            }
            with variables(**environment):
                pool = Pool(folder / "stack", environment, slots=plan.slots)
                faults = Faults(pool, postgres, queues)
                work = Workload(
                    ledger.Ledger(folder / "ledger.json"),
                    random.Random(plan.seed),
                    queues.url,
                    jobs=plan.jobs,
                    real=plan.real,
                )
                work.train_on(folder)
                one = _Run(plan, folder, pool=pool, faults=faults, work=work, say=say)
                return one.outcome(queues.what)


@contextmanager
def _folder() -> Iterator[Path]:
    """A short path that others may enter: root's Postgres runs as another user."""
    folder = Path(tempfile.mkdtemp(prefix="celora_chaos_"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class _Run:
    def __init__(
        self, plan: Plan, folder: Path, *, pool: Pool, faults: Faults, work: Workload, say: Say
    ) -> None:
        self.plan, self.folder, self.pool = plan, folder, pool
        self.faults, self.work, self.say = faults, work, say
        self.url = (
            make_url(pool.stack.environment["CELORA_DATABASE_URL"])
            .set(drivername="postgresql")
            .render_as_string(hide_password=False)
        )
        self.lives = folder / "lives.jsonl"
        self.over = threading.Event()
        self.began = 0.0

    def outcome(self, broker_words: str) -> Outcome:
        migrations.upgrade(self.pool.stack.environment["CELORA_DATABASE_URL"])
        audit.install(self.url)
        self._limit_tenants()
        try:
            self.pool.start(self.lives)
            self._wait("all GPU slots are free", self._all_free, _START_SECONDS)
            fault_seconds = self._storm()
            calm_seconds = self._calm()
            attempts = dict(
                self._ask("SELECT coalesce(outcome, 'live'), count(*) FROM attempts GROUP BY 1")
            )
            stuck = self._stuck()
        finally:
            self.over.set()
            self.work.close()
            self.pool.close()
        lives = checker.read_lives(self.lives)
        findings = checker.check(self.url, ledger.read(self.folder / "ledger.json"), lives)
        return Outcome(
            findings,
            self.faults.done,
            broker_words,
            self.pool.restarts,
            self.work.acts,
            attempts,
            len(lives),
            fault_seconds,
            calm_seconds,
            stuck + self.pool.logs(),
        )

    def _limit_tenants(self) -> None:
        with psycopg.connect(self.url) as connection:
            for name, limits in TENANTS.items():
                connection.execute(
                    "INSERT INTO tenants (name, weight, max_running_jobs, user_max_running_jobs)"
                    " VALUES (%s, %s, %s, %s)",
                    (name, *limits),
                )

    def _storm(self) -> float:
        """Jobs and faults, until enough faults have happened or the time is up."""
        self.began = self.faults.began = time.monotonic()
        with ThreadPoolExecutor(1 + _INJECTORS) as threads:
            at_work = [threads.submit(self._work)]
            for number in range(_INJECTORS):
                rng = random.Random(f"{self.plan.seed} {number}")
                at_work.append(threads.submit(self._inject, rng))
            while not all(one.done() for one in at_work):
                self.pool.tend()
                time.sleep(0.1)
        for one in at_work:
            one.result()
        return time.monotonic() - self.began

    def _progress(self) -> float:
        by_faults = len(self.faults.done) / max(1, self.plan.faults)
        return max(by_faults, (time.monotonic() - self.began) / self.plan.seconds)

    def _work(self) -> None:
        while self.work.left or self._progress() < 1:
            try:
                if self.work.left and self.work.submitted < self.plan.jobs * (
                    _AHEAD + self._progress()
                ):
                    self.work.submit_next()
                self.work.act()
            except UnavailableError:
                pass
            self.over.wait(0.05)

    def _inject(self, rng: random.Random) -> None:
        deck: list[str] = []
        self.over.wait(rng.uniform(2, 4))
        while self._progress() < 1 and not self.over.is_set():
            if not deck:
                # Trainers are at work a part of the time only: tried twice as often.
                deck = [*self.faults.kinds, "trainer killed", "trainer frozen"]
                rng.shuffle(deck)
            kind = deck.pop()
            if self.faults.inject(kind, rng):
                fault = self.faults.done[-1]
                self.say(f"{fault.began:6.1f} s     {kind}: {fault.proof}")
                self.over.wait(rng.uniform(0.3, 2.5))

    def _calm(self) -> float:
        """No more faults: every job has to come to its end by itself."""
        began = time.monotonic()
        self.say(f"{began - self.began:6.1f} s     no more faults; {self._left()} jobs to go")
        self._wait("the owners' last acts", self._last_acts, 60)
        tell_at = began + _TELL_SECONDS

        def ended() -> bool:
            nonlocal tell_at
            left = self._left()
            if left and time.monotonic() > tell_at:
                tell_at += _TELL_SECONDS
                gpus = ", ".join(f"{row[0]} {row[1]}" for row in self._ask(_GPUS))
                self.say(f"{time.monotonic() - self.began:6.1f} s     {left} to go; GPUs: {gpus}")
            return left == 0

        self._wait("every job has ended", ended, self.plan.calm_seconds, fail=False)
        return time.monotonic() - began

    def _stuck(self) -> str:
        """What the tables say of jobs that have not ended."""
        ended = "('completed', 'failed', 'cancelled')"
        stuck = f"(SELECT id FROM jobs WHERE state NOT IN {ended})"  # noqa: S608 (ours)
        parts = [
            f"{row[0]}"
            for query in (
                f"SELECT to_jsonb(jobs) FROM jobs WHERE id IN {stuck}",  # noqa: S608
                f"SELECT to_jsonb(attempts) FROM attempts WHERE job_id IN {stuck}",  # noqa: S608
                f"SELECT to_jsonb(outbox) FROM outbox WHERE job_id IN {stuck}",  # noqa: S608
                f"SELECT to_jsonb(events) FROM events WHERE job_id IN {stuck} ORDER BY id",  # noqa: S608
                "SELECT to_jsonb(gpus) FROM gpus",
            )
            for row in self._ask(query)
        ]
        return "\n".join([*parts, ""])

    def _last_acts(self) -> bool:
        try:
            self.work.act_on_all()
        except UnavailableError:
            return False
        return True

    def _left(self) -> int:
        """Promised jobs that have not ended; those that are paused are resumed."""
        for (job_id,) in self._ask("SELECT id FROM jobs WHERE state = 'paused'"):
            celora.resume(job_id)
        ended = "SELECT count(*) FROM jobs WHERE state IN ('completed', 'failed', 'cancelled')"
        ((count,),) = self._ask(ended)
        return self.work.submitted - int(count)

    def _all_free(self) -> bool:
        ((count,),) = self._ask("SELECT count(*) FROM gpus WHERE reported = 'idle'")
        return int(count) == self.plan.slots * len(HOSTS)

    def _ask(self, query: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.url) as connection:
            return connection.execute(query.encode()).fetchall()

    def _wait(
        self, what: str, condition: Callable[[], bool], seconds: float, *, fail: bool = True
    ) -> None:
        patience = time.monotonic() + seconds
        while not condition():
            self.pool.tend()
            if time.monotonic() > patience:
                if fail:
                    raise AssertionError(f"not within {seconds:g} s: {what}\n{self.pool.logs()}")
                return
            time.sleep(0.2)
