"""Reports: one self-contained file that tells a run, and several side by side."""

from __future__ import annotations

import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from celora.report.charts import charts_of, png
from celora.report.facts import Figures, figures_of, read_runs, spec_differences
from celora.report.page import html
from models.errors import SetupError
from models.queries import history, products, samples
from models.session import transaction
from models.states import Outcome, Stage
from tests import browser, records
from tests.conftest import unavailable
from tests.records import add_gpu, claimed, end, place, queued

pytestmark = pytest.mark.usefixtures("database", "_empty")

EVIL = "<script>alert('x')</script>"


@pytest.fixture
def _empty(database: str) -> None:  # noqa: ARG001 (after the database, before each test)
    records.clear()


def finished(*, base_loss: float = 4.5, **fields: Any) -> str:
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
        for subject, loss in (("base", base_loss), ("tuned", 1.25)):
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


def test_each_run_of_a_comparison_has_its_own_base() -> None:
    runs = [finished(name="small"), finished(name="large")]
    assert figures_of(read_runs(runs)).titles == ["base", "small", "large"]
    runs[1] = finished(name="other", base_loss=3.5, base_model="scripted:?steps=4")
    figures = figures_of(read_runs(runs))
    assert figures.titles == ["base of small", "small", "base of other", "other"]
    assert dict(figures.rows)["loss on held-out rows"] == ["4.5000", "1.2500", "3.5000", "1.2500"]


def test_a_page_can_be_read_on_a_phone_and_asks_for_nothing(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(html(read_runs([finished(name="small"), finished(name="large")])))
    one = tmp_path / "one.html"
    one.write_text(html(read_runs([finished(name="good run")])))
    try:
        browser.chromium()
    except SetupError as error:
        unavailable(str(error))
    for each in (path, one):
        with browser.reading(each, width=390) as (page, asked):
            assert page.evaluate("document.documentElement.scrollWidth") <= 390
            # A word of a name or of a figure that does not fit is not cut in two, but hangs over.
            over = "[...document.querySelectorAll('th, .numbers td, .text')]"
            wide = f"{over}.filter(e => e.scrollWidth > e.clientWidth + 1).map(e => e.innerText)"
            assert page.evaluate(wide) == []
            breaks = f"{over}.filter(e => e.matches('th') && getComputedStyle(e).overflowWrap"
            assert page.evaluate(f"{breaks} != 'normal').length") == 0
            answers = "[...document.querySelectorAll('.answers > div')].map(e => e.clientWidth)"
            assert all(width > 300 for width in page.evaluate(answers))
            assert asked == {each.as_uri()}
    with browser.reading(one, width=1280) as (page, _):
        tops = "[...document.querySelectorAll('.answers > div')].map(e => e.offsetTop)"
        assert len(set(page.evaluate(tops))) == 1  # side by side


def test_events_of_several_days_tell_the_day() -> None:
    job_id = finished()
    assert f">{read_runs([job_id])[0].record.events[0].created_at:%H:%M:%S}<" in html(
        read_runs([job_id])
    )
    with transaction() as session:
        session.execute(
            text(
                "UPDATE events SET created_at = created_at - interval '1 day' WHERE id ="
                " (SELECT min(id) FROM events)"
            )
        )
    first = read_runs([job_id])[0].record.events[0].created_at
    assert f">{first:%Y-%m-%d %H:%M:%S}<" in html(read_runs([job_id]))


def test_the_sheet_holds_base_against_tuned(tmp_path: Path) -> None:
    runs = read_runs([finished()])
    sheets = []
    for number, figures in enumerate((figures_of(runs), Figures([], []))):
        path = tmp_path / f"{number}.png"
        png(charts_of(runs), figures, path, "run")
        sheets.append(int.from_bytes(path.read_bytes()[20:24]))  # a PNG's height
    assert sheets[0] > sheets[1] + 100


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
