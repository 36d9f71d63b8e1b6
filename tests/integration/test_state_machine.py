"""Lease, fence, placement and states, driven at random on a real Postgres.

Hypothesis plays dispatcher, workers and owners: tickets come late, twice and out of order, workers
are replaced, leases run out, and old holders go on writing. A small model says who holds what; the
tables must agree with it after every step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import text
from sqlalchemy.orm import Session

from models.errors import StaleFenceError, StateError
from models.queries import attempts, gpus, history, jobs, outbox, products, reconcile
from models.queries.attempts import Claim
from models.session import transaction
from models.states import TERMINAL, JobState, Outcome, Stage, StopReason
from models.tables import Job
from tests import records

GPUS = 2
TicketKey = tuple[str, int, Stage]
T = TypeVar("T")

# How far back among all tickets or claims: mostly the last ones, which may still count.
BACK = st.integers(0, 5)


def nth_last(things: list[T], back: int) -> T:
    return things[-1 - back % len(things)]


@dataclass
class Holder:
    """The live attempt of a job, as the model has it."""

    fence: int
    gpu: int | None  # index; none: preparation
    session: str | None = None  # of the worker that claimed it
    stages: set[Stage] = field(default_factory=set)


class Pool(RuleBasedStateMachine):
    job_ids = Bundle("job_ids")

    def __init__(self) -> None:
        super().__init__()
        records.clear()
        self.held: dict[str, Holder] = {}
        self.finished: dict[str, set[Stage]] = {}
        self.sessions = [0] * GPUS
        self.gpu_ids: list[int] = []
        # All there ever were: old ones are used again, as a late message or a late writer would.
        self.tickets: list[TicketKey] = []
        self.claims: list[Claim] = []

    @initialize(target=job_ids)
    def start(self) -> object:
        """Workers, and jobs of which most are prepared already: what comes after is the story."""
        for index in range(GPUS):
            self.gpu_ids.append(records.add_gpu(index, worker_session=self.session_of(index)))
        made = [self.submit("a", evaluate) for evaluate in (True, False, True, True)]
        for _ in made[1:]:
            self.work_as_usual(finish_preparation=True)
        return multiple(*made)

    def session_of(self, gpu: int | None) -> str:
        return "cpu" if gpu is None else f"gpu{gpu}-{self.sessions[gpu]}"

    # Owners

    @rule(target=job_ids, tenant=st.sampled_from(["a", "b"]), evaluate=st.booleans())
    def submit(self, tenant: str, evaluate: bool) -> str:  # noqa: FBT001 (drawn)
        job_id = records.submit(tenant, evaluate=evaluate)
        self.finished[job_id] = set()
        return job_id

    @rule(job_id=job_ids, reason=st.sampled_from(StopReason))
    def stop(self, job_id: str, reason: StopReason) -> None:
        before = records.state(job_id)
        holder = self.held.get(job_id)
        with transaction() as session:
            try:
                after = jobs.request_stop(session, job_id, reason)
            except StateError:
                assert before in TERMINAL
                return
        if before in TERMINAL:
            assert after.state == before
        elif holder is not None and holder.stages:
            assert after.state == before
            assert after.stop_requested is not None
        else:
            self.held.pop(job_id, None)
            expected = {StopReason.CANCEL: JobState.CANCELLED, StopReason.PAUSE: JobState.PAUSED}
            assert after.state == expected.get(reason, before)

    @rule(job_id=job_ids)
    def resume_and_retry(self, job_id: str) -> None:
        before = records.state(job_id)
        calls: list[Callable[[Session, str], Job]] = [jobs.resume_job, jobs.retry_job]
        for call in calls:
            with transaction() as session:
                try:
                    call(session, job_id)
                except StateError:
                    continue
        after = records.state(job_id)
        if before in {JobState.PAUSED, JobState.FAILED}:
            assert after in {JobState.PENDING, JobState.QUEUED}
        else:
            assert after == before

    # All together

    @rule(finish_preparation=st.booleans())
    def work_as_usual(self, finish_preparation: bool) -> None:  # noqa: FBT001 (drawn)
        """Idle workers, a dispatcher that places, tickets that arrive: most steps are no fault."""
        for gpu in range(GPUS):
            self.beat(gpu, "idle")
        for ticket in self._place():
            taken = self._claim(ticket, self.session_of(self.held[ticket[0]].gpu))
            if taken is not None and finish_preparation and taken.stage is Stage.PREPROCESS:
                self._end(taken, Outcome.COMPLETED)

    # The dispatcher

    @rule()
    def place(self) -> None:
        self._place()

    def _place(self) -> list[TicketKey]:
        records.place_preparation(limit=2)
        for one in records.place():
            assert one.gpu_id is not None
            gpu = self.gpu_ids.index(one.gpu_id)
            assert all(holder.gpu != gpu for holder in self.held.values())
            self.held[one.job_id] = Holder(one.fence, gpu)
        with transaction() as session:
            sent = outbox.unsent(session)
            outbox.mark_sent(session, [ticket.id for ticket in sent])
        for ticket in sent:
            if ticket.stage == Stage.PREPROCESS:
                self.held.setdefault(ticket.job_id, Holder(ticket.fence, None))
        new = [(one.job_id, one.fence, Stage(one.stage)) for one in sent]
        self.tickets += new
        return new

    @rule()
    def send_again(self) -> None:
        with transaction() as session:
            reconcile.resend_unclaimed(session, 0)
            sent = outbox.unsent(session)
            outbox.mark_sent(session, [ticket.id for ticket in sent])
        self.tickets += [(one.job_id, one.fence, Stage(one.stage)) for one in sent]

    @rule(job_id=job_ids)
    def let_lease_run_out(self, job_id: str) -> None:
        holder = self.held.get(job_id)
        claimed = holder is not None and bool(holder.stages)
        records.let_lease_run_out(job_id)
        with transaction() as session:
            ended = reconcile.expire_leases(session)
        assert ended == ([job_id] if claimed else [])
        if claimed:
            del self.held[job_id]

    @rule(gpu=st.integers(0, GPUS - 1))
    def withdraw(self, gpu: int) -> None:
        with transaction() as session:
            gpus.mark_gone(session, self.gpu_ids[gpu], self.session_of(gpu))
            withdrawn = reconcile.withdraw_unclaimed(session, records.STALE_SECONDS)
        unclaimed = [job_id for job_id, one in self.held.items() if not one.stages]
        assert withdrawn == [job_id for job_id in unclaimed if self.held[job_id].gpu == gpu]
        for job_id in withdrawn:
            del self.held[job_id]

    # Workers

    @rule(gpu=st.integers(0, GPUS - 1), reported=st.sampled_from(["idle", "idle", "busy"]))
    def beat(self, gpu: int, reported: str) -> None:
        with transaction() as session:
            assert gpus.heartbeat(
                session, self.gpu_ids[gpu], self.session_of(gpu), reported=reported
            )

    @rule(gpu=st.integers(0, GPUS - 1))
    def replace_worker(self, gpu: int) -> None:
        self.sessions[gpu] += 1
        records.add_gpu(gpu, worker_session=self.session_of(gpu))
        with transaction() as session:
            lost = attempts.end_session_attempts(session, self.gpu_ids[gpu], self.session_of(gpu))
        expected = [job_id for job_id, one in self.held.items() if one.gpu == gpu and one.stages]
        assert lost == expected
        for job_id in lost:
            del self.held[job_id]

    @precondition(lambda self: self.tickets)
    @rule(back=BACK, older_session=st.booleans())
    def claim(self, back: int, older_session: bool) -> None:  # noqa: FBT001 (drawn)
        ticket = nth_last(self.tickets, back)
        holder = self.held.get(ticket[0])
        gpu = holder.gpu if holder is not None else None
        older = older_session and gpu is not None
        self._claim(ticket, "before" if older else self.session_of(gpu))

    def _claim(self, ticket: TicketKey, session_name: str) -> Claim | None:
        job_id, fence, stage = ticket
        holder = self.held.get(job_id)
        job = records.job(job_id)
        taken = records.claim(job_id, stage, fence=fence, worker_session=session_name)
        may = (
            holder is not None
            and holder.fence == fence
            and job.stage == stage
            and stage not in holder.stages
            and session_name != "before"
            and holder.session in {None, session_name}
        )
        if not may:
            assert taken is None
            return None
        assert holder is not None
        if job.stop_requested is not None:
            assert taken is None
            del self.held[job_id]  # stopped between two stages
            return None
        assert taken is not None
        assert stage not in self.finished[job_id]
        holder.stages.add(stage)
        holder.session = session_name
        self.claims.append(taken)
        return taken

    def holds(self, taken: Claim) -> bool:
        holder = self.held.get(taken.job_id)
        return holder is not None and holder.fence == taken.fence

    def fenced(self, taken: Claim, write: Callable[[Session], object]) -> bool:
        """Try a write; it is taken exactly when the model says that the claim still holds."""
        try:
            with transaction() as session:
                write(session)
        except StaleFenceError:
            assert not self.holds(taken)
            return False
        assert self.holds(taken)
        return True

    @precondition(lambda self: self.claims)
    @rule(back=BACK, step=st.integers(1, 5))
    def write(self, back: int, step: int) -> None:
        taken = nth_last(self.claims, back)
        job_id, fence = taken.job_id, taken.fence
        self.fenced(
            taken,
            lambda session: history.record_metrics(
                session,
                job_id,
                fence,
                taken.stage,
                [("train_loss", step, 1.0)],
                progress=history.Progress(step=step),
            ),
        )

    @precondition(lambda self: self.claims)
    @rule(back=BACK, step=st.integers(1, 5))
    def checkpoint(self, back: int, step: int) -> None:
        taken = nth_last(self.claims, back)
        written = self.fenced(
            taken,
            lambda session: products.register_checkpoint(
                session,
                taken.job_id,
                taken.fence,
                step=step,
                url="/c",
                size_bytes=1,
                trained_tokens=1,
                metrics={},
            ),
        )
        if written:
            assert records.job(taken.job_id).losses == 0

    @precondition(lambda self: self.claims)
    @rule(back=BACK)
    def renew(self, back: int) -> None:
        taken = nth_last(self.claims, back)
        with transaction() as session:
            renewal = attempts.renew(session, taken.attempt_id, records.LEASE_SECONDS)
        assert (renewal is not None) == self.holds(taken)

    @precondition(lambda self: self.claims)
    @rule(back=BACK)
    def go_on_to_evaluation(self, back: int) -> None:
        taken = nth_last(self.claims, back)
        stage = records.job(taken.job_id).stage
        if taken.stage is not Stage.TRAIN or (self.holds(taken) and stage != Stage.TRAIN):
            return
        done = self.fenced(
            taken,
            lambda session: attempts.finish_stage(
                session, taken.job_id, taken.fence, Stage.TRAIN, Stage.EVALUATE
            ),
        )
        if done:
            self.finished[taken.job_id].add(Stage.TRAIN)

    @precondition(lambda self: self.claims)
    @rule(back=BACK, outcome=st.sampled_from(Outcome))
    def end(self, back: int, outcome: Outcome) -> None:
        self._end(nth_last(self.claims, back), outcome)

    def _end(self, taken: Claim, outcome: Outcome) -> None:
        before = records.job(taken.job_id)
        ended = self.fenced(
            taken,
            lambda session: attempts.end_attempt(session, taken.job_id, taken.fence, outcome),
        )
        if not ended:
            return
        del self.held[taken.job_id]
        after = records.job(taken.job_id)
        if outcome is Outcome.COMPLETED:
            self.finished[taken.job_id].add(Stage(before.stage))
        if before.stop_requested == StopReason.CANCEL:
            assert after.state in {JobState.CANCELLED, JobState.COMPLETED}

    # What must hold after every step

    @invariant()
    def tables_agree_with_the_model(self) -> None:
        with transaction() as session:
            rows = session.execute(_JOBS_AND_HOLDERS).all()
        for row in rows:
            holder = self.held.get(row.id)
            assert (row.attempt is not None) == (holder is not None), row
            if holder is not None:
                assert (row.attempt, row.fence) == (holder.fence, holder.fence)
                assert row.gpu_id == (None if holder.gpu is None else self.gpu_ids[holder.gpu])
                assert set(row.claimed_stages) == holder.stages
            on_gpu = holder is not None and holder.gpu is not None and bool(holder.stages)
            assert (row.state == JobState.RUNNING) == on_gpu, row
            if holder is None or not holder.stages:
                assert row.stop_requested is None
            if row.state in TERMINAL or row.state == JobState.PAUSED:
                assert holder is None
            assert (row.finished_at is not None) == (row.state in TERMINAL)
            assert row.stage not in self.finished[row.id] or row.state == JobState.COMPLETED

    def teardown(self) -> None:
        """Nothing is stuck: with workers that work, every job comes to an end."""
        for job_id in self.finished:
            with transaction() as session:
                jobs.request_stop(session, job_id, StopReason.CANCEL)
            holder = self.held.get(job_id)
            if holder is not None and holder.stages:
                with transaction() as session:
                    attempts.end_attempt(session, job_id, holder.fence, Outcome.CANCELLED)
            assert records.state(job_id) in TERMINAL


_JOBS_AND_HOLDERS = text("""
    SELECT jobs.id, jobs.state, jobs.stage, jobs.fence, jobs.stop_requested, jobs.finished_at,
           live.fence AS attempt, live.gpu_id, live.claimed_stages
    FROM jobs LEFT JOIN attempts AS live ON live.job_id = jobs.id AND live.ended_at IS NULL
""")


@pytest.mark.usefixtures("database")
def test_the_pool_keeps_its_promises() -> None:
    play(runs=20, steps=40, derandomize=True)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("database")
def test_the_pool_keeps_its_promises_for_long() -> None:
    play(runs=80, steps=80, derandomize=False)


def play(*, runs: int, steps: int, derandomize: bool) -> None:
    run_state_machine_as_test(
        Pool,
        settings=settings(
            max_examples=runs,
            stateful_step_count=steps,
            derandomize=derandomize,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate],  # shrinking on a database takes minutes; the steps are printed
        ),
    )
