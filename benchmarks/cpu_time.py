"""CPU time by process: who of the pool, Postgres and RabbitMQ has used how much."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import psutil
from sqlalchemy import make_url, text

from benchmarks.pool import Pool
from models.session import transaction
from models.settings import settings

Usage = dict[str, float]


def usage(pool: Pool) -> Usage:
    """CPU seconds so far, by name. Servers on another machine do not show."""
    found: Usage = {
        "submit": _seconds(psutil.Process()),
        "dispatcher": _family(pool.dispatcher.pid),
        "cpu worker": _family(pool.cpu_worker.pid),
        "gpu workers": 0.0,
        "trainers": 0.0,
    }
    for process in _tree(pool.gpu_worker.pid):
        with suppress(psutil.Error):
            trains = "gpu_worker.scripted" in process.cmdline()
            found["trainers" if trains else "gpu workers"] += _seconds(process)
    with transaction() as session:
        backends = session.scalars(_BACKENDS).all()
    found["Postgres"] = sum(_of_server(pid, "postgres") for pid in backends)
    found["RabbitMQ"] = sum(
        _seconds(process) for process in psutil.process_iter() if _is_broker(process)
    )
    return found


def used(before: Usage, after: Usage) -> Usage:
    return {name: after[name] - before[name] for name in after}


_BACKENDS = text("SELECT pid FROM pg_stat_activity WHERE datname = current_database()")


def _tree(pid: int) -> list[psutil.Process]:
    with suppress(psutil.Error):
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    return []


def _family(pid: int) -> float:
    return sum(_seconds(process) for process in _tree(pid))


def _of_server(pid: int, name: str) -> float:
    with suppress(psutil.Error):
        process = psutil.Process(pid)
        if process.name().startswith(name):
            return _seconds(process)
    return 0.0


def _is_broker(process: psutil.Process) -> bool:
    port = make_url(settings().resolved_broker_url).port or 5672
    with suppress(psutil.Error):
        if not process.name().startswith("beam"):
            return False
        listening: list[Any] = process.net_connections("tcp")
        return any(one.laddr and one.laddr.port == port for one in listening)
    return False


def _seconds(process: psutil.Process) -> float:
    with suppress(psutil.Error):
        times = process.cpu_times()
        return float(times.user + times.system)
    return 0.0
