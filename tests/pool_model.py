"""What test_state_machine.py believes of the pool, and what it asks the tables."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import text

from models.states import JobState, Stage

LIMITS: tuple[dict[str, Any], ...] = (
    {},
    {"max_running_jobs": 1},
    {"user_max_running_jobs": 1},
    {"max_running_jobs": 0},
    {"gpu_hours_per_month": 0.0},
    {"max_queued_jobs": 1},
    {"may_preempt": False},
)
NO_LIMITS: dict[str, Any] = {
    "max_running_jobs": None,
    "user_max_running_jobs": None,
    "gpu_hours_per_month": None,
    "max_queued_jobs": None,
    "may_preempt": True,
}


@dataclass
class Holder:
    """The live attempt of a job, as the model has it."""

    fence: int
    gpu: int | None  # index; none: preparation
    session: str | None = None  # of the worker that claimed it
    stages: set[Stage] = field(default_factory=set)


@dataclass
class Slot:
    """A GPU, as far as it decides whether a job may come."""

    id: int
    session: int = 0
    idle: bool = True
    fresh: bool = True
    cordoned: bool = False

    @property
    def takes_jobs(self) -> bool:
        return self.idle and self.fresh and not self.cordoned


NEVER_AGAIN = {JobState.COMPLETED, JobState.CANCELLED}
STAGES = list(Stage)

JOBS_AND_HOLDERS = text("""
    SELECT jobs.id, jobs.state, jobs.stage, jobs.fence, jobs.stop_requested, jobs.finished_at,
           live.fence AS attempt, live.gpu_id, live.claimed_stages,
           (users.tenant_id, users.name) = (jobs.tenant_id, jobs.user_name)
               AND lanes.urgent = (jobs.spec ->> 'urgent')::boolean AS in_its_lane
    FROM jobs
    LEFT JOIN attempts AS live ON live.job_id = jobs.id AND live.ended_at IS NULL
    LEFT JOIN lanes ON lanes.id = jobs.lane_id
    LEFT JOIN users ON users.id = lanes.user_id
""")

STATES = text("SELECT id, state FROM jobs")

MOVES = text("SELECT * FROM chaos.moves WHERE id > :after ORDER BY id")

ON_GPUS = text("""
    SELECT count(*) FROM attempts JOIN jobs ON jobs.id = attempts.job_id
    WHERE tenant_id = :tenant_id AND ended_at IS NULL AND gpu_id IS NOT NULL
""")

WAITING = text("""
    SELECT jobs.id, first.state AS first_state
    FROM jobs JOIN jobs AS first ON first.id = jobs.waits_for
    WHERE jobs.state IN ('pending', 'queued')
""")

SILENCE = text(
    "UPDATE gpus SET heartbeat_at = heartbeat_at - interval '31 seconds' WHERE id = :gpu_id"
)
