"""OpenAI's own client, unmodified but for `base_url` and `api_key`, against the real server.

Scripted trainers play the jobs here, so that each takes a second; test_openai_real_rows.py trains.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI
from openai.types.fine_tuning import FineTuningJob

from celora.notify import add_target
from models import secrets
from tests.api_server import key_for
from tests.environment import variables
from tests.openai_jobs import api, finish, pairs
from tests.receiver import Receiver
from tests.scripted_jobs import FAST, start_gpu_worker
from tests.stack import Stack

pytestmark = [pytest.mark.broker]

TENANT = "acme"
ALIASES = {
    "quick": "scripted:?steps=12&step_seconds=0.01&tokens=50&checkpoint_every=5",
    "endless": "scripted:?steps=100000&step_seconds=0.02",
    "broken": "scripted:?fail_at=3",
}


NOTIFYING = {"CELORA_NOTIFY_PRIVATE_HOSTS": "127.0.0.0/8", "CELORA_NOTIFY_ALLOW_HTTP": "true"}


@pytest.fixture(scope="module")
def webhook_secret(stack: Stack, receiver: Receiver) -> str:
    """Signs what the tenant's receiver is told of its jobs."""
    key = secrets.new_key()
    stack.environment["CELORA_SECRET_KEY"] = key
    with variables(CELORA_SECRET_KEY=key, **NOTIFYING):
        key_for(TENANT)  # makes the tenant
        target = add_target("hook", webhook=receiver.url, format="openai", tenant=TENANT)
    assert target.secret is not None
    return target.secret


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with Receiver() as made:
        yield made


@pytest.fixture(scope="module")
def server(stack: Stack, webhook_secret: str) -> Iterator[str]:  # noqa: ARG001 (before the stack)
    stack.start("dispatcher", **FAST, **NOTIFYING)
    stack.start("cpu-worker", **FAST)
    start_gpu_worker(stack, 2, **FAST)
    aliases = ",".join(f"{alias}={base}" for alias, base in ALIASES.items())
    with api(stack, CELORA_MODEL_ALIASES=aliases) as url:
        yield url


@pytest.fixture(scope="module")
def client(server: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=server, api_key=key_for(TENANT, "admin")) as made:
        yield made


@pytest.fixture(scope="module")
def raw(server: str, client: OpenAI) -> Iterator[httpx.Client]:
    """What the client does not know: streams, the short form."""
    headers = {"authorization": f"Bearer {client.api_key}"}
    with httpx.Client(base_url=server.removesuffix("/v1"), headers=headers, timeout=60) as made:
        yield made


def rows(count: int = 12) -> bytes:
    messages = [
        [{"role": "user", "content": f"{n} + 1"}, {"role": "assistant", "content": str(n + 1)}]
        for n in range(count)
    ]
    return "\n".join(json.dumps({"messages": one}) for one in messages).encode()


@pytest.fixture(scope="module")
def training_file(client: OpenAI) -> str:
    return client.files.create(file=("train.jsonl", rows()), purpose="fine-tune").id


@pytest.fixture(scope="module")
def succeeded(stack: Stack, client: OpenAI, training_file: str) -> FineTuningJob:
    job = client.fine_tuning.jobs.create(
        model="quick",
        training_file=training_file,
        validation_file=training_file,
        suffix="My Bot!",
        seed=7,
        metadata={"team": "support", "run": "1"},
        method={
            "type": "supervised",
            "supervised": {
                "hyperparameters": {
                    "n_epochs": 2,
                    "batch_size": 6,
                    "learning_rate_multiplier": 0.5,
                }
            },
        },
        extra_body={"celora": {"rank": 8, "priority": 3}},
    )
    assert job.status in ("validating_files", "queued", "running")
    assert job.fine_tuned_model is None
    return finish(stack, client, job.id)


def test_a_job_runs_to_its_end(succeeded: FineTuningJob, training_file: str) -> None:
    job = succeeded
    assert job.status == "succeeded", job.error
    assert job.model == "quick"
    assert job.fine_tuned_model == f"ft:quick:{TENANT}:My-Bot:{job.id[6:14]}"
    assert job.organization_id == TENANT
    assert (job.training_file, job.validation_file) == (training_file, training_file)
    assert (job.seed, job.error, job.trained_tokens) == (7, None, 12 * 50)
    assert job.finished_at is not None
    assert job.finished_at >= job.created_at
    assert job.metadata == {"team": "support", "run": "1"}
    assert job.method is not None
    assert job.method.type == "supervised"
    assert job.method.supervised is not None
    asked = {"n_epochs": 2, "batch_size": 6, "learning_rate_multiplier": 0.5}
    assert job.hyperparameters.model_dump() == asked
    FineTuningJob.model_validate(job.model_dump(), strict=True)


def test_what_is_auto_becomes_a_number(client: OpenAI, training_file: str) -> None:
    job = client.fine_tuning.jobs.create(
        model="endless",
        training_file=training_file,
        hyperparameters={"n_epochs": "auto", "batch_size": "auto"},
    )
    numbers = {"n_epochs": 10, "batch_size": 4, "learning_rate_multiplier": 1}  # for 12 rows
    assert job.hyperparameters.model_dump() == numbers
    assert job.metadata is None
    client.fine_tuning.jobs.cancel(job.id)


def test_events_tell_the_story_page_by_page(client: OpenAI, succeeded: FineTuningJob) -> None:
    events = list(client.fine_tuning.jobs.list_events(succeeded.id, limit=4))
    assert len({event.id for event in events}) == len(events)
    assert [event.created_at for event in events] == sorted(
        (event.created_at for event in events), reverse=True
    )
    assert events[0].message == "Completed"
    assert events[-1].message == "Submitted by ann"
    assert "Adapter saved" in [event.message for event in events]  # and not where
    steps = [event for event in events if event.type == "metrics"]
    data: list[Any] = [event.data for event in steps]
    assert [one["step"] for one in data] == list(range(12, 0, -1))
    assert {"train_loss", "total_steps"} <= set(data[0])
    assert steps[0].message.startswith("Step 12/12: training loss=")


def test_checkpoints_have_the_metrics_of_their_step(
    client: OpenAI, succeeded: FineTuningJob
) -> None:
    found = list(client.fine_tuning.jobs.checkpoints.list(succeeded.id, limit=1))
    assert [one.step_number for one in found] == [10, 5]
    assert found[0].fine_tuned_model_checkpoint == f"{succeeded.fine_tuned_model}:ckpt-step-10"
    assert found[0].metrics.step == 10
    assert found[0].metrics.train_loss is not None
    name = found[0].fine_tuned_model_checkpoint
    assert client.models.retrieve(name).id == name


def test_the_result_file_has_every_step(client: OpenAI, succeeded: FineTuningJob) -> None:
    (file_id,) = succeeded.result_files
    file = client.files.retrieve(file_id)
    content = client.files.content(file_id).read()
    assert (file.purpose, file.bytes) == ("fine-tune-results", len(content))
    table = list(csv.DictReader(io.StringIO(content.decode())))
    assert [row["step"] for row in table] == [str(step) for step in range(1, 13)]
    assert float(table[0]["train_loss"]) > float(table[-1]["train_loss"])


def test_every_answer_is_of_the_clients_types(
    server: str, client: OpenAI, succeeded: FineTuningJob, training_file: str
) -> None:
    """As the client itself checks it where it is told to be strict; else it lets much pass."""
    name = str(succeeded.fine_tuned_model)
    with OpenAI(
        base_url=server, api_key=client.api_key, _strict_response_validation=True
    ) as strict:
        jobs = strict.fine_tuning.jobs
        job = jobs.create(model="endless", training_file=training_file, metadata={"a": "b"})
        assert jobs.cancel(job.id).status == "cancelled"
        assert jobs.retrieve(succeeded.id).id == succeeded.id
        assert len(list(jobs.list(limit=2))) >= 2
        assert list(jobs.list_events(succeeded.id, limit=5))
        assert list(jobs.checkpoints.list(succeeded.id, limit=1))
        assert list(strict.files.list(limit=1))
        assert strict.files.retrieve(training_file).id == training_file
        assert strict.files.retrieve(succeeded.result_files[0]).purpose == "fine-tune-results"
        assert list(strict.models.list())
        assert strict.models.retrieve(name).id == name
        dpo = jobs.create(
            model="endless",
            training_file=training_file,
            method={"type": "dpo"},
            integrations=[{"type": "wandb", "wandb": {"project": "bots"}}],
            extra_body={"celora": {"gpu_model": "none such"}},
        )
        assert jobs.cancel(dpo.id).method.type == "dpo"  # type: ignore[union-attr]
        file = strict.files.create(file=("more.jsonl", rows()), purpose="fine-tune")
        assert strict.files.delete(file.id).deleted


def test_pause_resume_and_cancel(stack: Stack, client: OpenAI, training_file: str) -> None:
    job = client.fine_tuning.jobs.create(model="endless", training_file=training_file)

    def now() -> FineTuningJob:
        return client.fine_tuning.jobs.retrieve(job.id)

    stack.wait_until("it runs", lambda: now().status == "running")
    stack.wait_until("its end is expected", lambda: now().estimated_finish)
    assert client.fine_tuning.jobs.pause(job.id).status == "paused"  # type: ignore[comparison-overlap]
    stack.wait_until(
        "it has paused",
        lambda: any(
            event.message.startswith("Paused")
            for event in client.fine_tuning.jobs.list_events(job.id, limit=5).data
        ),
    )
    assert client.fine_tuning.jobs.resume(job.id).status == "queued"
    stack.wait_until("it runs again", lambda: now().status == "running")
    assert client.fine_tuning.jobs.cancel(job.id).status == "cancelled"
    stack.wait_until("it has ended", lambda: now().finished_at)
    assert now().status == "cancelled"
    assert client.fine_tuning.jobs.cancel(job.id).status == "cancelled"
    with pytest.raises(openai.ConflictError) as refused:
        client.fine_tuning.jobs.resume(job.id)
    assert refused.value.code == "wrong_state"


def test_a_failed_job_says_why(stack: Stack, client: OpenAI, training_file: str) -> None:
    job = client.fine_tuning.jobs.create(model="broken", training_file=training_file)
    failed = finish(stack, client, job.id)
    assert failed.status == "failed"
    assert failed.error is not None
    assert (failed.error.code, failed.error.param) == ("training_failed", None)
    assert "the script fails here" in failed.error.message
    assert (failed.fine_tuned_model, failed.result_files) == (None, [])


def test_55_jobs_are_listed_while_others_arrive(server: str) -> None:
    """None twice and none left out, whatever comes on top meanwhile."""
    with OpenAI(base_url=server, api_key=key_for("many")) as client:
        file_id = client.files.create(file=("train.jsonl", rows()), purpose="fine-tune").id

        def create(number: int) -> str:
            job = client.fine_tuning.jobs.create(
                model="endless",
                training_file=file_id,
                metadata={"half": str(number % 2), "empty": ""},
                extra_body={"celora": {"gpu_model": "none such"}},
            )
            return job.id

        made = [create(number) for number in range(55)]
        seen: list[str] = []
        for job in client.fine_tuning.jobs.list(limit=7):
            seen.append(job.id)
            if len(seen) % 7 == 0:
                create(100)  # in the middle of a page
        assert seen == made[::-1]

        odd = [job.id for job in client.fine_tuning.jobs.list(limit=20, metadata={"half": "1"})]
        assert odd == made[1::2][::-1]
        assert not client.fine_tuning.jobs.list(metadata={"half": "7"}).data
        assert len(client.fine_tuning.jobs.list(metadata={"empty": ""}, limit=100).data) == 62
        assert not client.fine_tuning.jobs.list(extra_query={"metadata": "null"}).data


def test_each_error_is_the_clients_own_exception(
    server: str, client: OpenAI, training_file: str, succeeded: FineTuningJob
) -> None:
    jobs = client.fine_tuning.jobs
    with ExitStack() as clients:

        def other(key: str) -> OpenAI:
            return clients.enter_context(OpenAI(base_url=server, api_key=key, max_retries=0))

        with pytest.raises(openai.BadRequestError) as wrong:
            jobs.create(model="quick", training_file=training_file, seed=-1)
        assert wrong.value.param == "seed"
        with pytest.raises(openai.AuthenticationError) as unknown:
            other("sk-nobody").models.list()
        assert unknown.value.code == "invalid_api_key"
        with pytest.raises(openai.PermissionDeniedError):
            other(key_for(TENANT, "read")).fine_tuning.jobs.cancel(succeeded.id)
        stranger = other(key_for("strangers", "admin"))
        with pytest.raises(openai.NotFoundError) as theirs:
            stranger.fine_tuning.jobs.retrieve(succeeded.id)
        with pytest.raises(openai.NotFoundError) as nobodys:
            stranger.fine_tuning.jobs.retrieve("ftjob-none")
        assert theirs.value.message == nobodys.value.message.replace("ftjob-none", succeeded.id)
        with pytest.raises(openai.NotFoundError):
            stranger.models.delete(str(succeeded.fine_tuned_model))
        with pytest.raises(openai.ConflictError):
            jobs.pause(succeeded.id)
        busy = other(key_for("busy", "read", per_minute=1))
        busy.models.list()
        with pytest.raises(openai.RateLimitError) as limited:
            busy.models.list()
        assert int(limited.value.response.headers["retry-after"]) > 0
        assert limited.value.request_id


@pytest.mark.parametrize(
    ("sent", "param", "code"),
    [
        ({"training_file": "file-none"}, "training_file", "file_not_found"),
        ({"model": "gpt-4o-mini"}, "model", "model_not_found"),
        ({"model": "/etc"}, "model", "model_not_found"),
        ({"method": {"type": "reinforcement"}}, "method.type", "unsupported_method"),
        ({"hyperparameters": {"n_epochs": 51}}, "hyperparameters.n_epochs", None),
        ({"suffix": "x" * 65}, "suffix", None),
        ({"metadata": {"k" * 65: "v"}}, None, None),
        ({"extra_body": {"celora": {"rnak": 8}}}, "celora.rnak", "extra_forbidden"),
        ({"extra_body": {"celora": {"rank": 0}}}, "celora.rank", None),
        ({"seed": 1, "extra_body": {"celora": {"seed": 2}}}, "celora.seed", "given_twice"),
        ({"extra_body": {"celora": {"after": "ftjob-none"}}}, "after", "invalid_spec"),
        ({"extra_body": {"n_epochs": 3}}, "n_epochs", "extra_forbidden"),
    ],
)
def test_what_is_wrong_is_named(
    client: OpenAI, training_file: str, sent: dict[str, Any], param: str | None, code: str | None
) -> None:
    fields: dict[str, Any] = {"model": "quick", "training_file": training_file} | sent
    with pytest.raises(openai.BadRequestError) as refused:
        client.fine_tuning.jobs.create(**fields)
    assert isinstance(refused.value.body, dict)
    assert set(refused.value.body) == {"message", "type", "param", "code"}
    if param is not None:
        assert refused.value.param == param or str(refused.value.param).startswith(param)
    if code is not None:
        assert refused.value.code == code


def test_dpo_and_wandb_are_answered_as_they_were_asked(client: OpenAI) -> None:
    training_file = client.files.create(file=("pairs.jsonl", pairs()), purpose="fine-tune").id
    run = {"project": "bots", "name": "first", "entity": "team", "tags": ["a", "b"]}
    job = client.fine_tuning.jobs.create(
        model="endless",
        training_file=training_file,
        integrations=[{"type": "wandb", "wandb": run}],  # type: ignore[typeddict-item]
        method={"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.2, "n_epochs": "auto"}}},
        extra_body={"celora": {"gpu_model": "none such", "dpo_base": "qlora"}},
    )
    assert job.method is not None
    assert job.method.type == "dpo"
    assert job.method.dpo is not None
    assert job.method.dpo.hyperparameters is not None
    assert job.method.dpo.hyperparameters.beta == 0.2
    assert job.integrations is not None
    assert job.integrations[0].wandb.model_dump() == run
    client.fine_tuning.jobs.cancel(job.id)


def test_the_same_key_makes_no_second_job(stack: Stack, client: OpenAI) -> None:
    training_file = client.files.create(file=("once.jsonl", rows()), purpose="fine-tune").id

    def create(seed: int) -> FineTuningJob:
        return client.fine_tuning.jobs.create(
            model="endless",
            training_file=training_file,
            seed=seed,
            extra_headers={"Idempotency-Key": "once"},
        )

    first = create(1)
    assert create(1).id == first.id
    with pytest.raises(openai.ConflictError) as refused:
        create(2)
    assert refused.value.code == "idempotency_key_reused"
    client.fine_tuning.jobs.cancel(first.id)
    stack.wait_until("it ends", lambda: client.fine_tuning.jobs.retrieve(first.id).finished_at)
    client.files.delete(training_file)
    assert create(1).id == first.id  # an answer that was not heard is given again, come what may


def test_the_short_form(stack: Stack, raw: httpx.Client, training_file: str) -> None:
    sent = {"base_model": "quick", "dataset": training_file, "epochs": 1, "name": "short"}
    made = raw.post("/finetune", json=sent, headers={"idempotency-key": "short"})
    assert made.status_code == 200, made.text
    job_id = made.json()["job_id"]
    again = raw.post("/finetune", json=sent, headers={"idempotency-key": "short"})
    assert again.json()["job_id"] == job_id
    done = stack.wait_until(
        "it ends",
        lambda: (now := raw.get(f"/finetune/{job_id}").json())["status"] == "completed" and now,
    )
    assert (done["step"], done["fine_tuned_model"][:9]) == (12, "ft:quick:")
    assert done["evaluation"]["tuned"]["exact_match"] > done["evaluation"]["base"]["exact_match"]
    wrong = raw.post("/finetune", json=sent | {"rnak": 8})
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "rnak")
    outside = raw.post("/finetune", json=sent | {"dataset": "/etc/passwd"})
    assert outside.json()["error"]["code"] == "dataset_not_allowed"


def test_the_example_runs(server: str, client: OpenAI) -> None:
    example = Path(__file__).parents[2] / "examples" / "openai_client.py"
    theirs = {
        "CELORA_API_URL": server,
        "CELORA_API_KEY": client.api_key,
        "CELORA_API_MODEL": "quick",
    }
    done = subprocess.run(
        [sys.executable, str(example)],
        env=os.environ | theirs,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "uploaded smart_home.jsonl" in done.stdout
    assert "12 steps; loss from" in done.stdout


def test_a_webhook_is_verified(
    stack: Stack,
    client: OpenAI,
    succeeded: FineTuningJob,
    receiver: Receiver,
    webhook_secret: str,
) -> None:
    def heard() -> Any:
        for got in receiver.got:
            event: Any = client.webhooks.unwrap(got.body, got.headers, secret=webhook_secret)
            if event.data.id == succeeded.id:
                return event
        return None

    event = stack.wait_until("the webhook has come", heard)
    assert event.type == "fine_tuning.job.succeeded"
    got = receiver.got[0]
    with pytest.raises(openai.InvalidWebhookSignatureError):
        client.webhooks.unwrap(got.body + b" ", got.headers, secret=webhook_secret)


def test_models_are_listed_and_deleted(stack: Stack, client: OpenAI, training_file: str) -> None:
    job = client.fine_tuning.jobs.create(model="quick", training_file=training_file)
    name = finish(stack, client, job.id).fine_tuned_model
    assert name is not None
    listed = {model.id: model for model in client.models.list()}
    assert listed[name].owned_by == TENANT
    assert set(ALIASES) <= set(listed)
    assert client.models.retrieve(name).id == name
    with pytest.raises(openai.PermissionDeniedError):
        client.models.delete("quick")
    onward = client.fine_tuning.jobs.create(
        model="quick",
        training_file=training_file,
        extra_body={
            "celora": {"after": job.id, "start_from_adapter": True, "gpu_model": "none such"}
        },
    )
    with pytest.raises(openai.ConflictError):
        client.models.delete(name)
    client.fine_tuning.jobs.cancel(onward.id)
    stack.wait_until(
        "it needs nothing more", lambda: client.fine_tuning.jobs.retrieve(onward.id).finished_at
    )
    gone = client.models.delete(name)
    assert (gone.id, gone.deleted) == (name, True)
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve(name)
    assert name not in {model.id for model in client.models.list()}


def test_a_server_that_stops_lets_its_watchers_go(
    stack: Stack, client: OpenAI, raw: httpx.Client, training_file: str
) -> None:
    """At once and not after its patience; they go on at another server, behind what they had."""
    job = client.fine_tuning.jobs.create(
        model="endless",
        training_file=training_file,
        extra_body={"celora": {"gpu_model": "none such"}},
    )
    running = stack.start("api", "--port", "0")
    found = re.compile(r"http://127\.0\.0\.1:\d+")
    url = stack.wait_until("it serves", lambda: found.search(running.said())).group()
    path, headers = f"/v1/fine_tuning/jobs/{job.id}/stream", dict(raw.headers)
    with httpx.stream("GET", url + path, headers=headers, timeout=60) as watched:
        lines = watched.iter_lines()
        last = next(line for line in lines if line.startswith("id: "))
        began = time.monotonic()
        running.process.terminate()
        rest = list(lines)
    running.process.wait(30)  # uvicorn then ends by the signal itself
    assert "Application shutdown complete" in running.said()
    assert "timeout graceful shutdown" not in running.said()
    assert time.monotonic() - began < 15
    assert "event: end" not in rest
    last = next((line for line in reversed(rest) if line.startswith("id: ")), last)
    client.fine_tuning.jobs.cancel(job.id)
    more = raw.get(path, headers={"last-event-id": last.removeprefix("id: ")}).text
    assert "event: end" in more
    assert "Submitted by" not in more


def test_serving_is_off_unless_it_is_set(client: OpenAI, succeeded: FineTuningJob) -> None:
    with pytest.raises(openai.NotFoundError) as refused:
        client.chat.completions.create(
            model=str(succeeded.fine_tuned_model), messages=[{"role": "user", "content": "hi"}]
        )
    assert refused.value.code == "serving_off"
