"""The Grafana dashboard: every query of it is answered to the role that may read, with rows."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]  # it ships no types
from sqlalchemy import Connection, create_engine, text
from sqlalchemy.pool import NullPool

from models.queries import history, rollups, samples
from models.session import transaction
from models.states import Outcome, Stage
from tests import records
from tests.reader import reader

FOLDER = Path(__file__).parents[2] / "docker" / "grafana"
DASHBOARD: dict[str, Any] = json.loads((FOLDER / "dashboards" / "celora.json").read_text())
SOURCE = yaml.safe_load((FOLDER / "provisioning" / "datasources" / "celora.yaml").read_text())
PANELS: list[dict[str, Any]] = DASHBOARD["panels"]
TITLES = [panel["title"] for panel in PANELS]


@pytest.fixture(scope="module")
def job(database: str) -> str:  # noqa: ARG001 (the data goes there)
    """A pool with one job of each kind; the id of the one that has trained."""
    gpu_id = records.add_gpu()
    with transaction() as session:
        rollups.set_price(session, "cpu", 2.0)
        samples.record_sample(
            session,
            gpu_id,
            utilisation_percent=50.0,
            memory_used_bytes=2**20,
            temperature_celsius=None,
            power_watts=None,
        )
    trained = _run(Outcome.COMPLETED)
    _run(Outcome.FAILED, error={"code": "out_of_memory", "message": "no room"})
    with transaction() as session:
        rollups.set_costs(session)
    with transaction() as session:
        assert rollups.count_days(session)
    records.queued("physics")
    return trained


def _run(outcome: Outcome, **details: Any) -> str:
    job_id = records.queued("physics", name="run", evaluate=False)
    records.place()
    taken = records.claimed(job_id, Stage.TRAIN)
    with transaction() as session:
        history.record_metrics(
            session,
            job_id,
            taken.fence,
            Stage.TRAIN,
            [("train_loss", 1, 2.5), ("tokens_per_second", 1, 100.0), ("train_loss", 2, 2.0)],
            progress=history.Progress(step=2, epoch=1.0, trained_tokens=10),
        )
    records.end(job_id, taken.fence, outcome, **details)
    return job_id


@pytest.fixture(scope="module")
def connection(database: str, job: str) -> Iterator[Connection]:  # noqa: ARG001 (its data first)
    with (
        reader(database) as address,
        create_engine(address, poolclass=NullPool).connect() as connection,
    ):
        yield connection


_SPANS = {"now-6h": timedelta(hours=6), "30d": timedelta(days=30)}


def span(panel: dict[str, Any]) -> timedelta:
    """How far a panel looks back: its own span, or the dashboard's."""
    return _SPANS[panel.get("timeFrom") or DASHBOARD["time"]["from"]]


def expanded(sql: str, job: str, back: timedelta = timedelta(hours=6)) -> str:
    """As Grafana's Postgres source does it: macros end at the first closing bracket."""
    now = datetime.now(UTC)
    start, end = (now - back).isoformat(), (now + timedelta(minutes=1)).isoformat()
    sql = sql.replace("${job:sqlstring}", f"'{job}'").replace("$__interval", "1m")
    sql = re.sub(
        r"\$__timeGroupAlias\(([^)]*),\s*1m\)",
        r'floor(extract(epoch from \1) / 60) * 60 AS "time"',
        sql,
    )
    sql = re.sub(r"\$__timeFilter\(([^)]*)\)", rf"\1 BETWEEN '{start}' AND '{end}'", sql)
    assert "$" not in sql, f"not expanded: {sql}"
    return sql


@pytest.mark.parametrize("panel", PANELS, ids=TITLES)
def test_every_panel_has_an_answer(panel: dict[str, Any], connection: Connection, job: str) -> None:
    (target,) = panel["targets"]
    sql = expanded(target["rawSql"], job, span(panel))
    result = connection.execute(text(sql.replace(":", r"\:")))
    columns, rows = list(result.keys()), result.all()
    assert rows, panel["title"]
    if target["format"] == "time_series":
        assert columns[:2] == ["time", "metric"]
    named = panel.get("options", {}).get("xField")
    assert named is None or named in columns
    for override in panel.get("fieldConfig", {}).get("overrides", []):
        wanted = override["matcher"]["options"]
        assert any(re.fullmatch(wanted, column) for column in columns), wanted


def test_what_is_counted_by_day_looks_back_for_days() -> None:
    """A day's row stands at its midnight, which six hours back is not there to see."""
    daily = [p for p in PANELS if "$__timeFilter(day_at)" in p["targets"][0]["rawSql"]]
    assert len(daily) == 2
    assert all(span(panel) > timedelta(days=7) for panel in daily)


def test_the_variable_lists_jobs_to_choose(connection: Connection, job: str) -> None:
    (variable,) = DASHBOARD["templating"]["list"]
    rows = connection.execute(text(expanded(variable["query"], job))).mappings().all()
    assert {row["__value"] for row in rows} >= {job}
    assert all(row["__text"].startswith("run (") for row in rows)


def test_panels_lie_side_by_side_and_ask_the_provisioned_source() -> None:
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)
    taken: set[tuple[int, int]] = set()
    for panel in PANELS:
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert at["x"] + at["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
        assert panel["datasource"] == DASHBOARD["templating"]["list"][0]["datasource"]
    (source,) = SOURCE["datasources"]
    assert PANELS[0]["datasource"] == {"type": source["type"], "uid": source["uid"]}


def test_no_secret_stands_in_a_file() -> None:
    (source,) = SOURCE["datasources"]
    for value in (source["user"], source["url"], source["secureJsonData"]["password"]):
        assert re.fullmatch(r"\$\{CELORA_GRAFANA_[A-Z]+\}", value)
