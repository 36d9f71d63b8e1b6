"""Jobs that run in a pod of their own, as rows: their turns, their devices, and the pool beside."""

from __future__ import annotations

import pytest

from models.errors import SpecError, StateError
from models.queries import gpus, own_pod, waiting
from models.queries.jobs import find_by_key
from models.queries.own_pod import Turn
from models.session import transaction
from models.spec import JobSpec
from models.states import JobState, Outcome, Stage
from tests import records
from tests.records import add_gpu, attempt, claimed, end, job, place, place_preparation, queued

pytestmark = pytest.mark.usefixtures("database", "_empty")

SPEC = JobSpec(base_model="scripted:?steps=1", dataset="none")


@pytest.fixture
def _empty(database: str) -> None:  # noqa: ARG001 (after the database, before each test)
    records.clear()


def submit(spec: JobSpec = SPEC, key: str = "celora/one") -> str:
    with transaction() as session:
        return own_pod.find_or_insert(session, spec, tenant="default", user="ada", key=key).id


def device(uuid: str, worker_session: str) -> int:
    with transaction() as session:
        return own_pod.register_device(
            session,
            uuid=uuid,
            kind="cpu",
            model="cpu (1 thread)",
            memory_bytes=2**30,
            queue="pod@one",
            worker="pod@one",
            worker_session=worker_session,
            boot_id="boot-1",
            versions={},
        )


def take_turn(job_id: str, gpu_id: int) -> Turn | None:
    with transaction() as session:
        return own_pod.take_turn(session, job_id, gpu_id, "pod@one")


def why(job_id: str) -> tuple[str, int | None]:
    with transaction() as session:
        found = waiting.why_waiting(session, job_id)
        return found.reason, found.position


def test_no_dispatcher_prepares_or_places_it_at_any_moment() -> None:
    job_id, gpu_id = submit(), device("gpu-a", "s1")
    assert (place_preparation(), why(job_id)) == (0, ("its_pod", None))
    assert take_turn(job_id, gpu_id) == Turn(1, Stage.PREPROCESS)
    assert why(job_id) == ("its_pod", None)  # a pod that died before its claim
    assert take_turn(job_id, gpu_id) == Turn(3, Stage.PREPROCESS)  # 2: nobody's
    assert attempt(job_id, 1).outcome == Outcome.WITHDRAWN
    claimed(job_id, Stage.PREPROCESS, worker_session="s1")
    end(job_id, 3, Outcome.COMPLETED)
    # With no GPU in the pool, the order alone is told: it has no place there.
    other = queued()
    assert (why(job_id), why(other)) == (("its_pod", None), ("no_worker", 1))
    add_gpu()
    assert [placed.job_id for placed in place()] == [other]
    add_gpu(1)
    assert place() == []
    assert take_turn(job_id, gpu_id) == Turn(4, Stage.TRAIN)
    claimed(job_id, Stage.TRAIN, worker_session="s1")
    assert why(job_id)[0] == "running"


def test_the_next_pod_ends_what_the_one_before_has_left() -> None:
    job_id, before = submit(), device("gpu-a", "s1")
    take_turn(job_id, before)
    claimed(job_id, Stage.PREPROCESS, worker_session="s1")
    after = device("gpu-b", "s2")
    assert take_turn(job_id, after) == Turn(2, Stage.PREPROCESS)
    assert (attempt(job_id, 1).outcome, job(job_id).losses) == (Outcome.LOST, 1)
    claimed(job_id, Stage.PREPROCESS, worker_session="s2")
    assert take_turn(job_id, after) == Turn(3, Stage.PREPROCESS)
    claimed(job_id, Stage.PREPROCESS, worker_session="s2")
    assert take_turn(job_id, after) is None  # lost as often as may be
    assert job(job_id).state == JobState.FAILED
    assert take_turn(job_id, after) is None


def test_a_key_means_one_job_of_one_specification() -> None:
    assert submit() == submit()
    assert submit(key="celora/two") != submit()
    with pytest.raises(SpecError, match="another specification"):
        submit(SPEC.model_copy(update={"seed": 1}))
    first = queued()
    with pytest.raises(StateError, match="has to complete first"):
        submit(SPEC.model_copy(update={"after": first}), "celora/three")
    with transaction() as session:
        assert find_by_key(session, "default", "celora/three") is None  # nothing stays behind


def test_devices_take_over_rows_that_pods_have_left() -> None:
    first = device("gpu-a", "s1")
    second = device("gpu-b", "s2")
    assert first != second
    with transaction() as session:
        for gpu_id, pod in ((first, "s1"), (second, "s2")):
            gpus.mark_gone(session, gpu_id, pod)
    assert device("gpu-b", "s3") == second  # its own card rather than another
    assert device("gpu-c", "s4") == first
    assert device("gpu-d", "s5") not in {first, second}
    assert place() == []
