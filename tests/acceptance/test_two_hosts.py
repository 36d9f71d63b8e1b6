"""Two hosts that share nothing but servers: S3, and RabbitMQ and Postgres over TLS.

Each host is a network namespace with its own address, name, folders and locks. A job moves from one
to the other, and goes on from its checkpoint in S3.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from sqlalchemy import text

from gpu_worker import tether
from models.errors import SetupError
from models.queries import gpus as gpu_queries
from models.queries import history, jobs
from models.session import transaction
from models.settings import settings
from models.spec import JobSpec
from models.store_tree import folders
from tests import hosts, s3_server, tls_servers
from tests.conftest import ROOT, unavailable
from tests.environment import variables
from tests.faults import promises
from tests.hosts import Host
from tests.ordinary_user import as_ordinary_user
from tests.s3_server import BUCKET, S3Server, reached
from tests.scripted_jobs import (
    FAST,
    at_step,
    gpu_of,
    gpus,
    in_state,
    is_gone,
    job,
    outcomes,
    steps_once,
    submit,
    trainer_of,
    tries,
)
from tests.stack import Stack

STEPS = 150  # so many that it is stopped long before the last
PATIENCE = {
    "CELORA_CANCEL_GRACE_SECONDS": "10",
    "CELORA_STOP_GRACE_SECONDS": "30",
    "CELORA_FETCH_PATIENCE_SECONDS": "3",
}


@dataclass(frozen=True, slots=True)
class Pool:
    stack: Stack
    s3: S3Server
    a: Host
    b: Host

    def only(self, host: Host) -> None:
        """New jobs go there alone."""
        for one in (self.a, self.b):
            with transaction() as session:
                gpu_queries.set_cordon(session, one.name, None, one is not host)

    def state(self, host: Host) -> str:
        return next((gpu.state for gpu in gpus() if gpu.host == host.name), "not there")

    def hosts_of(self, job_id: str) -> list[str]:
        return [gpu_of(attempt).host for attempt in tries(job_id)]


@pytest.fixture(scope="module")
def pool(server_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    if (why := hosts.lacking()) is not None:
        unavailable(why)
    folder = tmp_path_factory.mktemp("hosts")
    with ExitStack() as started:
        try:
            network = started.enter_context(hosts.network("a", "b"))
            servers, s3 = _servers(started, server_folder, network.address)
        except SetupError as error:
            unavailable(str(error))
            raise
        environment = servers | FAST | PATIENCE | {"CELORA_ALLOW_SCRIPTED": "true"}
        stack = Stack(folder, environment)
        started.callback(stack.close, seconds=0)
        started.enter_context(variables(**environment))
        started.enter_context(reached(f"s3://{BUCKET}", folder / "test-home"))
        control = {"CELORA_HOME": str(folder / "control"), "CELORA_HOST": "control"}
        stack.start("dispatcher", **control)
        stack.start("cpu-worker", "--concurrency", "1", **control)
        for host in network.hosts:
            _start_worker(stack, host)
        pool = Pool(stack, s3, *network.hosts)
        stack.wait_until("both are free", lambda: [g.state for g in gpus()] == ["free"] * 2)
        yield pool


def _servers(started: ExitStack, folder: Path, address: str) -> tuple[dict[str, str], S3Server]:
    """All on the bridge's address; broker and database with a certificate for it."""
    tls = tls_servers.certificates(folder / "hosts-tls", address)
    places = [folder / f"hosts-{name}" for name in ("rabbitmq", "postgres", "s3")]
    broker = tls_servers.broker(places[0], tls, address=address, name=address)
    database = tls_servers.database(places[1], tls, address=address, name=address)
    places[2].mkdir()
    # Without TLS: this server takes no other connection during a handshake, and the host that is
    # cut off in one would hold it up for all. tests/integration/test_store_s3.py has it with TLS.
    s3 = s3_server.own_server(places[2], host=address)
    environment = {
        "CELORA_BROKER_URL": started.enter_context(broker),
        "CELORA_BROKER_CA": str(tls.authority),
        "CELORA_DATABASE_URL": started.enter_context(database),
    }
    server = started.enter_context(s3)
    artifacts = server.make_bucket()
    return environment | {"CELORA_ARTIFACTS": artifacts} | server.environment(), server


def _start_worker(stack: Stack, host: Host) -> None:
    own = stack.folder / host.name
    own.mkdir()
    arguments = ("gpu-worker", "--devices", "cpu:1")
    command = tether.command("celora", *arguments, death_signal=signal.SIGTERM)
    stack.start_program(
        host.command(command),
        f"gpu-worker-{host.name}",
        CELORA_HOST=host.name,
        CELORA_HOME=str(own / "home"),
        CELORA_LOCK_FOLDER=str(own / "locks"),
        HF_HOME=str(own / "huggingface"),
    )


@pytest.mark.slow
@pytest.mark.timeout(600)  # two trainers start beside each other
@pytest.mark.broker
@pytest.mark.torch
def test_a_drained_hosts_job_goes_on_elsewhere_from_its_checkpoint_in_s3(
    pool: Pool, tmp_path: Path
) -> None:
    fields = _data_in_s3(pool.s3, tmp_path)
    pool.only(pool.a)
    moved = _submit(fields)
    pool.stack.wait_until("a trains", lambda: job(moved).step >= 1, seconds=150)
    pool.only(pool.b)
    straight = _submit(fields)
    at_step(pool.stack, moved, 45)
    pool.stack.run("drain", f"{pool.a.name}:")
    pool.stack.wait_until("it left a", lambda: outcomes(moved)[0] == "drained", seconds=60)
    in_state(pool.stack, straight, "completed", seconds=200)
    done = in_state(pool.stack, moved, "completed", seconds=200)

    assert pool.hosts_of(moved) == [pool.a.name, pool.b.name]
    assert pool.hosts_of(straight) == [pool.b.name]
    first, second = tries(moved)
    assert second.start_step == first.end_step
    assert 45 <= (second.start_step or 0) < STEPS
    copies = pool.stack.folder / pool.b.name / "home" / "work" / "jobs" / moved
    pool.stack.wait_until("b has no copy any more", lambda: not copies.exists())  # S3 has it all
    assert _curve(moved) == _curve(straight)
    assert [step for step, _ in _curve(moved)] == list(range(1, STEPS + 1))
    assert _files(done.id, "adapter") == _files(straight, "adapter")
    promises.check_rows()


@pytest.mark.slow
@pytest.mark.broker
@pytest.mark.fault(11)
def test_a_host_that_is_cut_off_stops_by_itself_and_comes_back_without_harm(pool: Pool) -> None:
    servers = urlsplit(settings().broker_url)
    assert servers.hostname is not None
    assert servers.port is not None
    pool.only(pool.a)
    pool.stack.wait_until("a is free", lambda: pool.state(pool.a) == "free")
    steps = 600
    job_id = submit(f"steps={steps}&step_seconds=0.02&checkpoint_every=20")
    first = at_step(pool.stack, job_id, 90)
    trainer = trainer_of(first)
    assert pool.a.reaches(servers.hostname, servers.port)
    pool.a.cut_off()
    try:
        assert not pool.a.reaches(servers.hostname, servers.port)
        assert not is_gone(trainer)  # nobody but itself can end it now
        pool.only(pool.b)
        pool.stack.wait_until("its trainer is gone", lambda: is_gone(trainer), seconds=15)
        died_at, lease_until = datetime.now(UTC), tries(job_id)[0].lease_until
        assert lease_until is not None
        assert died_at < lease_until
        in_state(pool.stack, job_id, "completed", seconds=60)
        assert not pool.a.reaches(servers.hostname, servers.port)
        before, rows = _files(job_id), _rows(job_id)
    finally:
        pool.a.heal()

    assert outcomes(job_id) == ["lost", "completed"]
    assert pool.hosts_of(job_id) == [pool.a.name, pool.b.name]
    resumed_at = tries(job_id)[1].start_step or 0
    assert resumed_at >= 20
    assert resumed_at % 20 == 0
    steps_once(job_id, steps)

    pool.only(pool.a)
    pool.stack.wait_until("a has come back", lambda: pool.state(pool.a) == "free", seconds=60)
    next_job = submit("steps=10")
    in_state(pool.stack, next_job, "completed", seconds=60)
    assert pool.hosts_of(next_job) == [pool.a.name]
    assert _rows(job_id) == rows  # the stale attempt wrote nothing …
    after = _files(job_id)
    assert {path: after.get(path) for path in before} == before  # … and destroyed nothing
    promises.check_rows()


def _data_in_s3(s3: S3Server, folder: Path) -> dict[str, object]:
    """A tiny base and rows, where both hosts and the cpu worker find them."""
    from gpu_worker.trainer.tiny_base import random_base

    base = random_base(folder / "tiny-llama")
    for file in base.iterdir():
        s3.put(f"{BUCKET}/bases/tiny-llama/{file.name}", file.read_bytes())
    lines = (json.dumps({"prompt": f"say {n}", "completion": f"number {n}"}) for n in range(200))
    s3.put(f"{BUCKET}/data/rows.jsonl", "\n".join(lines).encode())
    return {
        "base_model": f"s3://{BUCKET}/bases/tiny-llama",
        "dataset": f"s3://{BUCKET}/data/rows.jsonl",
        "max_steps": STEPS,
        "max_sequence_length": 64,
        "batch_size": 2,
        "gradient_accumulation": 2,
        "checkpoint_every_steps": 20,
        "eval_generate_rows": 0,
    }


def _submit(fields: dict[str, object]) -> str:
    with transaction() as session:
        spec = JobSpec.model_validate(fields)
        return jobs.insert_job(session, spec, tenant="default", user="ada").id


def _curve(job_id: str) -> list[tuple[int, float]]:
    with transaction() as session:
        points = history.metrics_of(session, job_id, ["train_loss"])
    return [(point.step, point.value) for point in points if point.stage == "train"]


def _files(job_id: str, below: str = "") -> dict[str, int]:
    """What of a job lies in S3, with its size; below its last attempt's folder of that name."""
    root = f"{settings().artifacts_url}/jobs"
    found = {
        entry.path: entry.size_bytes
        for folder in folders(root)
        if folder.name == job_id
        for entry in folder.entries
    }
    if not below:
        return found
    prefix = f"{tries(job_id)[-1].fence}/{below}/"
    return {p.removeprefix(prefix): size for p, size in found.items() if p.startswith(prefix)}


def _rows(job_id: str) -> list[tuple[object, ...]]:
    """How much was written under each fence."""
    with transaction() as session:
        return [
            tuple(row)
            for row in session.execute(
                text(
                    "SELECT fence, count(*), max(recorded_at) FROM metrics WHERE job_id = :job"
                    " GROUP BY fence UNION ALL SELECT fence, count(*), max(registered_at)"
                    " FROM checkpoints WHERE job_id = :job GROUP BY fence ORDER BY 1, 2"
                ),
                {"job": job_id},
            )
        ]


# Where there can be no hosts, the run says why.

_LOOK = [sys.executable, "-c", "from tests.hosts import lacking; print(lacking())"]


def _said(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout


def test_without_the_command_that_makes_hosts_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert "`ip`" in (hosts.lacking() or "")
    assert "iproute2" in (hosts.lacking() or "")


def test_an_ordinary_user_is_told_that_hosts_need_root() -> None:
    assert "need root" in _said(as_ordinary_user(_LOOK)) or hosts.lacking() is not None


def test_a_machine_that_refuses_namespaces_is_quoted() -> None:
    if os.geteuid() != 0 or hosts.lacking() is not None:
        pytest.skip("only root, where there are namespaces, can take the right to them away")
    said = _said(["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin", *_LOOK])
    assert "allows no network namespaces: ip netns add" in said
    assert "not permitted" in said
