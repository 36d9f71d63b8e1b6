"""All that is on record about one job, read in one transaction."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from celora.times import Times, times_of
from celora.views import Artifact, Attempt, Checkpoint, Evaluation, Event, Job, Metric, Sample
from models.queries import history, jobs, products
from models.queries.adapter_views import references_of
from models.queries.clock import database_time
from models.queries.ratings import win_rate_of
from models.queries.waiting import Why, why_waiting
from models.session import transaction
from models.win_rate import WinRate

_EVENTS = 10_000


@dataclass(frozen=True, slots=True)
class Record:
    job: Job
    why: Why
    attempts: list[Attempt]  # the first placed first
    metrics: list[Metric]
    read_at: datetime  # on the database's clock
    checkpoints: list[Checkpoint]  # those that stand, the newest first
    artifacts: list[Artifact]
    evaluations: list[Evaluation]
    samples: list[Sample]
    win_rate: WinRate  # by people who rated the samples
    adapters: list[str]  # the versions that its adapter is: support-bot/3
    events: list[Event]

    @property
    def times(self) -> Times:
        """Where its time went."""
        return times_of(self.job, self.attempts, self.metrics, self.events, self.read_at)

    def as_json(self) -> dict[str, Any]:
        """JSON types only; the job's fields on top, metrics as a summary by stage and name."""
        return self.job.model_dump(mode="json", warnings=False) | {
            "why": _why(self.why),
            "times": asdict(self.times),
            "attempts": _dump(self.attempts),
            "metrics": self.metrics_summary(),
            "checkpoints": _dump(self.checkpoints),
            "artifacts": _dump(self.artifacts),
            "evaluations": _dump(self.evaluations),
            "samples": _dump(self.samples),
            "win_rate": self.win_rate.as_json(),
            "adapters": self.adapters,
            "events": _dump(self.events),
        }

    def metrics_summary(self) -> list[dict[str, Any]]:
        """Per stage and metric: how many points, first, last, least and greatest value."""
        curves: dict[tuple[str, str], list[Metric]] = defaultdict(list)
        for point in self.metrics:
            curves[point.stage, point.name].append(point)
        return [
            {
                "stage": stage,
                "name": name,
                "points": len(curve),
                "first": curve[0].value,
                "last": curve[-1].value,
                "min": min(point.value for point in curve),
                "max": max(point.value for point in curve),
                "last_step": curve[-1].step,
            }
            for (stage, name), curve in curves.items()
        ]


def read(text: str) -> Record:
    """By id, unique beginning, or "last". Raises NotFoundError, InputError, UnavailableError."""
    with transaction() as session:
        job_id = jobs.resolve_job_id(session, text)
        job = Job.of(jobs.get_job(session, job_id))
        return Record(
            job=job,
            why=why_waiting(session, job_id),
            attempts=[Attempt.model_validate(a) for a in jobs.attempts_of(session, job_id)],
            metrics=[Metric(*row) for row in history.metrics_of(session, job_id)],
            read_at=database_time(session),
            checkpoints=[
                Checkpoint.model_validate(c) for c in products.checkpoints_of(session, job_id)
            ],
            artifacts=[Artifact.model_validate(a) for a in products.artifacts_of(session, job_id)],
            evaluations=_evaluations(job, products.evaluations_of(session, job_id)),
            samples=[Sample.model_validate(s) for s in products.samples_of(session, job_id)],
            win_rate=win_rate_of(session, job_id),
            adapters=references_of(session, job_id),
            events=[
                Event.model_validate(e) for e in history.events_of(session, job_id, limit=_EVENTS)
            ],
        )


def _evaluations(job: Job, rows: dict[str, Any]) -> list[Evaluation]:
    """With what a dpo job's result has beside the rows: how each model ranked the pairs."""
    rankings = (job.result or {}).get("evaluation", {}).get("preferences") or {}
    found = []
    for subject, row in rows.items():
        ranking = rankings.get(subject, {})
        more = {
            "preference_accuracy": ranking.get("accuracy"),
            "reward_margin": ranking.get("reward_margin"),
            "reward_accuracy": ranking.get("reward_accuracy"),
        }
        found.append(Evaluation.model_validate(row).model_copy(update=more))
    return found


def _why(why: Why) -> dict[str, Any]:
    start = why.expected_start_at
    return asdict(why) | {"expected_start_at": None if start is None else start.isoformat()}


def _dump(views: list[Any]) -> list[dict[str, Any]]:
    return [view.model_dump(mode="json") for view in views]
