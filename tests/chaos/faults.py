"""The faults: each picks its victim by chance, happens, and is proved to have happened."""

from __future__ import annotations

import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Protocol

import psutil

from models.errors import SetupError
from tests.chaos.pool import Pool
from tests.postgres_server import OwnPostgres

_PROOF_SECONDS = 15.0
_LEASE_AND_MORE = 9.0  # seconds; pool.SETTINGS has the lease


class Broker(Protocol):
    """A broker that can be taken away; each returns once that is so."""

    @property
    def kinds(self) -> tuple[str, ...]: ...

    def kill(self) -> str: ...
    def freeze(self) -> str: ...
    def restore(self) -> None: ...


class NotProvedError(Exception):
    """The fault did not happen, or cannot be told to have happened."""


@dataclass(frozen=True)
class Fault:
    kind: str
    began: float  # seconds since the run's start
    seconds: float  # until what was taken away was back, or the victim was gone
    proof: str


class Faults:
    """Several threads may inject; no two take the same victim."""

    def __init__(self, pool: Pool, postgres: OwnPostgres, broker: Broker) -> None:
        self._pool, self._postgres, self._broker = pool, postgres, broker
        self.began = 0.0  # of the run, on the monotonic clock
        self._lock = threading.Lock()
        self._victims: set[int] = set()
        self._servers = {"Postgres": threading.Lock(), "broker": threading.Lock()}
        self.done: list[Fault] = []
        self.kinds: dict[str, Callable[[random.Random], str]] = {
            "trainer killed": lambda rng: self._kill(rng, pool.trainers()),
            "trainer frozen": lambda rng: self._freeze(rng, pool.trainers(), (1, 4)),
            "pool child killed": lambda rng: self._kill(rng, pool.pool_children()),
            "pool child frozen past its lease": self._freeze_child,
            "worker frozen with its trainer": self._freeze_worker,
            "worker killed": lambda rng: self._kill(rng, pool.workers()),
            "worker told to stop": self._drain,
            "GPU launcher killed": lambda rng: self._kill(rng, pool.pids("gpu-worker")),
            "host killed": self._kill_host,
            "dispatcher killed": lambda rng: self._kill(rng, pool.pids("dispatcher")),
            "dispatcher frozen": lambda rng: self._freeze(rng, pool.pids("dispatcher"), (3, 9)),
            "cpu worker killed": lambda rng: self._kill(rng, pool.pids("cpu-worker")),
            "Postgres stopped at once": self._stop_postgres,
            "Postgres backend killed": self._kill_backend,
            "Postgres frozen": self._freeze_postgres,
        }
        broken = {"killed": broker.kill, "frozen": broker.freeze}
        for kind, way in zip(broker.kinds, broken.values(), strict=True):
            self.kinds[kind] = lambda rng, way=way: self._break_broker(rng, way)  # type: ignore[misc]  # a default argument

    def inject(self, kind: str, rng: random.Random) -> bool:
        """True when it happened; False when there is no victim, or no proof."""
        began = time.monotonic()
        try:
            proof = self.kinds[kind](rng)
        except (NotProvedError, psutil.NoSuchProcess):
            return False
        now = time.monotonic()
        with self._lock:
            self.done.append(Fault(kind, began - self.began, now - began, proof))
        return True

    # Processes

    def _kill(self, rng: random.Random, candidates: list[psutil.Process]) -> str:
        with self._victim(rng, candidates) as victim:
            victim.kill()
            _until(lambda: is_gone(victim), f"pid {victim.pid} is dead")
            return f"pid {victim.pid} is dead"

    def _freeze(
        self, rng: random.Random, candidates: list[psutil.Process], seconds: tuple[float, float]
    ) -> str:
        with self._victim(rng, candidates) as victim:
            return _freeze([victim], rng.uniform(*seconds))

    def _freeze_child(self, rng: random.Random) -> str:
        """Its trainer goes on: only the lease's watchdog could have stopped it."""
        with self._victim(rng, self._pool.pool_children()) as child:
            return _freeze([child], rng.uniform(_LEASE_AND_MORE - 2, _LEASE_AND_MORE))

    def _freeze_worker(self, rng: random.Random) -> str:
        """A suspended host: nothing there knows that its lease has run out."""
        with self._victim(rng, self._pool.working()) as worker:
            family = [worker, *worker.children(recursive=True)]
            return _freeze(family, rng.uniform(3, _LEASE_AND_MORE))

    def _kill_host(self, rng: random.Random) -> str:
        """A power cut: the launcher, its workers and their trainers at one blow."""
        with self._victim(rng, self._pool.pids("gpu-worker")) as launcher:
            family = [launcher, *launcher.children(recursive=True)]
            for process in family:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            _until(lambda: all(map(is_gone, family)), "all of them are dead")
            return f"{len(family)} processes from pid {launcher.pid} on are dead"

    def _drain(self, rng: random.Random) -> str:
        with self._victim(rng, self._pool.workers()) as worker:
            worker.terminate()
            _until(lambda: is_gone(worker), f"pid {worker.pid} has left", seconds=40)
            return f"pid {worker.pid} has left"

    @contextmanager
    def _victim(
        self, rng: random.Random, candidates: list[psutil.Process]
    ) -> Iterator[psutil.Process]:
        with self._lock:
            free = [one for one in candidates if one.pid not in self._victims]
            if not free:
                raise NotProvedError("nobody is there")
            victim = rng.choice(free)
            self._victims.add(victim.pid)
        try:
            yield victim
        finally:
            with self._lock:
                self._victims.discard(victim.pid)

    # Servers

    def _stop_postgres(self, rng: random.Random) -> str:
        with self._server("Postgres"):
            self._postgres.stop_at_once()
            refused = refusal(self._postgres.port)
            time.sleep(rng.choice((0.5, 2, 8)))
            self._start_postgres()
            return refused

    def _start_postgres(self) -> None:
        """Those that were killed hold on to its memory for a moment."""
        patience = time.monotonic() + _PROOF_SECONDS
        while True:
            try:
                self._postgres.start()
            except SetupError:
                if time.monotonic() > patience:
                    raise
                time.sleep(0.2)
            else:
                return

    def _kill_backend(self, rng: random.Random) -> str:
        """The server ends every session and recovers, as after any crash of one of its own."""
        with self._server("Postgres"):
            server = psutil.Process(self._postgres.pid)
            backends = [one for one in server.children() if "127.0.0.1(" in " ".join(one.cmdline())]
            return self._kill(rng, backends)

    def _freeze_postgres(self, rng: random.Random) -> str:
        with self._server("Postgres"):
            server = psutil.Process(self._postgres.pid)
            return _freeze([server, *server.children()], rng.choice((1, 3, 8)))

    def _break_broker(self, rng: random.Random, way: Callable[[], str]) -> str:
        with self._server("broker"):
            try:
                proof = way()
                time.sleep(rng.uniform(1, 6))
            finally:
                self._broker.restore()
            return proof

    @contextmanager
    def _server(self, name: str) -> Iterator[None]:
        if not self._servers[name].acquire(blocking=False):
            raise NotProvedError(f"the {name} is away already")
        try:
            yield
        finally:
            self._servers[name].release()


def is_gone(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def refusal(port: int) -> str:
    """Proof that nobody listens there."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=2).close()
    except ConnectionRefusedError:
        return f"connection refused at port {port}"
    raise NotProvedError(f"port {port} still answers")


def _freeze(family: list[psutil.Process], seconds: float) -> str:
    try:
        for process in family:
            with suppress(psutil.NoSuchProcess):
                process.suspend()
        first = family[0]
        _until(lambda: first.status() == psutil.STATUS_STOPPED, f"pid {first.pid} is stopped")
        time.sleep(seconds)
        if first.status() != psutil.STATUS_STOPPED:
            raise NotProvedError(f"pid {first.pid} was woken up")
    finally:
        for process in reversed(family):
            with suppress(psutil.NoSuchProcess):
                process.resume()
    return f"{len(family)} processes from pid {first.pid} on were stopped"


def _until(condition: Callable[[], bool], what: str, *, seconds: float = _PROOF_SECONDS) -> None:
    patience = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > patience:
            raise NotProvedError(f"not so: {what}")
        time.sleep(0.02)
