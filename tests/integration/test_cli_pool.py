"""Commands about the pool: tenants and their limits, drained and labelled GPUs."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from models.states import Stage, StopReason
from tests import records
from tests.records import add_gpu, claimed, job, place, queued

pytestmark = pytest.mark.usefixtures("database", "_empty")

Celora = Callable[..., tuple[int, str, str]]


@pytest.fixture
def _empty(database: str) -> None:  # noqa: ARG001 (after the database, before each test)
    records.clear()


def test_limits_are_set_shown_and_taken_away(celora: Celora) -> None:
    code, out, err = celora(
        "tenants", "set", "physics", "--weight", "2", "--max-running-jobs", "3",
        "--disk-gb", "1.5", "--user-max-queued-jobs", "10", "--may-not-preempt", "--json",
    )  # fmt: skip
    assert (code, err) == (0, "")
    made = json.loads(out)
    assert (made["name"], made["weight"], made["max_running_jobs"]) == ("physics", 2, 3)
    assert (made["disk_bytes"], made["may_preempt"]) == (1_500_000_000, False)
    code, out, _ = celora("tenants", "set", "physics", "--max-running-jobs", "none", "--json")
    assert json.loads(out)["max_running_jobs"] is None
    code, out, _ = celora("tenants")
    assert code == 0
    assert "physics" in out
    assert "1.5 GB" in out


def test_a_users_own_limit_wins_over_the_tenants_for_its_users(celora: Celora) -> None:
    queued("physics")
    celora("tenants", "set", "physics", "--user-max-running-jobs", "1")
    celora("tenants", "set", "physics", "--user", "ada", "--max-running-jobs", "4")
    code, out, _ = celora("tenants", "show", "physics", "--json")
    assert code == 0
    assert [(one["name"], one["max_running_jobs"]) for one in json.loads(out)["users"]] == [
        ("ada", 4)
    ]
    code, out, _ = celora("tenants", "show", "physics")
    assert "ada" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("set", "a", "--max-running-jobs", "many"), "no number"),
        (("set", "a", "--weight", "0"), "over 0"),
        (("set", "nobody", "--user", "ada", "--max-running-jobs", "1"), "no tenant"),
        (("set", "a", "--user", "ada", "--weight", "2"), "weight"),
        (("show", "nobody"), "no tenant"),
    ],
)
def test_what_cannot_be_is_explained(celora: Celora, arguments: tuple[str, ...], said: str) -> None:
    code, _, err = celora("tenants", *arguments)
    assert code == 2
    assert said in err
    assert "What to do" in err


def test_a_drained_gpu_takes_nothing_new_and_what_runs_is_asked_to_move(celora: Celora) -> None:
    taken = records.running()
    add_gpu(1)
    code, out, _ = celora("drain", "host:0")
    assert code == 0
    assert taken.job_id in out
    assert job(taken.job_id).stop_requested == StopReason.DRAIN
    other = queued()
    assert [one.queue[-1] for one in place()] == ["1"]
    assert claimed(other, Stage.TRAIN)
    assert celora("cordon", "host:0", "--off")[0] == 0
    code, out, _ = celora("gpus", "--json")
    assert [gpu["cordoned"] for gpu in json.loads(out)] == [False, False]


def test_all_gpus_of_a_host_at_once(celora: Celora) -> None:
    add_gpu(0)
    add_gpu(1)
    code, out, _ = celora("drain", "host:", "--json")
    assert code == 0
    assert [gpu["state"] for gpu in json.loads(out)] == ["cordoned", "cordoned"]


def test_labels_are_set_and_taken_away(celora: Celora) -> None:
    add_gpu(0)
    code, out, _ = celora("label", "host:0", "zone=a", "fast=yes", "--json")
    assert (code, json.loads(out)["labels"]) == (0, {"zone": "a", "fast": "yes"})
    celora("label", "host:0", "fast=")
    assert "zone=a" in celora("gpus")[1]
    code, _, err = celora("label", "host:0", "zone")
    assert code == 2
    assert "KEY=VALUE" in err
    code, _, err = celora("label", "host:0", "celora/pod=yes")
    assert code == 2
    assert "what a worker says of itself" in err


@pytest.mark.parametrize("gpu", ["host:9", "elsewhere:", "host:x"])
def test_a_gpu_that_is_not_there(celora: Celora, gpu: str) -> None:
    add_gpu(0)
    for command in ("cordon", "drain"):
        code, _, err = celora(command, gpu)
        assert code == 2
        assert "celora gpus" in err


def test_prices_are_set_listed_and_forgotten(celora: Celora) -> None:
    assert "No prices" in celora("prices")[1]
    code, out, _ = celora("prices", "set", "H100", "2.5", "--json")
    assert (code, json.loads(out)) == (0, [{"model": "h100", "price_per_hour": 2.5}])
    assert "2.5" in celora("prices")[1]
    assert celora("prices", "set", "H100", "none")[0] == 0
    for wrong in ("much", "-1"):
        code, _, err = celora("prices", "set", "H100", "--", wrong)
        assert code == 2
        assert "What to do" in err


def test_a_reader_of_the_views_has_a_plain_name(celora: Celora) -> None:
    code, _, err = celora("db", "grant-reader", "Some One")
    assert code == 2
    assert "plain name" in err
