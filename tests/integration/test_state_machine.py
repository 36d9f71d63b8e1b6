"""Lease, fence, placement and states, driven at random on a real Postgres.

Hypothesis plays dispatcher, workers, owners and administrators: tickets come late, twice and out of
order, workers are replaced, leases run out, and old holders go on writing. A small model says who
holds what; the tables must agree with it after every step, and triggers (tests/chaos/audit.py) tell
each move that was made on the way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import psycopg
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
from sqlalchemy import make_url, text
from sqlalchemy.orm import Session

from models.errors import SpecError, StaleFenceError, StateError
from models.queries import (
    attempts,
    dependencies,
    gpus,
    history,
    jobs,
    outbox,
    preemption,
    products,
    reconcile,
    tenants,
)
from models.queries.attempts import Claim
from models.session import transaction
from models.states import TERMINAL, JobState, Outcome, Stage, StopReason, may_become
from models.tables import Job
from tests import records
from tests.chaos import audit
from tests.pool_model import (
    JOBS_AND_HOLDERS,
    LIMITS,
    MOVES,
    NEVER_AGAIN,
    NO_LIMITS,
    ON_GPUS,
    SILENCE,
    STAGES,
    STATES,
    WAITING,
    Holder,
    Slot,
)

GPUS = 2
TENANTS = ("a", "b")
TicketKey = tuple[str, int, Stage]
T = TypeVar("T")

# How far back among all tickets or claims: mostly the last ones, which may still count.
BACK = st.integers(0, 5)


def nth_last(things: list[T], back: int) -> T:
    return things[-1 - back % len(things)]


class Pool(RuleBasedStateMachine):
    job_ids = Bundle("job_ids")

    def __init__(self) -> None:
        super().__init__()
        records.clear()
        self.held: dict[str, Holder] = {}
        self.finished: dict[str, set[Stage]] = {}
        self.slots: list[Slot] = []
        self.limits = {tenant: dict(NO_LIMITS) for tenant in TENANTS}
        # All there ever were: old ones are used again, as a late message or a late writer would.
        self.tickets: list[TicketKey] = []
        self.claims: list[Claim] = []
        with transaction() as session:
            self.last_move = session.scalar(text("SELECT max(id) FROM chaos.moves")) or 0

    @initialize(target=job_ids)
    def start(self) -> object:
        """Workers, and jobs of which most are prepared already: what comes after is the story."""
        for index in range(GPUS):
            gpu_id = records.add_gpu(index, worker_session=f"gpu{index}-0")
            self.slots.append(Slot(gpu_id))
        made = [self.put("a", evaluate=one) for one in (True, False, True)]
        made.append(self.put("b", preemptible=True))
        for _ in made[1:]:
            self.work_as_usual(finish="preparation")
        return multiple(*made)

    def session_of(self, gpu: int | None) -> str:
        return "cpu" if gpu is None else f"gpu{gpu}-{self.slots[gpu].session}"

    # Owners

    def put(self, tenant: str, **fields: Any) -> str:
        job_id = records.submit(tenant, **fields)
        self.finished[job_id] = set()
        return job_id

    @rule(
        target=job_ids,
        tenant=st.sampled_from(TENANTS),
        priority=st.integers(-1, 2),
        kind=st.sampled_from(["plain", "plain", "urgent", "preemptible"]),
        evaluate=st.booleans(),
    )
    def submit(self, tenant: str, priority: int, kind: str, evaluate: bool) -> str:  # noqa: FBT001 (drawn)
        wishes = {} if kind == "plain" else {kind: True}
        return self.put(tenant, priority=priority, evaluate=evaluate, **wishes)

    @rule(target=job_ids, first=job_ids, tenant=st.sampled_from(TENANTS))
    def submit_after(self, first: str, tenant: str) -> object:
        before = records.job(first)
        may = before.tenant.name == tenant and before.state not in {
            JobState.FAILED,
            JobState.CANCELLED,
        }
        try:
            job_id = self.put(tenant, after=first)
        except SpecError:
            assert not may
            return multiple()
        assert may
        over = before.state == JobState.COMPLETED
        assert records.job(job_id).waits_for == (None if over else first)
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

    # Administrators

    @rule(tenant=st.sampled_from(TENANTS), limits=st.sampled_from(LIMITS))
    def limit(self, tenant: str, limits: dict[str, Any]) -> None:
        self.limits[tenant] = NO_LIMITS | limits
        with transaction() as session:
            tenants.change_tenant(session, tenant, self.limits[tenant])

    @rule(gpu=st.integers(0, GPUS - 1), on=st.sampled_from([True, True, False]))
    def cordon(self, gpu: int, on: bool) -> None:  # noqa: FBT001 (drawn)
        self.slots[gpu].cordoned = on
        with transaction() as session:
            gpus.set_cordon(session, "host", gpu, on)

    # All together

    @rule(finish=st.sampled_from(["nothing", "preparation", "all"]))
    def work_as_usual(self, finish: str) -> None:
        """Idle workers, a dispatcher that places, tickets that arrive: most steps are no fault."""
        for gpu in range(GPUS):
            self.beat(gpu, "idle")
        if finish == "all":
            for held in filter(self.holds, self.claims):
                self._end(held, Outcome.COMPLETED)
        for ticket in self._place():
            taken = self._claim(ticket, self.session_of(self.held[ticket[0]].gpu))
            if taken is not None and finish != "nothing" and taken.stage is Stage.PREPROCESS:
                self._end(taken, Outcome.COMPLETED)

    @rule(target=job_ids, tenant=st.sampled_from(TENANTS))
    def submit_in_a_hurry(self, tenant: str) -> str:
        """An urgent job is prepared, and finds the GPUs taken more often than not."""
        job_id = self.put(tenant, urgent=True)
        for _ in range(2):
            self.work_as_usual(finish="preparation")
        self.preempt()
        return job_id

    # The dispatcher

    @rule()
    def place(self) -> None:
        self._place()

    def _place(self) -> list[TicketKey]:
        records.place_preparation(limit=2)
        for one in records.place():
            gpu = next(i for i, slot in enumerate(self.slots) if slot.id == one.gpu_id)
            assert self.slots[gpu].takes_jobs
            assert all(holder.gpu != gpu for holder in self.held.values())
            self.held[one.job_id] = Holder(one.fence, gpu)
            self.check_placed(one.job_id)
        with transaction() as session:
            sent = outbox.unsent(session)
            outbox.mark_sent(session, [ticket.id for ticket in sent])
        for ticket in sent:
            if ticket.stage == Stage.PREPROCESS:
                self.held.setdefault(ticket.job_id, Holder(ticket.fence, None))
        new = [(one.job_id, one.fence, Stage(one.stage)) for one in sent]
        self.tickets += new
        return new

    def check_placed(self, job_id: str) -> None:
        """It waits for nobody, and neither its tenant nor its user holds more than it may."""
        job = records.job(job_id)
        assert job.waits_for is None
        limits = self.limits[job.tenant.name]
        assert limits["gpu_hours_per_month"] is None
        with transaction() as session:
            on_gpus = session.scalar(ON_GPUS, {"tenant_id": job.tenant_id})
        for name in ("max_running_jobs", "user_max_running_jobs"):  # every tenant has one user here
            assert limits[name] is None or on_gpus <= limits[name]

    @rule()
    def preempt(self) -> None:
        with transaction() as session:
            pairs = preemption.preempt(session)
        for urgent_id, victim_id in pairs:
            urgent, victim = records.job(urgent_id), records.job(victim_id)
            assert urgent.spec["urgent"]
            assert (urgent.state, urgent.waits_for) == (JobState.QUEUED, None)
            assert self.limits[urgent.tenant.name]["may_preempt"]
            assert victim.spec["preemptible"]
            assert victim.stop_requested == StopReason.PREEMPT
            assert self.held[victim_id].stages
            assert urgent_id not in self.held

    @rule()
    def release(self) -> None:
        due = {row.id: row.first_state for row in self._waiting() if row.first_state in NEVER_AGAIN}
        with transaction() as session:
            assert dependencies.release_jobs(session) == len(due)
        for job_id, first_state in due.items():
            after = records.job(job_id)
            assert after.waits_for is None
            assert (after.state == JobState.FAILED) == (first_state == JobState.CANCELLED)

    def _waiting(self) -> list[Any]:
        """Jobs that wait for another, as far as a release may touch them."""
        with transaction() as session:
            found = session.execute(WAITING).all()
        return [row for row in found if row.id not in self.held]

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
        if holder is not None and claimed:
            if holder.gpu is not None:
                self.slots[holder.gpu].idle = False  # in doubt until its worker speaks
            del self.held[job_id]

    @rule(gpu=st.integers(0, GPUS - 1), how=st.sampled_from(["leaves", "is silent", "is held"]))
    def withdraw(self, gpu: int, how: str) -> None:
        slot = self.slots[gpu]
        with transaction() as session:
            if how == "leaves":
                gpus.mark_gone(session, slot.id, self.session_of(gpu))
            elif how == "is held":
                gpus.heartbeat(session, slot.id, self.session_of(gpu), reported="held")
            else:
                session.execute(SILENCE, {"gpu_id": slot.id})
        slot.fresh, slot.idle = how == "is held", slot.idle and how == "is silent"
        with transaction() as session:
            withdrawn = reconcile.withdraw_unclaimed(session, records.STALE_SECONDS)
        gone = {job_id for job_id, one in self.held.items() if one.gpu == gpu and not one.stages}
        # Others may have been waiting for this pass: on a GPU that has been silent for longer.
        assert gone <= set(withdrawn)
        for job_id in withdrawn:
            assert self.held[job_id].gpu is not None
            assert not self.held[job_id].stages
            del self.held[job_id]

    # Workers

    @rule(gpu=st.integers(0, GPUS - 1), reported=st.sampled_from(["idle", "idle", "busy"]))
    def beat(self, gpu: int, reported: str) -> None:
        slot = self.slots[gpu]
        with transaction() as session:
            assert gpus.heartbeat(session, slot.id, self.session_of(gpu), reported=reported)
            # An earlier session's heartbeat changes nothing.
            assert not gpus.heartbeat(session, slot.id, "before", reported="idle")
        slot.idle, slot.fresh = reported == "idle", True

    @rule(gpu=st.integers(0, GPUS - 1))
    def replace_worker(self, gpu: int) -> None:
        slot = self.slots[gpu]
        slot.session += 1
        slot.idle, slot.fresh = True, True
        records.add_gpu(gpu, worker_session=self.session_of(gpu))
        with transaction() as session:
            lost = attempts.end_session_attempts(session, slot.id, self.session_of(gpu))
        expected = [job_id for job_id, one in self.held.items() if one.gpu == gpu and one.stages]
        assert lost == expected
        for job_id in lost:
            del self.held[job_id]

    @precondition(lambda self: self.tickets)
    @rule(back=BACK, how=st.sampled_from(["right", "right", "other session", "future fence"]))
    def claim(self, back: int, how: str) -> None:
        """Any ticket there ever was, but those first that nobody has claimed."""
        waiting = [
            ticket
            for ticket in self.tickets
            if (holder := self.held.get(ticket[0])) is not None
            and (holder.fence, holder.stages) == (ticket[1], set())
        ]
        job_id, fence, stage = nth_last([*self.tickets, *waiting], back)
        holder = self.held.get(job_id)
        gpu = holder.gpu if holder is not None else None
        other = how == "other session" and gpu is not None
        ahead = 1 if how == "future fence" else 0
        self._claim((job_id, fence + ahead, stage), "before" if other else self.session_of(gpu))

    def _claim(self, ticket: TicketKey, session_name: str) -> Claim | None:
        job_id, fence, stage = ticket
        holder = self.held.get(job_id)
        job = records.job(job_id)
        if holder is not None and holder.gpu is not None:  # an earlier worker's, still on its way
            assert records.claim(job_id, stage, fence=fence, worker_session="before") is None
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
        again = records.claim(job_id, stage, fence=fence, worker_session=session_name)
        assert again is None
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
        points = [("train_loss", step, 1.0)]
        progress = history.Progress(step=step)
        self.fenced(
            taken,
            lambda session: history.record_metrics(
                session, taken.job_id, taken.fence, taken.stage, points, progress=progress
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
            rows = session.execute(JOBS_AND_HOLDERS).all()
        for row in rows:
            holder = self.held.get(row.id)
            assert (row.attempt is not None) == (holder is not None), row
            if holder is not None:
                assert (row.attempt, row.fence) == (holder.fence, holder.fence)
                assert row.gpu_id == (None if holder.gpu is None else self.slots[holder.gpu].id)
                assert set(row.claimed_stages) == holder.stages
            on_gpu = holder is not None and holder.gpu is not None and bool(holder.stages)
            assert (row.state == JobState.RUNNING) == on_gpu, row
            if holder is None or not holder.stages:
                assert row.stop_requested is None
            if row.state in TERMINAL or row.state == JobState.PAUSED:
                assert holder is None
            # What neither is held nor paused nor over stands in the lane of its owner and wish.
            assert row.in_its_lane, row
            assert (row.finished_at is not None) == (row.state in TERMINAL)
            assert row.stage not in self.finished[row.id] or row.state == JobState.COMPLETED
        assert len({row.id for row in rows}) == len(rows) == len(self.finished)

    @invariant()
    def every_move_was_along_an_edge(self) -> None:
        with transaction() as session:
            moves = session.execute(MOVES, {"after": self.last_move}).all()
        for move in moves:
            self.last_move = move.id
            before, after = JobState(move.state_before), JobState(move.state)
            assert before is after or may_become(before, after), move
            assert move.fence in {move.fence_before, move.fence_before + 1}, move
            assert STAGES.index(move.stage) >= STAGES.index(move.stage_before), move

    def teardown(self) -> None:
        """Nothing is stuck: with workers that work, every job comes to its end."""
        for tenant in {records.job(job_id).tenant.name for job_id in self.finished}:
            self.limit(tenant, {})
        for gpu in range(len(self.slots)):
            self.cordon(gpu, on=False)
            self.replace_worker(gpu)
        for taken in filter(self.holds, self.claims):
            self._end(taken, Outcome.PREEMPTED)
        for _ in range(4 * len(self.finished) + 4):
            with transaction() as session:
                states = {row.id: row.state for row in session.execute(STATES)}
            for job_id, state in states.items():
                if state in {JobState.PAUSED, JobState.FAILED}:
                    self.resume_and_retry(job_id)
            if set(states.values()) <= NEVER_AGAIN:
                return
            self.release()
            self.send_again()
            self._place()
            self._work_off_tickets()
        raise AssertionError(f"some do not end: {states}")

    def _work_off_tickets(self) -> None:
        for job_id, fence, stage in set(self.tickets):
            holder = self.held.get(job_id)
            if holder is None or holder.fence != fence:
                continue
            taken = self._claim((job_id, fence, stage), self.session_of(holder.gpu))
            if taken is not None:
                self._end(taken, Outcome.COMPLETED)


@pytest.fixture
def _audited(database: str) -> None:
    url = make_url(database).set(drivername="postgresql")
    with psycopg.connect(url.render_as_string(hide_password=False)) as connection:
        known = connection.execute("SELECT to_regnamespace('chaos')").fetchone()
    if known == (None,):
        audit.install(url.render_as_string(hide_password=False))


@pytest.mark.usefixtures("_audited")
def test_the_pool_keeps_its_promises() -> None:
    play(runs=6, steps=40, derandomize=True)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("_audited")
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
