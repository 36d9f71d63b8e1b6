"""What each tracker's own reader finds after a job, and that no tracker can hold a job up.

W&B and MLflow run in a process of their own, as in a worker: they start servers, threads and
loggers that outlive a test.
"""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gpu_worker import trackers
from gpu_worker.tracker_runs import numbers
from models.spec import JobSpec, parse_spec
from models.states import Outcome
from tests.environment import variables

_SPEC = {"base_model": "owner/model", "dataset": "data.jsonl", "name": "my job", "rank": 4}

# A job for each outcome: an attempt that is preempted, and one that repeats a step and ends so.
_TWO_ATTEMPTS = """
import json, sys, time
from gpu_worker import trackers
from models.spec import parse_spec
from models.states import Outcome
spec, warnings = parse_spec(json.loads(sys.argv[1])), []
began = time.monotonic()
for number, outcome in enumerate(sys.argv[2:]):
    first = trackers.Trackers(warnings.append)
    first.start(spec, f"ftjob-{number}")
    first.log([("train_loss", 1, 1.0), ("learning_rate", 1, 0.1), ("train_loss", 2, 0.9)])
    first.finish(outcome=Outcome.PREEMPTED)
    second = trackers.Trackers(warnings.append)
    second.start(spec, f"ftjob-{number}")
    second.log([("train_loss", 2, 0.5), ("train_loss", 3, 0.25)])
    second.finish({"tuned": {"loss": 0.125}, "precision": "bf16"}, Outcome[outcome])
seconds = time.monotonic() - began
went = trackers.wait(90)
print(json.dumps({"warnings": warnings, "seconds": seconds, "went": went}))
"""


@pytest.fixture(autouse=True)
def home(tmp_path: Path) -> Iterator[Path]:
    with variables(CELORA_HOME=str(tmp_path)):
        yield tmp_path


def _spec(*track: str, **fields: Any) -> JobSpec:
    return parse_spec(_SPEC | {"track": track} | fields)


def _run(track: list[str], *outcomes: str, before: str = "", **environment: str) -> dict[str, Any]:
    known = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB_", "MLFLOW_"))}
    ran = subprocess.run(
        [
            sys.executable,
            "-c",
            before + _TWO_ATTEMPTS,
            json.dumps(_SPEC | {"track": track}),
            *outcomes,
        ],
        env=known | {"WANDB_MODE": "offline"} | environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=150,
    )
    told: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    assert told["seconds"] < 5  # whatever the trackers need, the job did not wait for it
    return told


def test_tensorboard_reads_the_curve_of_both_attempts(home: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    warnings: list[str] = []
    for outcome, points in (
        (Outcome.PREEMPTED, [("train_loss", 1, 1.0), ("eval_loss", 1, 2.0)]),
        (Outcome.COMPLETED, [("train_loss", 2, 0.5), ("train_loss", 3, 0.25)]),
    ):
        followed = trackers.Trackers(warnings.append)
        followed.start(_spec("tensorboard", track_project="../our project"), "ftjob-abc")
        followed.log(points)
        followed.finish({"tuned": {"loss": 0.125}}, outcome)

    assert trackers.wait(60)
    assert not warnings
    read = EventAccumulator(str(home / "tensorboard" / "-our-project" / "ftjob-abc"))
    read.Reload()
    curve = [(point.step, point.value) for point in read.Scalars("train_loss")]
    assert curve == [(1, 1.0), (2, 0.5), (3, 0.25)]
    assert [(p.step, p.value) for p in read.Scalars("eval_loss")] == [(1, 2.0)]
    assert read.Scalars("result/tuned/loss")[-1].value == 0.125


_READ_MLFLOW = """
import json, sys
from mlflow import MlflowClient
client = MlflowClient(sys.argv[1])
experiment = client.get_experiment_by_name("celora").experiment_id
runs = client.search_runs([experiment])
history = [client.get_metric_history(run.info.run_id, "train_loss") for run in runs]
print(json.dumps([
    [run.info.status, run.info.run_name, run.data.params["rank"], run.data.metrics,
     [(point.step, point.value) for point in points]]
    for run, points in zip(runs, history)]))
"""


@pytest.mark.slow  # mlflow takes long to load
def test_mlflow_has_one_run_over_both_attempts(home: Path) -> None:
    told = _run(["mlflow"], "COMPLETED", "FAILED", "LOST")

    assert told["went"]
    assert not told["warnings"]
    read = subprocess.run(
        [sys.executable, "-c", _READ_MLFLOW, f"sqlite:///{home / 'mlflow.db'}"],
        capture_output=True,
        text=True,
        check=True,
    )
    runs = {status: rest for status, *rest in json.loads(read.stdout)}
    assert set(runs) == {"FINISHED", "FAILED", "SCHEDULED"}
    for name, rank, latest, curve in runs.values():
        assert (name, rank) == ("my job", "4")
        assert latest["result/tuned/loss"] == 0.125
        assert sorted(curve) == [[1, 1.0], [2, 0.5], [2, 0.9], [3, 0.25]]


_READ_WANDB = """
import json, sys
from wandb.proto.wandb_internal_pb2 import Record
data, at, rows, run = open(sys.argv[1], "rb").read(), 7, [], {}
while at < len(data):  # LevelDB's log: checksum 4, length 2, type 1, then the record
    length = int.from_bytes(data[at + 4 : at + 6], "little")
    record = Record()
    record.ParseFromString(data[at + 7 : at + 7 + length])
    at += 7 + length
    if record.HasField("history"):
        values = {"/".join(i.nested_key) or i.key: i.value_json for i in record.history.item}
        rows.append({k: json.loads(v) for k, v in values.items() if not k.startswith("_")})
    if record.HasField("run"):
        config = {item.key: json.loads(item.value_json) for item in record.run.config.update}
        run = {"id": record.run.run_id, "name": record.run.display_name,
               "project": record.run.project, "rank": config.get("rank")}
print(json.dumps({"rows": rows, "run": run}))
"""


def test_wandb_gets_both_attempts_under_the_jobs_id(home: Path) -> None:
    told = _run(["wandb"], "COMPLETED")

    assert told["went"]
    assert not told["warnings"]
    files = sorted((home / "wandb").rglob("*.wandb"))
    assert files
    read = [
        json.loads(subprocess.check_output([sys.executable, "-c", _READ_WANDB, str(file)]))
        for file in files
    ]
    run = {"id": "ftjob-0", "name": "my job", "project": "celora", "rank": 4}
    assert all(part["run"] == run for part in read)
    rows = [row for part in read for row in part["rows"]]
    assert {"step": 1, "train_loss": 1.0, "learning_rate": 0.1} in rows
    assert {"step": 3, "train_loss": 0.25} in rows


def test_a_missing_library_is_said_and_the_others_go_on(home: Path) -> None:
    told = _run(
        ["mlflow", "tensorboard"], "COMPLETED", before="import sys; sys.modules['mlflow'] = None\n"
    )

    assert told["went"]
    expected = "mlflow is not installed on this worker: pip install 'celora[track]'"
    assert told["warnings"] == [expected] * 2  # once for each attempt
    assert list(home.rglob("events.out.tfevents.*"))


def test_a_tracker_that_fails_is_said_once(home: Path) -> None:
    (home / "tensorboard").write_text("in the way of the folder")
    warnings: list[str] = []
    followed = trackers.Trackers(warnings.append)
    followed.start(_spec("tensorboard"), "ftjob-abc")
    for step in range(5):
        followed.log([("train_loss", step, 1.0)])
    followed.finish()

    assert trackers.wait(60)
    [warning] = warnings
    assert warning.startswith("tensorboard gets no more of this job: ")


_STUCK = """
import json, sys, time
from gpu_worker import trackers
from models.spec import parse_spec
warnings = []
followed = trackers.Trackers(warnings.append)
began = time.monotonic()
followed.start(parse_spec(json.loads(sys.argv[1])), "ftjob-abc")
for step in range(3000):
    followed.log([("train_loss", step, 1.0)])
followed.finish()
print(json.dumps({"seconds": time.monotonic() - began, "warnings": warnings}))
"""


def test_a_server_that_never_answers_holds_nothing_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections, says nothing
        began = time.monotonic()
        ran = subprocess.run(
            [sys.executable, "-c", _STUCK, json.dumps(_SPEC | {"track": ["mlflow"]})],
            env=os.environ | {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{silent.getsockname()[1]}"},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )

    told = json.loads(ran.stdout.splitlines()[-1])
    assert told["seconds"] < 5
    assert told["warnings"] == [
        "mlflow is too slow: some of the job's metrics will be missing there"
    ]
    assert time.monotonic() - began < 60  # nor did it keep the process from ending


def test_a_result_gives_its_finite_numbers() -> None:
    result = {"a": 1, "b": {"c": 0.5, "d": "text"}, "e": True, "f": float("nan"), "g": [1]}

    assert numbers(result) == {"a": 1.0, "b/c": 0.5}


def test_the_supervisor_stays_light() -> None:
    check = (
        "import sys, gpu_worker.trackers;"
        "sys.exit(str({'torch', 'wandb', 'mlflow', 'tensorboard'} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=False)
    assert ran.stderr.strip() == "set()"
