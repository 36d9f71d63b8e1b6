"""What every test of a fault has: a record of what it observed, and the invariants at its end.

`pytest -rP tests/faults | grep observed` shows the record.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.faults import promises
from tests.scripted_jobs import FAST, start_gpu_worker
from tests.stack import Stack

Observe = Callable[[str, object], None]


@pytest.fixture
def observe(request: pytest.FixtureRequest) -> Observe:
    """Say what was measured or counted, for docs/reliability.md."""

    def say(what: str, found: object) -> None:
        value = f"{found:.2f}" if isinstance(found, float) else str(found)
        print(f"observed by {request.node.name}: {what}: {value}")

    return say


@pytest.fixture(autouse=True)
def _invariants(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "database" in request.fixturenames:
        promises.check_rows()
    if "stack" in request.fixturenames:
        stack: Stack = request.getfixturevalue("stack")
        promises.check_processes(stack.folder / "home" / "locks")


@pytest.fixture(scope="module")
def pool(stack: Stack) -> Stack:
    """Dispatcher, CPU worker and two slots, with time-outs of seconds."""
    stack.environment |= FAST
    stack.start("dispatcher")
    stack.start("cpu-worker", "--concurrency", "1")
    start_gpu_worker(stack)
    return stack
