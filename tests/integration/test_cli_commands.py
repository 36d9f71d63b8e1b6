"""Commands on a real database: what they print, their JSON, their exit codes."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from celora.client import pause
from models.queries import history, products
from models.session import transaction
from models.states import Outcome, Stage
from tasks.dispatcher import forecast
from tests import records

pytestmark = pytest.mark.usefixtures("database", "_empty")

Celora = Callable[..., tuple[int, str, str]]


@pytest.fixture
def _empty(database: str) -> None:  # noqa: ARG001 (after the database, before each test)
    records.clear()


def submit(celora: Celora, *more: str) -> dict[str, Any]:
    code, out, err = celora(
        "submit", "--base-model", "org/base", "--dataset", "org/rows", "--json", *more
    )
    assert (code, err) == (0, "")
    answer: dict[str, Any] = json.loads(out)
    return answer


def test_submit_and_read_back(celora: Celora) -> None:
    made = submit(celora, "--map", "prompt=question", "--tenant", "physics", "--user", "ada")
    code, out, _ = celora("job", made["id"], "--json")
    assert code == 0
    record = json.loads(out)
    assert record["spec"]["columns"] == {"prompt": "question"}
    assert record["tenant"] == "physics"
    assert [event["kind"] for event in record["events"]] == ["submitted"]
    code, out, _ = celora("jobs", "--json")
    assert [job["id"] for job in json.loads(out)] == [made["id"]]
    code, out, _ = celora("jobs")
    assert made["id"] in out
    assert "physics" in out


def test_submit_from_a_file_with_an_option_on_top(celora: Celora, tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("base_model: org/base\ndataset: org/rows\nrank: 8\nseed: 3\n")
    code, out, _ = celora("submit", "--spec", str(file), "--rank", "4", "--json")
    assert code == 0
    spec = json.loads(out)["spec"]
    assert (spec["rank"], spec["seed"]) == (4, 3)


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (("--dataset", "d"), "--base-model"),
        (("--base-model", "b", "--dataset", "d", "--rank", "0"), "--rank"),
        (("--base-model", "b", "--dataset", "d", "--map", "nonsense=x"), "--map"),
    ],
)
def test_a_wrong_field_is_told_as_its_option(
    celora: Celora, arguments: tuple[str, ...], option: str
) -> None:
    code, out, err = celora("submit", *arguments)
    assert code == 2
    assert out == ""
    assert err.startswith(f"error: {option}: ")


def test_changing_a_job(celora: Celora) -> None:
    job = submit(celora)["id"]
    assert celora("pause", job)[1] == f"{job} is paused\n"
    assert celora("resume", "last")[1] == f"{job} is pending\n"
    assert celora("cancel", job[:15])[1] == f"{job} is cancelled\n"
    code, _, err = celora("retry", job)
    assert code == 4
    assert "What to do:" in err
    assert celora("cancel", "ftjob-none")[0] == 2


def test_asking_a_running_job_to_stop(celora: Celora) -> None:
    claim = records.running()
    code, out, _ = celora("cancel", claim.job_id)
    assert (code, out) == (0, f"{claim.job_id} is running; asked to stop (cancel)\n")


def test_why(celora: Celora) -> None:
    job = records.queued()
    assert celora("why", job)[1].startswith("No GPU worker is running")
    assert json.loads(celora("why", job, "--json")[1])["reason"] == "no_worker"


def test_when_a_job_is_expected_to_start(celora: Celora) -> None:
    records.running()
    job = records.queued()
    assert forecast.pass_once() == 1
    said = celora("why", job)[1]
    assert "All GPUs that take jobs are busy (1). (number 1 in the queue)" in said
    assert "Expected start: " in said
    assert "in 30 min" in said or "in 29 min" in said
    assert "after 1 job, no measurement yet: assumed 30 min each." in said
    answer = json.loads(celora("why", job, "--json")[1])
    assert datetime.fromisoformat(answer["expected_start_at"]) > datetime.now(UTC)
    assert (answer["position"], answer["limit"]) == (1, None)
    assert "#1 in " in celora("jobs")[1]
    assert "expected start" in celora("job", job)[1]
    in_record = json.loads(celora("job", job, "--json")[1])["why"]
    assert in_record.keys() == answer.keys()
    assert in_record["basis"] == answer["basis"]


def test_tables_fit_80_columns(celora: Celora, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    job = records.running(name="a name of some length", tenant="physics").job_id
    waits = records.queued(name="another", tenant="chemistry")
    forecast.pass_once()
    for command in ("jobs", "gpus"):
        lines = celora(command)[1].splitlines()
        assert max(map(len, lines)) <= 80
        assert sum(job[:14] in line for line in lines) == 1  # a job is one line
        assert len(lines) == (4 if command == "jobs" else 3)
    assert celora("why", waits[:14])[0] == 0


def test_what_to_do_next(celora: Celora) -> None:
    error = {"code": "x", "message": "too hot", "remedy": "cool it"}
    job = finish(Outcome.FAILED, error=error)
    said = celora("why", job)[1]
    assert "it is failed" in said
    assert "too hot\n  What to do: cool it" in said
    said = celora("job", job)[1]
    assert f"celora retry {job}" in said
    tried = [
        line.rstrip().split(maxsplit=1) for line in said.splitlines() if " on worker@host" in line
    ]
    assert tried == [["preparations", "1, on worker@host"], ["attempts", "1, on worker@host"]]


def test_data_that_is_not_here_is_noted(celora: Celora, tmp_path: Path) -> None:
    missing = tmp_path / "rows.jsonl"
    code, out, err = celora("submit", "--base-model", "org/base", "--dataset", str(missing))
    assert code == 0
    assert out.startswith("submitted ")
    assert f"note: {missing} is not on this machine" in err


def test_gpus_and_cordon(celora: Celora) -> None:
    assert "No GPU has reported" in celora("gpus")[1]
    records.add_gpu()
    assert "free" in celora("gpus")[1]
    assert celora("cordon", "host:0")[0] == 0
    assert [gpu["state"] for gpu in json.loads(celora("gpus", "--json")[1])] == ["cordoned"]
    assert json.loads(celora("cordon", "host:0", "--off", "--json")[1])["state"] == "free"
    assert celora("cordon", "host:7")[0] == 2
    assert celora("cordon", "host")[0] == 2


def finish(outcome: Outcome, **details: Any) -> str:
    claim = records.running(evaluate=False)
    if outcome is Outcome.PAUSED:
        pause(claim.job_id)
    records.end(claim.job_id, claim.fence, outcome, **details)
    return claim.job_id


@pytest.mark.parametrize(
    ("outcome", "code"), [(Outcome.COMPLETED, 0), (Outcome.CANCELLED, 4), (Outcome.PAUSED, 4)]
)
def test_watch_ends_with_the_job(celora: Celora, outcome: Outcome, code: int) -> None:
    job = finish(outcome)
    answered, out, _ = celora("watch", job)
    assert answered == code
    assert f"{job} is {outcome}" in out
    assert "\x1b" not in out


def test_watch_tells_why_a_job_failed(celora: Celora) -> None:
    problem = {"line": 7, "what": "no answer", "remedy": "write one"}
    error = {
        "code": "invalid_data", "message": "1 row cannot be used", "where": "rows.jsonl",
        "remedy": "mend the file", "problems": [problem], "problem_count": 3,
    }  # fmt: skip
    code, _, err = celora("watch", finish(Outcome.FAILED, error=error))
    assert code == 1
    assert err == (
        "error: rows.jsonl: 1 row cannot be used\n"
        "  line 7: no answer (write one)\n  … and 2 more\n  What to do: mend the file\n"
    )


def test_job_tells_all_that_is_on_record(celora: Celora) -> None:
    claim = records.running()
    who = (claim.job_id, claim.fence)
    with transaction() as session:
        history.record_metrics(
            session,
            *who,
            Stage.TRAIN,
            [("train_loss", 1, 2.0), ("train_loss", 2, 1.0), ("step_seconds", 2, 30.0)],
            progress=history.Progress(step=2, epoch=2.0, trained_tokens=1234),
        )
        products.register_checkpoint(
            session, *who, step=2, url="/c/2", size_bytes=10, trained_tokens=5, metrics={}
        )
        products.register_artifact(session, *who, kind="adapter", url="/a", size_bytes=2048)
        for subject, match in (("base", 0.0), ("tuned", 0.9)):
            products.record_evaluation(
                session, *who, subject=subject, rows=10, generated_rows=10, loss=1.0,
                perplexity=2.7, token_accuracy=0.5, seconds=1.0, exact_match=match,
            )  # fmt: skip
        answers: dict[str, str | None] = {"expected": "e", "base_answer": "b", "tuned_answer": "t"}
        products.record_samples(session, *who, [{"prompt": "p"} | answers])
    record = json.loads(celora("job", claim.job_id, "--json")[1])
    curve = next(one for one in record["metrics"] if one["name"] == "train_loss")
    assert (curve["name"], curve["points"], curve["first"], curve["last"]) == (
        "train_loss",
        2,
        2,
        1,
    )
    assert record["checkpoints"][0]["step"] == 2
    assert record["artifacts"][0]["url"] == "/a"
    assert {e["subject"]: e["exact_match"] for e in record["evaluations"]} == {
        "base": 0.0,
        "tuned": 0.9,
    }
    assert record["samples"] == [{"prompt": "p"} | answers]
    assert [a["outcome"] for a in record["attempts"]] == ["completed", None]
    assert record["verdict"]["rows_train"] == 10
    assert [one["stage"] for one in record["times"]["stages"]] == ["preprocess", "train"]
    assert record["times"]["epochs"] == [
        {"epoch": 1, "steps": 1, "seconds": 30.0},
        {"epoch": 2, "steps": 1, "seconds": 30.0},
    ]
    shown = celora("job", claim.job_id)[1]
    for part in (
        "running", "/c/2", "2.0 kB", "exact match", "90.0%", "10 to train on", "1,234",
        "stages", "preprocess ", "1: 30 s, 2: 30 s",
    ):  # fmt: skip
        assert part in shown, part


def test_logs(celora: Celora) -> None:
    claim = records.running(evaluate=False)
    assert "no log lines" in celora("logs", claim.job_id)[2]
    with transaction() as session:
        lines = [("info", f"line {number}") for number in range(1200)]
        history.record_logs(session, claim.job_id, claim.fence, Stage.TRAIN, lines)
        history.record_logs(
            session, claim.job_id, claim.fence, Stage.TRAIN, [("error", "it went wrong")]
        )
    out = celora("logs", claim.job_id)[1].splitlines()
    assert len(out) == 1201
    assert out[-1].endswith("train error: it went wrong")
    assert len(celora("logs", claim.job_id, "--tail", "3")[1].splitlines()) == 3
    assert json.loads(celora("logs", "last", "-n", "1", "--json")[1])["level"] == "error"
    records.end(claim.job_id, claim.fence, Outcome.COMPLETED)
    assert celora("logs", "-f", "-n", "2", claim.job_id)[0] == 0


def test_db(celora: Celora) -> None:
    assert celora("db", "upgrade")[0] == 0
    code, out, _ = celora("db", "current", "--json")
    assert code == 0
    assert json.loads(out)["current"] == json.loads(out)["head"]
    assert celora("db", "url")[1].startswith("postgresql://")
