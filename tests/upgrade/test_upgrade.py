"""A rolling upgrade with jobs on it: processes of the previous release beside those of this one.

In the documented order: the database, the dispatcher, the workers. The tests of this module follow
it, and each stands on the ones before.
"""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import pytest
from sqlalchemy import text

import celora
import migrations
from celora.cli import application
from celora.report.facts import read_runs
from celora.report.page import html
from models.queries import adapter_work, chats
from models.queries.adapters import resolve
from models.queries.waiting import why_waiting
from models.session import transaction
from tests.scripted_jobs import FAST, in_state, job, outcomes, steps_once, submit
from tests.stack import Stack
from tests.upgrade.previous import Previous

pytestmark = pytest.mark.broker

OLD_HOST, NEW_HOST = "old-host", "new-host"
STEPS = 300
JOBS = {  # name → script, and what is asked of it at once
    "cancelled": ("steps=3", "CANCEL"),
    "paused": ("steps=3", "PAUSE"),
    "completed": ("steps=6&checkpoint_every=3&step_seconds=0", None),
    "failed": ("steps=6&fail_at=2&step_seconds=0", None),
    "running": (f"steps={STEPS}&step_seconds=0.03&checkpoint_every=20", None),
    "queued": ("steps=3&step_seconds=0", None),
}
_SUBMIT = """
import json, sys
from models.queries import jobs
from models.session import transaction
from models.spec import JobSpec
from models.states import StopReason
found = {}
for name, (script, stop) in json.loads(sys.argv[1]).items():
    with transaction() as session:
        spec = JobSpec(base_model="scripted:?" + script, dataset="none")
        found[name] = jobs.insert_job(session, spec, tenant="default", user="ada").id
        if stop:
            jobs.request_stop(session, found[name], StopReason[stop])
print(json.dumps(found))
"""
FINISHED = ("completed", "paused", "running", "queued")  # each of them, in the end
_VIEWS = "SELECT viewname FROM pg_views WHERE schemaname = 'admin'"


@pytest.fixture(scope="module")
def database(empty_database: str, old: Previous) -> str:
    """As the previous release has made it."""
    old.run("import migrations, sys; migrations.upgrade(sys.argv[1])", empty_database)
    return empty_database


@pytest.fixture(scope="module")
def made(stack: Stack, old: Previous, database: str) -> dict[str, str]:
    """Jobs by state, made and brought there by the previous release's processes, which run on. The
    database is of this version since, migrated under them."""
    stack.environment |= FAST
    for words in ("dispatcher", "cpu-worker --concurrency 1", "gpu-worker --devices cpu:1"):
        stack.start(*words.split(), CELORA_HOST=OLD_HOST, **old.environment)
    ids: dict[str, str] = json.loads(old.run(_SUBMIT, json.dumps(JOBS), **stack.environment))
    for name, job_id in ids.items():
        stack.wait_until(f"one is {name}", partial(is_in, job_id, name))
    stack.wait_until("it has a checkpoint", lambda: column(ids["running"], "step") >= 40)
    migrations.upgrade(database)
    assert is_in(ids["running"], "running")
    return ids


def is_in(job_id: str, state: str) -> bool:
    """Without our models, which do not fit the older tables."""
    return bool(column(job_id, "state") == state)


def column(job_id: str, name: str) -> Any:
    with transaction() as session:
        return session.scalar(
            text(f"SELECT {name} FROM jobs WHERE id = :id"),  # noqa: S608 (ours)
            {"id": job_id},
        )


def workers_of(job_id: str) -> list[str | None]:
    with transaction() as session:
        return list(
            session.scalars(
                text("SELECT worker FROM attempts WHERE job_id = :id ORDER BY fence"),
                {"id": job_id},
            )
        )


def test_what_ran_goes_on_and_what_waited_follows(stack: Stack, made: dict[str, str]) -> None:
    """First under the dispatcher that it began with, then under the new one."""
    before = job(made["running"]).step
    stack.stop(next(one for one in stack.running if one.name == "dispatcher"))
    stack.start("dispatcher", CELORA_HOST=NEW_HOST)
    stack.wait_until("it goes on", lambda: job(made["running"]).step > before)
    in_state(stack, made["running"], "completed")
    assert outcomes(made["running"]) == ["completed"]  # nobody took it for lost
    steps_once(made["running"], STEPS)
    in_state(stack, made["queued"], "completed")


def test_old_workers_do_what_the_new_dispatcher_gives_them(
    stack: Stack, made: dict[str, str]
) -> None:
    new = submit("steps=20&checkpoint_every=10&step_seconds=0")
    resumed = made["paused"]
    celora.resume(resumed)
    for job_id in (new, resumed):
        done = in_state(stack, job_id, "completed")
        assert done.adapter_url is not None
        assert done.result is not None
        assert done.result["evaluation"]["tuned"]["exact_match"] == 0.95
        assert workers_of(job_id) == [f"cpu@{OLD_HOST}", f"gpu0@{OLD_HOST}"]
    celora.retry(made["failed"])
    assert in_state(stack, made["failed"], "failed").error is not None


def answered(chat: str) -> bool:
    with transaction() as session:
        turn = chats.turn(session, chat, 1)
    return turn is not None and turn.answered_at is not None


def test_what_is_new_waits_for_new_workers(stack: Stack, made: dict[str, str]) -> None:
    with transaction() as session:
        source = resolve(session, None, made["completed"])
        export = adapter_work.insert_export(session, source, "adapter", user="ada").id
        chat = adapter_work.insert_chat(
            session, source, user="ada", max_new_tokens=16, temperature=0.0
        ).id
        chats.ask(session, chat, "who?", "tuned")
    pairs = submit("steps=3&step_seconds=0", method="dpo")
    named = submit("steps=3&step_seconds=0", adapter_name="bot")
    stack.wait_until(
        "their preparation is sent", lambda: len(workers_of(pairs) + workers_of(named)) == 2
    )
    # Meanwhile the old workers go on with what they know.
    after = submit("steps=3&step_seconds=0")
    in_state(stack, after, "completed")
    with transaction() as session:
        for one, words in ((pairs, "a CPU worker of version"), (export, "a worker of version")):
            assert f"{words} 0.2 or later" in why_waiting(session, one).sentence
    assert [job(one).state for one in (pairs, named)] == ["pending"] * 2
    assert [job(one).state for one in (export, chat)] == ["queued"] * 2

    stack.start("cpu-worker", "--concurrency", "1", CELORA_HOST=NEW_HOST)
    stack.start("gpu-worker", "--devices", "cpu:1", CELORA_HOST=NEW_HOST)
    stack.wait_until("the chat answers", lambda: answered(chat))
    with transaction() as session:
        chats.close(session, chat)
    for one in (chat, export, pairs, named):
        in_state(stack, one, "completed")
    for one in (export, chat, pairs, named):
        assert set(workers_of(one)) <= {f"cpu@{NEW_HOST}", f"gpu0@{NEW_HOST}"}
    (version,) = celora.adapters(name="bot")
    assert version.job_id == named


def test_what_the_old_version_left_reads_like_any(
    made: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    for name, job_id in made.items():
        assert celora.get(job_id).state == ("completed" if name in FINISHED else name)
        assert celora.events(job_id)
    done = made["completed"]
    application(["job"])(["job", done, "--json"], standalone_mode=False)
    shown = json.loads(capsys.readouterr().out)
    assert (shown["state"], shown["step"]) == ("completed", 6)
    assert done in html(read_runs([done, made["failed"]]))
    losses = [one for one in celora.metrics(done) if one.name == "train_loss"]
    assert [one.step for one in losses] == list(range(1, 7))
    assert outcomes(done) == ["completed"]
    with transaction() as session:
        for view in session.scalars(text(_VIEWS)).all():
            session.execute(text(f"SELECT * FROM admin.{view}")).all()  # noqa: S608 (ours)


@pytest.mark.slow
def test_new_workers_work_under_the_old_dispatcher(
    stack: Stack, made: dict[str, str], old: Previous
) -> None:
    """As after a dispatcher that was put back."""
    assert made
    for one in list(stack.running):
        stack.stop(one)
    stack.start("dispatcher", CELORA_HOST=OLD_HOST, **old.environment)
    stack.start("cpu-worker", "--concurrency", "1", CELORA_HOST=NEW_HOST)
    stack.start("gpu-worker", "--devices", "cpu:1", CELORA_HOST=NEW_HOST)
    back = submit("steps=20&checkpoint_every=10&step_seconds=0")
    in_state(stack, back, "completed")
    assert workers_of(back) == [f"cpu@{NEW_HOST}", f"gpu0@{NEW_HOST}"]
