"""A job's row that no version of ours wrote, at the front of the queue: it fails alone."""

from __future__ import annotations

import pytest
from sqlalchemy import text

import celora
from celora.api.job_answers import job_answer
from celora.cli.output import print_json
from models.queries import forecasts, jobs, retention
from models.queries.waiting import why_waiting
from models.session import transaction
from models.states import JobState, Outcome, Stage
from tests import records
from tests.records import add_gpu, claim, claimed, end, job, place, queued, state

pytestmark = pytest.mark.usefixtures("database", "_empty")

# What an UPDATE by hand, or another program, may leave.
BROKEN = {
    "spec": "spec = '[]'",
    "a field of the spec": "spec = jsonb_set(spec, '{max_steps}', '\"many\"'), total_steps = NULL",
    "a limit": "spec = jsonb_set(spec, '{time_limit_seconds}', '\"a day\"')",
    "a number": "spec = jsonb_set(spec, '{max_steps}', '-1e300'), total_steps = NULL",
    "verdict": "verdict = '[1]', total_steps = NULL",
    "a field of the verdict": "verdict = '{\"total_steps\": \"x\"}', spec = '{}'",
    "overrides": "overrides = '\"half\"'",
    "result": "result = '[]'",
    "start_from_adapter": 'spec = spec || \'{"after": "x", "start_from_adapter": "often"}\'',
}


@pytest.fixture
def _empty(database: str) -> None:  # noqa: ARG001 (after the database, before each test)
    records.clear()


@pytest.mark.parametrize("broken", list(BROKEN.values()), ids=list(BROKEN))
def test_a_row_that_cannot_be_read_holds_up_nobody(
    broken: str, capsys: pytest.CaptureFixture[str]
) -> None:
    add_gpu()
    first, good = queued(), queued()
    with transaction() as session:
        statement = text(f"UPDATE jobs SET {broken} WHERE id = :id")  # noqa: S608 (constants)
        session.execute(statement, {"id": first})
    # People are told of the others, and of it as far as it can be read.
    with transaction() as session:
        made = forecasts.make(session, younger_than=0)
        assert made is not None
        assert forecasts.write(session, made) == 2
        assert why_waiting(session, good).position == 2
        list(retention.preview(session, []))
    listed = celora.jobs()
    assert [one.id for one in listed] == [good, first]
    print_json(listed)
    assert first in capsys.readouterr().out
    with transaction() as session:
        assert job_answer(jobs.get_job(session, first), {}).id == first
    # The GPU goes to the one behind as soon as the broken one was looked at.
    assert [one.job_id for one in place()] == [first]
    assert claim(first, Stage.TRAIN) is None
    assert state(first) is JobState.FAILED
    error = job(first).error
    assert error is not None
    assert "cannot be read" in error["message"]
    assert [one.job_id for one in place()] == [good]
    taken = claimed(good, Stage.TRAIN)
    end(good, taken.fence, Outcome.FAILED)
    assert celora.get(first).state is JobState.FAILED
