"""`celora k8s-job`: what its container runs, as a process with its environment, without a broker.

No cluster runs here. What it would give is given otherwise: the file of the annotation, the values
of the config map and the secret, a name and an empty home for each pod.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]  # it ships no types
from sqlalchemy import make_url, text

import celora
from celora.k8s_job import Place, render
from gpu_worker import tether
from models.errors import StateError
from models.queries import own_pod, roles
from models.session import transaction
from models.spec import JobSpec, parse_spec
from models.states import JobState
from models.tables import Attempt, Evaluation, Job
from tasks.run_job import AGAIN
from tests import scripted_jobs
from tests.hub_server import HubServer
from tests.scripted_jobs import FAST, job, outcomes, steps_once, tries
from tests.stack import Stack
from tests.waiting import until

pytestmark = pytest.mark.broker

# Where nothing listens: whoever asked a broker for anything would fail.
NO_BROKER = "amqp://guest:guest@127.0.0.1:1//"
LONG = "steps=100000&step_seconds=0.05&checkpoint_every=5"


@dataclass
class Cluster:
    """Runs the pods of rendered Jobs."""

    folder: Path
    config: dict[str, str]
    secrets: dict[str, str]
    user: str  # on Postgres, for celora_worker
    pods: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, manifest: dict[str, Any]) -> subprocess.Popen[bytes]:
        """The Job's next pod."""
        name = f"{manifest['metadata']['name']}-{len(self.pods)}"
        template = manifest["spec"]["template"]
        (container,) = template["spec"]["containers"]
        home = self.folder / name
        home.mkdir()
        spec = home / "job.json"
        spec.write_text(template["metadata"]["annotations"]["celora/spec"])
        arguments = [
            str(spec) if one == "/etc/celora-job/job.json" else one for one in container["args"]
        ]
        with (self.folder / f"{name}.log").open("wb") as log:
            pod = subprocess.Popen(
                tether.command("celora", *arguments, death_signal=signal.SIGTERM),
                env=os.environ | {"CELORA_HOME": str(home)} | self._environment(container, name),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.pods.append(pod)
        return pod

    def said(self) -> str:
        return "\n".join(f"--- {log.name}\n{log.read_text()}" for log in self.folder.glob("*.log"))

    def _environment(self, container: dict[str, Any], pod: str) -> dict[str, str]:
        given = dict(self.config)
        for each in container["env"]:
            source = each.get("valueFrom", {})
            if "secretKeyRef" in source:
                key = source["secretKeyRef"]["key"]
                if key not in self.secrets:
                    assert source["secretKeyRef"]["optional"]
                    continue
                value = self.secrets[key]
            elif "fieldRef" in source:
                assert source["fieldRef"] == {"fieldPath": "metadata.name"}
                value = pod
            else:
                value = re.sub(r"\$\((\w+)\)", lambda found: given[found[1]], each["value"])
            given[each["name"]] = value
        given["CELORA_DATABASE_URL"] = given["CELORA_DATABASE_URL"].replace(
            "celora_worker", self.user
        )
        return given


@pytest.fixture(scope="module")
def cluster(
    stack: Stack, database: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    """With the rights of a worker on Postgres, and no more."""
    url = make_url(database)
    user = f"{url.database}_pod"
    with transaction() as session:
        roles.grant_worker(session, user)
        session.execute(text(f"ALTER ROLE {user} LOGIN PASSWORD 'secret'"))
    folder = tmp_path_factory.mktemp("cluster")
    config = FAST | {
        "POSTGRES_ADDRESS": f"{url.host}:{url.port}/{url.database}",
        "CELORA_ARTIFACTS": str(stack.folder / "home" / "artifacts"),
        "CELORA_BROKER_URL": NO_BROKER,
        "CELORA_ALLOW_SCRIPTED": "true",
    }
    secrets = {"POSTGRES_WORKER_PASSWORD": "secret", "CELORA_SECRET_KEY": ""}
    made = Cluster(folder, config, secrets, user)
    yield made
    for pod in made.pods:
        if pod.poll() is None:
            pod.kill()
        pod.wait()
    with transaction() as session:
        session.execute(text(f"DROP OWNED BY {user}"))
        session.execute(text(f"DROP ROLE {user}"))


def rendered(script: str = "", **fields: Any) -> dict[str, Any]:
    spec = {"base_model": f"scripted:?{script}", "dataset": "none"} | fields
    return render(parse_spec(spec), tenant="default", user="ada", place=Place(device="cpu"))


def of(manifest: dict[str, Any]) -> Job | None:
    """Its job, once a pod has submitted it."""
    with transaction() as session:
        key = f"celora/{manifest['metadata']['name']}"
        return session.query(Job).filter_by(idempotency_key=key).one_or_none()


def at_step(manifest: dict[str, Any], step: int) -> str:
    until(lambda: (found := of(manifest)) is not None and found.step >= step)
    found = of(manifest)
    assert found is not None
    return found.id


def test_a_job_completes_without_a_broker_or_a_dispatcher(
    cluster: Cluster, stack: Stack, tmp_path: Path
) -> None:
    spec = {"base_model": "scripted:?steps=12&checkpoint_every=5", "dataset": "none"}
    (tmp_path / "job.json").write_text(json.dumps(spec | {"adapter_name": "alone"}))
    command = ("k8s-job", str(tmp_path / "job.json"), "--device", "cpu", "--user", "ada")
    manifest = yaml.safe_load(stack.run(*command).stdout)
    assert cluster.start(manifest).wait(60) == 0, cluster.said()
    done = of(manifest)
    assert done is not None
    assert (done.state, done.user_name, done.step) == ("completed", "ada", 12)
    assert outcomes(done.id) == ["completed"]
    assert done.gpu_seconds > 0
    steps_once(done.id, 12)
    with transaction() as session:
        assert session.query(Evaluation).filter_by(job_id=done.id).count() == 2
    (made,) = celora.adapters(name="alone")
    assert made.job_id == done.id
    (gpu,) = scripted_jobs.gpus()
    assert (gpu.host, gpu.state, gpu.cordoned) == ("k8s-job", "stale", True)
    # A pod more finds it done, and tries nothing.
    assert cluster.start(manifest).wait(60) == 0, cluster.said()
    assert outcomes(done.id) == ["completed"]
    assert len(scripted_jobs.gpus()) == 1  # it took over the row


def test_a_killed_pod_is_followed_by_one_that_resumes(cluster: Cluster) -> None:
    manifest = rendered("steps=60&step_seconds=0.05&checkpoint_every=10")
    pod = cluster.start(manifest)
    job_id = at_step(manifest, 15)
    pod.kill()
    pod.wait()
    assert job(job_id).state == "running"  # no dispatcher notices
    with transaction() as session:
        session.execute(text("UPDATE attempts SET lease_until = clock_timestamp()"))
    why = celora.why(job_id)
    assert why.reason == "its_pod"
    assert "has not been heard of" in why.sentence
    assert cluster.start(manifest).wait(60) == 0, cluster.said()
    assert job(job_id).state == "completed"
    first, second = tries(job_id)
    assert (first.outcome, second.outcome) == ("lost", "completed")
    assert second.start_step is not None
    assert second.start_step >= 10
    assert second.fence == first.fence + 1
    steps_once(job_id, 60)


def test_sigterm_leaves_a_checkpoint_a_pause_holds_it_and_a_cancel_ends_it(
    cluster: Cluster, stack: Stack
) -> None:
    manifest = rendered(LONG)
    pod = cluster.start(manifest)
    job_id = at_step(manifest, 7)
    pod.terminate()
    assert pod.wait(60) == AGAIN, cluster.said()
    assert outcomes(job_id) == ["drained"]
    why = celora.why(job_id)
    assert (why.state, why.reason) == (JobState.QUEUED, "its_pod")
    before = job(job_id).step
    pod = cluster.start(manifest)
    at_step(manifest, before + 1)
    assert tries(job_id)[-1].start_step == before
    assert celora.why(job_id).reason == "running"
    celora.pause(job_id)
    assert pod.wait(60) == StateError.exit_code, cluster.said()
    assert job(job_id).state == "paused"
    celora.resume(job_id)
    pod = cluster.start(manifest)
    at_step(manifest, job(job_id).step + 1)
    stack.run("cancel", job_id)
    assert pod.wait(60) == 0, cluster.said()
    assert job(job_id).state == "cancelled"


def test_what_no_try_helps_is_told_apart(cluster: Cluster) -> None:
    failing = rendered("fail_at=3")
    given_up = failing["spec"]["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"]
    assert cluster.start(failing).wait(60) == 1, cluster.said()
    failed = of(failing)
    assert failed is not None
    assert failed.state == "failed"
    # The same name with another specification is another's job.
    other = rendered("steps=3")
    at = other["spec"]["template"]["spec"]["containers"][0]["args"]
    at[at.index("--key") + 1] = f"celora/{failing['metadata']['name']}"
    assert cluster.start(other).wait(60) == 2, cluster.said()
    assert {1, 2, StateError.exit_code} <= set(given_up)
    assert AGAIN not in given_up


def test_a_pool_beside_it_leaves_it_alone(cluster: Cluster, stack: Stack) -> None:
    """Not prepared, not placed, not sent, not preempted; and its device gets no other job."""
    stack.environment |= FAST
    stack.start("dispatcher")
    stack.start("cpu-worker", "--concurrency", "1")
    start_gpu_worker_beside(stack)
    spec = JobSpec(base_model="scripted:?steps=1", dataset="none")
    with transaction() as session:
        waits = own_pod.find_or_insert(session, spec, tenant="default", user="ada", key="x").id
    manifest = rendered(LONG, preemptible=True)
    pod = cluster.start(manifest)
    job_id = at_step(manifest, 6)
    blocks = scripted_jobs.submit(LONG)
    scripted_jobs.at_step(stack, blocks, 2)
    urgent = scripted_jobs.submit("steps=5", urgent=True)
    stack.wait_until("its wait is explained", partial(says, urgent, "gpus_busy"))
    celora.cancel(blocks)
    scripted_jobs.in_state(stack, urgent, "completed")
    assert [attempt.outcome for attempt in tries(job_id)] == [None]
    pod.send_signal(signal.SIGKILL)
    pod.wait()
    stack.wait_until("its lease runs out", lambda: outcomes(job_id) == ["lost"])
    # The pool has a free slot, takes what comes later, and does not touch these two.
    scripted_jobs.in_state(stack, scripted_jobs.submit("steps=5"), "completed")
    for each, state in ((job_id, "queued"), (waits, "pending")):
        stack.wait_until("the queue tells why", partial(says, each, "its_pod"))
        assert (job(each).state, celora.why(each).reason) == (state, "its_pod")
    assert outcomes(job_id) == ["lost"]
    with transaction() as session:
        mine = session.query(Attempt).filter(Attempt.job_id.in_([job_id, waits]))
        assert {attempt.worker.partition("@")[0] for attempt in mine if attempt.worker} == {"pod"}
        sent = text("SELECT count(*) FROM outbox WHERE job_id IN (:one, :other)")
        assert session.scalar(sent, {"one": job_id, "other": waits}) == 0
    pod = cluster.start(manifest)
    until(lambda: outcomes(job_id) == ["lost", None] and celora.why(job_id).reason == "running")
    celora.cancel(job_id)
    assert pod.wait(60) == 0, cluster.said()
    assert outcomes(job_id) == ["lost", "cancelled"]


def start_gpu_worker_beside(stack: Stack) -> None:
    stack.start("gpu-worker", "--devices", "cpu:1")
    stack.wait_until("the slot is free", lambda: "free" in scripted_jobs.words())


def says(job_id: str, reason: str) -> bool:
    """Whether the view for administrators gives this reason."""
    with transaction() as session:
        found = text("SELECT reason FROM admin.queue WHERE job = :job")
        return bool(session.scalar(found, {"job": job_id}) == reason)


@pytest.mark.slow
@pytest.mark.torch
def test_the_real_trainer_runs_in_a_pod(
    cluster: Cluster,
    shared_data: Path,
    tmp_path: Path,
) -> None:
    from gpu_worker.trainer.tiny_base import random_base

    rows = tmp_path / "rows"
    rows.mkdir()
    lines = (shared_data / "gsm8k-train.jsonl").read_text().splitlines()[:200]
    (rows / "train.jsonl").write_text("\n".join(lines))
    with HubServer() as hub:
        hub.add("team/tiny", random_base(tmp_path / "tiny"))
        hub.add("team/rows", rows)
        cluster.config |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hub")}
        manifest = rendered(
            base_model="team/tiny",
            dataset="hub://team/rows",
            columns={"prompt": "question", "completion": "answer"},
            max_steps=12,
            max_sequence_length=128,
            batch_size=2,
            gradient_accumulation=2,
            checkpoint_every_steps=4,
            eval_generate_rows=2,
            eval_max_new_tokens=8,
        )
        pod = cluster.start(manifest)
        job_id = at_step(manifest, 5)
        pod.kill()
        pod.wait()
        assert cluster.start(manifest).wait(240) == 0, cluster.said()
    done = job(job_id)
    assert (done.state, done.step) == ("completed", 12)
    assert outcomes(job_id) == ["lost", "completed"]
    assert set((done.result or {})["evaluation"]) >= {"base", "tuned"}
    steps_once(job_id, 12)
