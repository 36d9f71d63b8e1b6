"""The gap between two jobs on the same base: last step of one ended → first step of the next begun.

Three ways, side by side: one process per job; a warm trainer that gets its next command over the
pipe as soon as it has answered; and the whole product, where jobs wait in Postgres and tickets go
through RabbitMQ. Every way trains the same jobs on the same base with the same number of threads.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

from gpu_worker.protocol import Exit, Trained
from gpu_worker.trainer.tiny_base import random_base
from tests.trainer_driver import Trainer, make_run, prepared_data

THREADS = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
WARM_JOBS = 12
COLD_JOBS = 4
AIM_RATIO = 15
AIM_SECONDS = 0.3
_STEPS = 3


def run() -> bool:
    """Print the table; True when both aims are met."""
    with tempfile.TemporaryDirectory(prefix="celora-gap-") as folder:
        root = Path(folder)
        base = random_base(root / "base", hidden=256, layers=2, mlp=704, vocab=2000)
        data = prepared_data(root / "data", rows=200, length=(40, 160), vocab=500)
        cold = _cold(root, base, data)
        warm = _warm(root, base, data)
        whole = _whole_product(root, base)
    _show("one process per job", cold)
    _show("warm trainer, over the pipe", warm)
    _show("warm trainer, whole product", whole)
    ratio = statistics.median(cold) / statistics.median(whole)
    print(f"   {ratio:.0f} times smaller through the whole product (aim {AIM_RATIO})")
    return ratio >= AIM_RATIO and statistics.median(whole) <= AIM_SECONDS


def _cold(root: Path, base: Path, data: Path) -> list[float]:
    """Each job starts a process when the one before has left."""
    results = []
    for n in range(COLD_JOBS):
        with Trainer(environment=THREADS) as trainer:
            results.append(_one(trainer, base, data, root / f"cold{n}"))
            trainer.send(Exit())
            trainer.process.wait(timeout=60)
    return _gaps(results)


def _warm(root: Path, base: Path, data: Path) -> list[float]:
    with Trainer(environment=THREADS) as trainer:
        results = [_one(trainer, base, data, root / f"warm{n}") for n in range(WARM_JOBS)]
    return _gaps(results[1:])


def _one(trainer: Trainer, base: Path, data: Path, output: Path) -> dict[str, Any]:
    done = trainer.run(make_run(base, data, output, max_steps=_STEPS, batch_size=4))
    if not isinstance(done, Trained):
        raise SystemExit(f"the job did not finish: {done}")
    return done.result


def _whole_product(root: Path, base: Path) -> list[float]:
    """Jobs submitted at once to dispatcher, workers, Postgres and RabbitMQ on this machine."""
    import celora
    import migrations
    from tests import postgres_server, rabbitmq_server
    from tests.environment import variables
    from tests.run_token import run_name
    from tests.stack import Stack

    rows = root / "rows.jsonl"
    rows.write_text(
        "\n".join(
            json.dumps({"instruction": f"add {n} and 1 to it", "output": f"{n + 1} " * 30})
            for n in range(120)
        )
    )
    root.chmod(0o755)  # a server of our own may run as another user
    with ExitStack() as ends:
        servers = {name: root / name for name in ("postgres", "rabbitmq")}
        for server in servers.values():
            server.mkdir(mode=0o755)
        postgres = ends.enter_context(postgres_server.find_or_start(servers["postgres"], own=False))
        rabbitmq = ends.enter_context(rabbitmq_server.find_or_start(servers["rabbitmq"], own=False))
        name = run_name("gap")
        url = postgres.create(name)
        ends.callback(postgres.drop, name)
        migrations.upgrade(url)
        environment = THREADS | {
            "CELORA_DATABASE_URL": url,
            "CELORA_BROKER_URL": ends.enter_context(rabbitmq.vhost(name)),
            "CELORA_HOME": str(root / "home"),
            "CELORA_HOST": name.replace("_", "-"),
            "CELORA_LOCK_FOLDER": str(root / "locks"),
        }
        ends.enter_context(variables(**environment))
        stack = Stack(root, environment)
        ends.callback(stack.close)
        up = stack.start("up", "--devices", "cpu:1")
        stack.wait_until("celora up is ready", lambda: "ready" in up.said(), seconds=180)
        jobs = [
            celora.submit(
                base_model=str(base), dataset=str(rows), method="lora", rank=4, batch_size=4,
                gradient_accumulation=2, max_steps=_STEPS, max_sequence_length=128, evaluate=False,
            )
            for _ in range(WARM_JOBS)
        ]  # fmt: skip
        results = []
        for job in jobs:
            done = celora.wait(job)
            if done.result is None:
                raise SystemExit(f"{job.id} is {done.state}: {done.error}")
            results.append(done.result)
    # In the order they ran; the first of them loaded the base.
    results.sort(key=lambda result: result["first_step_began"])
    return _gaps(results[1:])


def _gaps(results: list[dict[str, Any]]) -> list[float]:
    return [
        later["first_step_began"] - earlier["last_step_ended"]
        for earlier, later in pairwise(results)
    ]


def _show(name: str, gaps: list[float]) -> None:
    print(
        f"   {name:<32}{statistics.median(gaps):>8.3f} s median of {len(gaps)}, "
        f"{min(gaps):.3f} to {max(gaps):.3f}"
    )


if __name__ == "__main__":
    sys.exit(0 if run() else 1)
