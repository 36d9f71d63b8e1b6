"""Flower as people use it: in a browser, beside workers that play scripts.

CELORA_TEST_SCREENSHOTS=docs/images writes the pictures that the documentation shows.
"""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect

from models.errors import SetupError
from tests import browser
from tests.conftest import unavailable
from tests.postgres_server import free_port
from tests.scripted_jobs import (
    FAST,
    at_step,
    in_state,
    is_gone,
    start_gpu_worker,
    submit,
    trainer_of,
    words,
)
from tests.stack import Stack

pytestmark = pytest.mark.broker

USER, PASSWORD = "ada", "engine"
PATIENCE_MS = 30_000.0


@pytest.fixture(scope="module")
def pool(stack: Stack) -> Stack:
    """Workers whose events Flower has seen from the first one on; it listens already."""
    stack.environment |= FAST | {"CELORA_HOST": "node1"}  # people read it in the pictures
    stack.start("dispatcher")
    stack.start("cpu-worker", "--concurrency", "1")
    start_gpu_worker(stack)
    return stack


@pytest.fixture(scope="module")
def address(pool: Stack) -> str:
    port = free_port()
    flower = pool.start(
        "flower",
        "--port",
        str(port),
        CELORA_FLOWER_USER=USER,
        CELORA_FLOWER_PASSWORD=PASSWORD,
    )
    pool.wait_until("Flower listens to events", lambda: "Connected to amqp" in flower.said())
    return f"127.0.0.1:{port}"


@pytest.fixture(scope="module")
def opened(address: str) -> Iterator[tuple[Page, set[str]]]:
    try:
        browser.chromium()
    except SetupError as error:
        unavailable(str(error))
    with browser.browsing(USER, PASSWORD) as (page, asked):
        page.set_default_timeout(PATIENCE_MS)
        expect.set_options(timeout=PATIENCE_MS)
        page.goto(f"http://{address}/")
        yield page, asked


@pytest.fixture(scope="module")
def page(opened: tuple[Page, set[str]]) -> Page:
    return opened[0]


def picture(page: Page, name: str) -> None:
    folder = os.environ.get("CELORA_TEST_SCREENSHOTS")
    if folder:
        page.screenshot(path=Path(folder) / f"{name}.png")


def test_nobody_comes_in_without_the_login(address: str) -> None:
    for path in ("/", "/tasks", "/api/workers"):
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(f"http://{address}{path}", timeout=10).close()


def test_one_worker_for_each_gpu(page: Page, address: str) -> None:
    page.goto(f"http://{address}/workers")
    for name in ("cpu@node1", "gpu0@node1", "gpu1@node1"):
        expect(page.locator("#workers-table")).to_contain_text(name)


def row(pool: Stack, page: Page, task: str, job_id: str, *words: str) -> Locator:
    """The row of a task, once it says all that. The page is opened until then: it does not load
    its rows again by itself. A ticket that was sent twice has a row that says so, and less."""
    found = page.locator("#tasks-table tbody tr", has_text=job_id)
    for word in (task, *words):
        found = found.filter(has_text=word)

    def seen() -> bool:
        page.goto(page.url.partition("/task")[0].rstrip("/") + "/tasks")
        page.locator("#tasks-table tbody tr").first.wait_for()
        return found.count() > 0

    pool.wait_until(f"{task} of {job_id} shows {words}", seen)
    return found.first


def open_task(found: Locator) -> Locator:
    """What the task's own page tells."""
    found.locator("a[href*='/task/']").click()
    return found.page.locator(".task-details-card")


def test_tasks_tell_whose_they_are_and_what_came_of_them(
    pool: Stack, page: Page, address: str
) -> None:
    page.goto(f"http://{address}/tasks")
    done = submit("steps=40&step_seconds=0", name="support-bot")
    in_state(pool, done, "completed")
    failed = submit("fail_at=3&step_seconds=0", name="too-hot")
    in_state(pool, failed, "failed")
    running = submit("steps=100000&step_seconds=0.01", name="night-run")
    at_step(pool, running, 5)
    row(pool, page, "celora.preprocess", done, "SUCCESS", "prepared: ", "cpu@node1")
    row(pool, page, "celora.train", done, "SUCCESS", "trained: loss")
    summary = "completed: loss 4 → 0.5, exact match 5 % → 95 %, 40 steps"
    row(pool, page, "celora.evaluate", done, "SUCCESS", summary)
    whose = "default: lora on scripted (night-run)"
    row(pool, page, "celora.train", running, "STARTED", "@node1", whose)
    cause = "training_failed: the script fails here"
    found = row(pool, page, "celora.train", failed, "FAILURE", cause)
    for seen in (failed, "(too-hot)", cause, "FAILURE", "@node1"):  # without scrolling sideways
        expect(found.locator("td", has_text=seen)).to_be_in_viewport(ratio=1)
    picture(page, "flower-tasks")
    details = open_task(found)
    expect(details).to_contain_text(cause)
    expect(details).not_to_contain_text("File ")  # as the lines of a traceback begin
    picture(page, "flower-failure")
    page.goto(f"http://{address}/workers")
    expect(page.locator("#workers-table tr", has_text="cpu@node1")).to_contain_text("3")
    picture(page, "flower-workers")
    pool.run("cancel", running)


def test_terminate_in_the_page_cancels_the_job(pool: Stack, page: Page, address: str) -> None:
    page.goto(f"http://{address}/tasks")
    job_id = submit("steps=100000&step_seconds=0.01", name="wrong-data")
    trainer = trainer_of(at_step(pool, job_id, 5))
    open_task(row(pool, page, "celora.train", job_id, "STARTED"))
    picture(page, "flower-task")
    page.locator("#task-terminate").click()
    in_state(pool, job_id, "cancelled", seconds=60)
    pool.wait_until("its trainer is gone", lambda: is_gone(trainer))
    pool.wait_until("both slots are free", lambda: words() == ["free", "free"])
    row(pool, page, "celora.train", job_id, "REVOKED")


def test_a_job_that_is_cancelled_elsewhere_does_not_stay_started(
    pool: Stack, page: Page, address: str
) -> None:
    page.goto(f"http://{address}/tasks")
    job_id = submit("steps=100000&step_seconds=0.01", name="second-thoughts")
    at_step(pool, job_id, 5)
    pool.run("cancel", job_id)
    in_state(pool, job_id, "cancelled")
    row(pool, page, "celora.train", job_id, "REVOKED", "the job is cancelled")


def test_the_page_loads_nothing_from_elsewhere(opened: tuple[Page, set[str]], address: str) -> None:
    page, asked = opened
    page.goto(f"http://{address}/broker")
    assert asked == {address}
