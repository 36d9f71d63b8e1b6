"""Reports: one self-contained file that tells a run, and several side by side."""

from __future__ import annotations

import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from celora.report.facts import read_runs, spec_differences
from celora.report.page import html
from models.queries import history, products, samples
from models.session import transaction
from models.states import Outcome, Stage
from tests import records
from tests.records import add_gpu, claimed, end, place, queued

pytestmark = pytest.mark.usefixtures("database", "_empty")

EVIL = "<script>alert('x')</script>"


@pytest.fixture
def _empty(database: str) -> None:  # noqa: ARG001 (after the database, before each test)
    records.clear()


def finished(**fields: Any) -> str:
    """A job that trained five steps and was evaluated."""
    gpu_id = add_gpu()
    job_id = queued(evaluate=False, **fields)
    place()
    taken = claimed(job_id, Stage.TRAIN)
    points = [
        (name, step, value / step)
        for step in range(1, 6)
        for name, value in (("train_loss", 4.0), ("learning_rate", 1e-3), ("grad_norm", 2.0))
    ]
    with transaction() as session:
        history.record_metrics(session, job_id, taken.fence, Stage.TRAIN, points)
        samples.record_sample(
            session,
            gpu_id,
            utilisation_percent=80.0,
            memory_used_bytes=3_000_000_000,
            temperature_celsius=None,
            power_watts=None,
        )
        for subject, loss in (("base", 4.5), ("tuned", 1.25)):
            products.record_evaluation(
                session,
                job_id,
                taken.fence,
                subject=subject,
                rows=10,
                generated_rows=2,
                loss=loss,
                perplexity=2.0,
                token_accuracy=0.5,
                exact_match=0.75 if subject == "tuned" else 0.0,
                seconds=1.0,
            )
        sample = {
            "prompt": f"what is {EVIL}",
            "expected": "four",
            "base_answer": "five",
            "tuned_answer": "four",
        }
        products.record_samples(session, job_id, taken.fence, [sample])
    end(job_id, taken.fence, Outcome.COMPLETED, result={"versions": {"torch": "2.13.0"}})
    return job_id


class _Outside(HTMLParser):
    """Collects what a page would fetch or run."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in {"script", "link", "img", "iframe"}:
            self.found.append(tag)
        self.found += [
            f"{name}={value}"
            for name, value in attrs
            if name in {"src", "href", "xlink:href"} and value and not value.startswith("#")
        ]


def test_a_report_tells_all_and_loads_nothing() -> None:
    job_id = finished(name="good run", rank=8)
    page = html(read_runs([job_id]))
    for words in (
        "good run",
        job_id,
        "Loss",
        "Gradient norm",
        "Device memory",
        "4.5000",
        "1.2500",
        "75.0%",
        "&#34;rank&#34;: 8",
        "torch 2.13.0",
        "rows to train on",
        "<th>stages</th>",
        "train: sent to celora.gpu.host.0",
    ):
        assert words in page, words
    assert page.count("<svg") >= 5
    outside = _Outside()
    outside.feed(page)
    assert outside.found == []


def test_what_a_user_wrote_stays_text() -> None:
    page = html(read_runs([finished(name="good run")]))
    assert EVIL not in page
    assert "&lt;script&gt;" in page


def test_a_comparison_overlays_the_curves_and_names_what_differs() -> None:
    first, second = finished(name="small", rank=4), finished(name="large", rank=64)
    runs = read_runs([first, second])
    page = html(runs)
    assert dict(spec_differences(runs)) == {"name": ["small", "large"], "rank": [4, 64]}
    assert re.search(r"<th>rank</th>\s*<td>4</td>\s*<td>64</td>", page)
    assert page.count("small") > 3
    assert "Answers side by side" not in page


def test_two_runs_of_one_name_are_told_apart() -> None:
    first, second = finished(name="run"), finished(name="run")
    assert [one.label for one in read_runs([first, second])] == [
        f"run ({first[-6:]})",
        f"run ({second[-6:]})",
    ]


def test_the_same_report_has_the_same_bytes() -> None:
    job_id = finished()
    assert html(read_runs([job_id])) == html(read_runs([job_id]))


def test_a_job_that_has_not_begun_has_a_report_too() -> None:
    page = html(read_runs([records.submit()]))
    assert "pending" in page
    assert "<svg" not in page


def test_the_command_writes_html_and_png(
    celora: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    job_id, other = finished(), finished()
    page, sheet = tmp_path / "report.html", tmp_path / "report.png"
    code, out, err = celora("report", job_id, "-o", str(page))
    assert (code, out.strip(), err) == (0, str(page), "")
    assert celora("report", "--compare", job_id, other, "-o", str(sheet))[0] == 0
    assert sheet.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("a", "b"), "--compare"),
        (("last", "-o", "report.pdf"), ".html or .png"),
        (("last", "-o", "/nowhere/report.html"), "cannot be written"),
        (("ftjob-none",), "no job"),
    ],
)
def test_what_cannot_be_reported_is_explained(
    celora: Callable[..., tuple[int, str, str]], arguments: tuple[str, ...], said: str
) -> None:
    records.submit()
    code, _, err = celora("report", *arguments)
    assert code == 2
    assert said in err
