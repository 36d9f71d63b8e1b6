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
from playwright.sync_api import Page, expect

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


def test_tasks_tell_whose_they_are_and_what_came_of_them(
    pool: Stack, page: Page, address: str
) -> None:
    done = submit("steps=40&step_seconds=0", name="support-bot")
    in_state(pool, done, "completed")
    failed = submit("fail_at=3&step_seconds=0", name="too-hot")
    in_state(pool, failed, "failed")
    running = submit("steps=100000&step_seconds=0.01", name="night-run")
    at_step(pool, running, 5)
    page.goto(f"http://{address}/tasks")
    table = page.locator("#tasks-table")

    def row(task: str, job_id: str) -> str:
        found = table.locator("tr", has_text=job_id).filter(has_text=task)
        expect(found).to_have_count(1)
        return found.inner_text()

    text = row("celora.train", running)
    for part in ("STARTED", "@node1", "default: lora on scripted (night-run)"):
        assert part in text, text
    text = row("celora.evaluate", done)
    assert "SUCCESS" in text
    assert "completed: loss 4 → 0.5, exact match 5 % → 95 %, 40 steps" in text
    assert "trained: loss" in row("celora.train", done)
    assert "prepared" in row("celora.preprocess", done)
    text = row("celora.train", failed)
    assert "FAILURE" in text
    assert "training_failed: the script fails here" in text
    picture(page, "flower-tasks")
    table.locator("tr", has_text=failed).filter(has_text="celora.train").locator(
        "a[href*='/task/']"
    ).click()
    details = page.locator(".task-details-card")
    expect(details).to_contain_text("training_failed: the script fails here")
    expect(details).not_to_contain_text("File ")
    picture(page, "flower-failure")
    page.goto(f"http://{address}/workers")
    expect(page.locator("#workers-table tr", has_text="cpu@node1")).to_contain_text("3")
    picture(page, "flower-workers")
    pool.run("cancel", running)


def test_terminate_in_the_page_cancels_the_job(pool: Stack, page: Page, address: str) -> None:
    job_id = submit("steps=100000&step_seconds=0.01", name="wrong-data")
    trainer = trainer_of(at_step(pool, job_id, 5))
    page.goto(f"http://{address}/tasks")
    started = page.locator("#tasks-table tr", has_text=job_id).filter(has_text="celora.train")
    started.locator("a[href*='/task/']").click()
    picture(page, "flower-task")
    page.locator("#task-terminate").click()
    in_state(pool, job_id, "cancelled", seconds=60)
    pool.wait_until("its trainer is gone", lambda: is_gone(trainer))
    pool.wait_until("its slot is free", lambda: "free" in words())
    page.reload()
    expect(page.locator(".task-details-card")).to_contain_text("REVOKED")


def test_a_job_that_is_cancelled_elsewhere_does_not_stay_started(
    pool: Stack, page: Page, address: str
) -> None:
    job_id = submit("steps=100000&step_seconds=0.01", name="second-thoughts")
    at_step(pool, job_id, 5)
    pool.run("cancel", job_id)
    in_state(pool, job_id, "cancelled")
    page.goto(f"http://{address}/tasks")
    row = page.locator("#tasks-table tr", has_text=job_id).filter(has_text="celora.train")
    expect(row).to_contain_text("REVOKED")
    expect(row).to_contain_text("the job is cancelled")


def test_the_page_loads_nothing_from_elsewhere(opened: tuple[Page, set[str]], address: str) -> None:
    page, asked = opened
    page.goto(f"http://{address}/broker")
    assert asked == {address}
