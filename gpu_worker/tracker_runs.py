"""A job's run in each tracker's own terms. A library is imported when a job asks for it.

A job that stops and goes on has one run: W&B and MLflow find it by the job's id, and TensorBoard
merges the event files of a folder. Keys and addresses are the libraries' own environment
variables on the worker (WANDB_API_KEY, MLFLOW_TRACKING_URI, …).
"""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Protocol, TypeVar

from models.settings import settings
from models.spec import JobSpec
from models.states import Outcome

Point = tuple[str, int, float]  # name, optimizer step, value
_PROJECT = "celora"

T = TypeVar("T")


class TrackerRun(Protocol):
    def log(self, points: Sequence[Point]) -> None: ...
    def finish(self, result: Mapping[str, float], outcome: Outcome) -> None: ...


def numbers(result: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The finite numbers of a nested result, under names like `tuned/loss`."""
    found: dict[str, float] = {}
    for name, value in result.items():
        if isinstance(value, Mapping):
            found |= numbers(value, f"{prefix}{name}/")
        elif (
            isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        ):
            found[prefix + name] = float(value)
    return found


class _Wandb:
    def __init__(self, spec: JobSpec, job_id: str) -> None:
        import wandb

        folder = settings().at_home("wandb")
        folder.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            project=spec.track_project or _PROJECT,
            id=job_id,
            name=spec.track_name or spec.name or job_id,
            entity=spec.track_entity,
            tags=spec.track_tags or None,
            config=spec.model_dump(mode="json"),
            resume="allow",
            dir=str(folder),
            settings=wandb.Settings(silent=True, console="off"),
        )
        # Its own step must never go back, which a resumed job's does.
        self._run.define_metric("*", step_metric="step")

    def log(self, points: Sequence[Point]) -> None:
        for step, values in _by_step(points):
            self._run.log(values | {"step": step})

    def finish(self, result: Mapping[str, float], outcome: Outcome) -> None:
        self._run.summary.update(dict(result))
        self._run.finish(exit_code=1 if outcome == Outcome.FAILED else 0)


class _TensorBoard:
    """Writes event files without torch, whose own writer the supervisor may not import."""

    def __init__(self, spec: JobSpec, job_id: str) -> None:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        project = re.sub(r"[^\w-]+", "-", spec.track_project or _PROJECT)
        folder = settings().at_home("tensorboard", project, job_id)
        self._writer = EventFileWriter(str(folder))
        self._last_step = 0

    def log(self, points: Sequence[Point]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        for step, values in _by_step(points):
            self._last_step = max(self._last_step, step)
            rows = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
            event = Event(wall_time=time.time(), step=step, summary=Summary(value=rows))
            self._writer.add_event(event)

    def finish(self, result: Mapping[str, float], outcome: Outcome) -> None:
        del outcome  # an event file knows no state
        self.log([(f"result/{name}", self._last_step, value) for name, value in result.items()])
        self._writer.close()


class _Mlflow:
    """Through the client, which has no active run: MLflow's own is one per process."""

    _TAG = "celora.job_id"
    _MOST_METRICS, _MOST_PARAMS = 1000, 100  # of one request
    _STATUS: ClassVar = {
        Outcome.COMPLETED: "FINISHED",
        Outcome.FAILED: "FAILED",
        Outcome.CANCELLED: "KILLED",
    }

    def __init__(self, spec: JobSpec, job_id: str) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow import MlflowClient
        from mlflow.entities import Param

        where = None
        if "MLFLOW_TRACKING_URI" not in os.environ:
            where = f"sqlite:///{settings().at_home('mlflow.db')}"
        self._client = MlflowClient(tracking_uri=where)
        experiment = self._experiment(spec.track_project or _PROJECT)
        runs = self._client.search_runs([experiment], f"tags.`{self._TAG}` = '{job_id}'")
        if runs:
            self._run_id = runs[0].info.run_id
            self._client.update_run(self._run_id, status="RUNNING")
            return
        run = self._client.create_run(
            experiment, run_name=spec.name or job_id, tags={self._TAG: job_id}
        )
        self._run_id = run.info.run_id
        told = spec.model_dump(mode="json", exclude_none=True)
        params = [Param(name, str(value)) for name, value in told.items()]
        for some in _parts(params, self._MOST_PARAMS):
            self._client.log_batch(self._run_id, params=some)

    def log(self, points: Sequence[Point]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        for some in _parts(points, self._MOST_METRICS):
            metrics = [Metric(name, value, now, step) for name, step, value in some]
            self._client.log_batch(self._run_id, metrics=metrics)

    def finish(self, result: Mapping[str, float], outcome: Outcome) -> None:
        self.log([(f"result/{name}", 0, value) for name, value in result.items()])
        status = self._STATUS.get(outcome)
        if status is None:  # it goes on elsewhere, or later
            self._client.update_run(self._run_id, status="SCHEDULED")
        else:
            self._client.set_terminated(self._run_id, status)

    def _experiment(self, name: str) -> str:
        from mlflow.exceptions import MlflowException

        found = self._client.get_experiment_by_name(name)
        if found is None:
            try:
                return str(self._client.create_experiment(name))
            except MlflowException:  # another worker was faster
                found = self._client.get_experiment_by_name(name)
                if found is None:
                    raise
        return str(found.experiment_id)


OPENERS: dict[str, Callable[[JobSpec, str], TrackerRun]] = {
    "wandb": _Wandb,
    "tensorboard": _TensorBoard,
    "mlflow": _Mlflow,
}


def _parts(items: Sequence[T], size: int) -> Iterator[list[T]]:
    for start in range(0, len(items), size):
        yield list(items[start : start + size])


def _by_step(points: Sequence[Point]) -> Iterator[tuple[int, dict[str, float]]]:
    steps: dict[int, dict[str, float]] = {}
    for name, step, value in points:
        steps.setdefault(step, {})[name] = value
    yield from sorted(steps.items())
