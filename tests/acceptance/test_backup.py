"""A backup is made while jobs run, everything is lost, and the backup brings it back.

Between backup and loss things go on: checkpoints rotate, jobs end, others come. The store is copied
after the database, as the page for operators says; it comes back with what the database forgot.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from models import store
from models.errors import NotFoundError
from models.queries import history, products
from models.session import engine, transaction
from tests.api_server import key_for, serving
from tests.environment import variables
from tests.postgres_server import PostgresServer
from tests.run_token import run_name
from tests.scripted_jobs import (
    FAST,
    in_state,
    job,
    start_gpu_worker,
    steps_once,
    submit,
    trainer_of,
    tries,
)
from tests.stack import Stack

pytestmark = [pytest.mark.broker, pytest.mark.slow]

STEPS = 60
# Stays there in its first training (the fence before was the preparation's).
HANGS = f"steps={STEPS}&checkpoint_every=10&hang_at=35&fault_fences=2"


@dataclass(frozen=True)
class Story:
    done: dict[str, Any]  # what the command says that it did
    key: str
    file: str
    completed: str
    rotated: str  # runs; none of its checkpoints outlived the backup
    torn: str  # runs; of the newest one a part was copied
    kept: int  # the step of the one before
    queued: str
    forgotten: str  # handed in after the backup
    place: str  # how far a watcher had got


@pytest.fixture(scope="module")
def story(
    stack: Stack, postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Story]:
    folder = tmp_path_factory.mktemp("backup")
    dump, copy = folder / "celora.sql.gz", folder / "artifacts"
    artifacts = Path(stack.environment["CELORA_HOME"]) / "artifacts"
    stack.environment |= FAST
    with variables(**FAST):
        start_all(stack)
        key = key_for("default")
        completed = submit("steps=3")
        in_state(stack, completed, "completed")
        rotated = submit(HANGS, keep_checkpoints=1)
        torn = submit(HANGS, keep_checkpoints=10)
        for job_id in (rotated, torn):
            stack.wait_until("it has saved step 30", partial(has_saved, job_id, 30))
        queued = submit("steps=3")  # both slots are taken
        with serving() as server:
            file = upload(server.v1, key)
            place = listen(server.v1, key, torn, events=3)[-1]["id"]
        stack.run("db", "backup", str(dump))
        with transaction() as session:
            newest, before, *_ = products.checkpoints_of(session, torn)
        forgotten = submit("steps=3")
        trainer_of(tries(rotated)[-1]).kill()
        in_state(stack, rotated, "completed")  # and the checkpoint that the backup names is gone
        assert saved(rotated) == [50]
        shutil.copytree(artifacts, copy, ignore=halves)
        stack.close(seconds=0)
        shutil.rmtree(artifacts)

        shutil.copytree(copy, artifacts)
        (store.local_path(newest.url) / "state.json").unlink()
        name = run_name("restored")
        url = postgres.create(name)
        engine().dispose()
        stack.environment["CELORA_DATABASE_URL"] = url
        with variables(CELORA_DATABASE_URL=url):
            done = json.loads(stack.run("db", "restore", str(dump), "--json").stdout)
            yield Story(
                done, key, file, completed, rotated, torn, before.step, queued, forgotten, place
            )
            stack.close(seconds=0)
            engine().dispose()
        postgres.drop(name)


def start_all(stack: Stack) -> None:
    stack.start("dispatcher")
    stack.start("cpu-worker", "--concurrency", "1")
    start_gpu_worker(stack, 2)


def has_saved(job_id: str, step: int) -> bool:
    return step in saved(job_id)


def saved(job_id: str) -> list[int]:
    with transaction() as session:
        return [one.step for one in products.checkpoints_of(session, job_id)]


def halves(_folder: str, names: list[str]) -> set[str]:
    """What is just being written, or deleted, may be gone when its turn to be copied comes."""
    return {name for name in names if name.endswith(".tmp")}


def upload(v1: str, key: str) -> str:
    row = {"messages": [{"role": one, "content": "hello"} for one in ("user", "assistant")]}
    answer = httpx.post(
        f"{v1}/files",
        headers={"authorization": f"Bearer {key}"},
        data={"purpose": "fine-tune"},
        files={"file": ("rows.jsonl", json.dumps(row).encode() + b"\n")},
        timeout=60,
    )
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


def listen(
    v1: str, key: str, job_id: str, *, events: int = 10_000, last_id: str | None = None
) -> list[dict[str, Any]]:
    """A job's events from its stream, until its end or so many."""
    heard: list[dict[str, Any]] = []
    headers = {"authorization": f"Bearer {key}"} | ({"last-event-id": last_id} if last_id else {})
    address = f"{v1}/fine_tuning/jobs/{job_id}/stream"
    with httpx.stream("GET", address, headers=headers, timeout=60) as answer:
        assert answer.status_code == 200
        fields: dict[str, str] = {}
        for line in answer.iter_lines():
            if line:
                name, _, value = line.partition(": ")
                fields[name] = value
                continue
            if fields.get("event") == "event":
                heard.append({"id": fields["id"]} | {"data": json.loads(fields["data"])})
            if fields.get("event") == "end" or len(heard) == events:
                break
            fields = {}
    return heard


def test_what_was_lost_is_said(story: Story) -> None:
    assert sorted(story.done["ended_jobs"]) == sorted([story.rotated, story.torn])
    missing = {
        (one["job_id"], kind) for kind, all_of in story.done["missing"].items() for one in all_of
    }
    assert missing == {(story.rotated, "checkpoints"), (story.torn, "checkpoints")}
    assert story.done["raised_fences"] == 3
    with pytest.raises(NotFoundError):
        job(story.forgotten)


def test_jobs_that_ran_go_on_and_end(story: Story, stack: Stack) -> None:
    assert {job(one).state for one in (story.torn, story.rotated, story.queued)} == {"queued"}
    start_all(stack)
    with serving() as server:
        heard = listen(server.v1, story.key, story.torn, last_id=story.place)
    for job_id, start in ((story.torn, story.kept), (story.rotated, None)):
        assert in_state(stack, job_id, "completed", seconds=60).losses == 0
        before, after = tries(job_id)
        assert before.outcome == "lost"
        assert after.start_step == start
        assert after.fence > 1000  # none that a forgotten attempt may have had
        steps_once(job_id, STEPS)
    in_state(stack, story.queued, "completed")
    # A watcher goes on where it was.
    with transaction() as session:
        told = [event.id for event in history.events_of(session, story.torn)]
    # The id of a message says how far its reader has got: 740.1000003-…
    assert [int(one["id"].partition("-")[0].partition(".")[2]) for one in heard] == told[3:]


def test_what_was_ready_is_there(story: Story) -> None:
    assert job(story.completed).state == "completed"
    with transaction() as session:
        (adapter,) = products.artifacts_of(session, story.completed)
    assert (store.local_path(adapter.url) / "adapter_model.safetensors").is_file()
    with (
        serving() as server,
        httpx.Client(
            base_url=server.v1, headers={"authorization": f"Bearer {story.key}"}
        ) as client,
    ):
        assert b"hello" in client.get(f"/files/{story.file}/content").content
        assert client.get(f"/fine_tuning/jobs/{story.completed}").json()["status"] == "succeeded"


def test_again_changes_nothing(story: Story, stack: Stack) -> None:  # noqa: ARG001 (after it)
    refused = stack.run("db", "after-restore", check=False)
    assert refused.returncode == 4
    assert "stop every process" in refused.stderr
