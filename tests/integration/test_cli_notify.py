"""`celora notify`: what it prints, what it refuses, and what it never shows."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator

import pytest

from models import secrets
from tests import records
from tests.environment import variables

pytestmark = pytest.mark.usefixtures("_empty")

Celora = Callable[..., tuple[int, str, str]]
URL = "https://hooks.example.com/T0KEN"


@pytest.fixture(scope="module")
def _key(database: str) -> Iterator[None]:  # noqa: ARG001 (after the database)
    with variables(CELORA_SECRET_KEY=secrets.new_key()):
        yield


@pytest.fixture
def _empty(_key: None) -> None:
    records.clear()


def test_a_webhooks_secret_is_printed_once(celora: Celora) -> None:
    code, out, err = celora("notify", "add", "ops", "--webhook", URL, "--on", "started,failed")
    assert (code, err) == (0, "")
    assert "ops of tenant default hears of: started, failed." in out
    assert "not shown again: whsec_" in out
    assert "celora notify test ops" in out
    code, out, _ = celora("notify", "list")
    assert code == 0
    assert "https://hooks.example.com/…" in out
    assert "T0KEN" not in out
    assert "whsec" not in out
    (shown,) = json.loads(celora("notify", "list", "--json")[1])
    assert (shown["name"], shown["events"], shown["waiting"]) == ("ops", ["started", "failed"], 0)
    code, out, _ = celora("notify", "add", "ops", "--webhook", URL)
    assert code == 2


@pytest.mark.parametrize("way", ["input", pytest.param("variable", marks=pytest.mark.slow)])
def test_an_apprise_url_is_read_from_where_nobody_sees_it(
    celora: Celora, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    url = "tgram://123456789:abcdefg_hijklmnop/12315544/"
    if way == "input":
        monkeypatch.setattr("sys.stdin", io.StringIO(url + "\n"))
        code, out, err = celora("notify", "add", "phone", "--apprise")
    else:
        monkeypatch.setenv("MY_TELEGRAM", url)
        code, out, err = celora("notify", "add", "phone", "--apprise-env", "MY_TELEGRAM")
    assert (code, err) == (0, "")
    assert "secret" not in out
    assert "tgram:// (Telegram)" in celora("notify", "list")[1]


def test_a_target_of_one_job_hears_of_no_other(celora: Celora) -> None:
    job_id = records.submit("physics")
    code, out, err = celora("notify", "add", "mine", "--job", job_id, "--webhook", URL)
    assert (code, err) == (0, "")
    assert "mine of tenant physics" in out
    assert "jobs that name it" in celora("notify", "list", "--tenant", "physics")[1]
    records.submit("physics")
    celora("cancel", job_id)
    (told,) = json.loads(celora("notify", "log", "--json")[1])
    assert (told["job"], told["notice"], told["state"]) == (job_id, "cancelled", "waiting")
    other = records.submit("physics")
    assert celora("notify", "add", "mine", "--job", other, "--on", "failed")[0] == 0
    assert json.loads(celora("notify", "list", "--json")[1])[0]["jobs"] == 2


def test_the_log_is_listed_and_a_removed_targets_messages_are_dropped(celora: Celora) -> None:
    assert celora("notify", "log")[1] == "No messages.\n"
    celora("notify", "add", "ops", "--webhook", URL)
    job_id = records.submit()
    celora("cancel", job_id)
    code, out, _ = celora("notify", "log", "--job", job_id)
    assert code == 0
    assert "cancelled" in out
    (told,) = json.loads(celora("notify", "log", "--json")[1])
    code, out, _ = celora("notify", "retry", str(told["id"]))
    assert (code, out) == (0, f"{told['id']} is waiting. Next try now.\n")
    code, out, _ = celora("notify", "remove", "ops")
    assert (code, out) == (0, "ops is removed; messages that are not sent any more: 1.\n")
    assert celora("notify", "retry", str(told["id"]))[0] == 4
    assert celora("notify", "list")[1] == "No targets. `celora notify add` makes one.\n"


def test_a_job_is_submitted_with_who_hears_of_it(celora: Celora) -> None:
    celora("notify", "add", "ops", "--webhook", URL, "--on", "failed")
    with variables(CELORA_ALLOW_SCRIPTED="true"):
        code, out, err = celora(
            "submit", "--base-model", "scripted:?steps=1", "--dataset", "none",
            "--notify", "ops", "--notify-on", "cancelled", "--json",
        )  # fmt: skip
    assert (code, err) == (0, "")
    celora("cancel", json.loads(out)["id"])
    (told,) = json.loads(celora("notify", "log", "--json")[1])
    assert (told["target"], told["notice"]) == ("ops", "cancelled")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("add", "a"), 2, "a webhook or an Apprise URL"),
        (("add", "a", "--webhook", URL, "--on", "never"), 2, "no notice 'never'"),
        (("add", "a", "--webhook", URL, "--tenant", "nobody"), 2, "no tenant 'nobody'"),
        (("add", "a/…", "--webhook", URL), 2, "a target's name"),
        (("add", "a", "--webhook", URL, "--format", "xml"), 2, "no format 'xml'"),
        (("add", "a", "--webhook", URL, "--wait-seconds", "1"), 2, "60 seconds at the earliest"),
        (("add", "a", "--webhook", URL, "--budget-percent", "0"), 2, "over 0"),
        (("add", "a", "--webhook", "http://10.0.0.1/T0KEN"), 2, "not encrypted"),
        (("add", "a", "--apprise-env", "NOT_SET"), 2, "not set"),
        (("test", "a"), 2, "no target 'a'"),
        (("remove", "a"), 2, "no target 'a'"),
        (("retry", "1"), 2, "no delivery 1"),
        (("log", "--state", "lost"), 2, "no state 'lost'"),
    ],
)
def test_what_cannot_be_done_is_said(
    celora: Celora, arguments: tuple[str, ...], code: int, said: str
) -> None:
    found, out, err = celora("notify", *arguments)
    assert (found, out) == (code, "")
    assert said in err
    assert "What to do" in err
    assert "T0KEN" not in err
