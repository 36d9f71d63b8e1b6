"""Where notifications may go, when they are tried again, and what they say."""

from __future__ import annotations

import ipaddress
import json
from datetime import UTC, datetime
from typing import Any

import pytest

from models.errors import InputError
from models.notices import Format, Notice, pause_after
from models.queries.deliveries import Sending
from models.reach import allowed_private, is_public, may_reach, require_webhook_url
from tasks.delivery import messages
from tests.environment import variables


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.216.34", True),
        ("2606:4700::1111", True),
        ("::ffff:93.184.216.34", True),
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("169.254.169.254", False),  # a cloud's metadata service
        ("100.64.0.1", False),
        ("0.0.0.0", False),  # noqa: S104 (nothing is bound)
        ("224.0.0.1", False),
        ("::1", False),
        ("fe80::1", False),
        ("fd00::1", False),
        ("::ffff:127.0.0.1", False),
        ("64:ff9b::a9fe:a9fe", False),
        ("2002:7f00:1::", False),
    ],
)
def test_private_addresses_are_known_in_all_their_wrappings(address: str, public: bool) -> None:  # noqa: FBT001 (a test's parameter)
    assert is_public(ipaddress.ip_address(address)) is public


def test_a_setting_names_private_hosts_and_networks() -> None:
    inside = ipaddress.ip_address("10.1.2.3")
    with variables(CELORA_NOTIFY_PRIVATE_HOSTS="chat.corp, 10.2.0.0/16"):
        assert may_reach(inside, "Chat.corp")
        assert not may_reach(inside, "other.corp")
        assert may_reach(ipaddress.ip_address("10.2.0.1"), "other.corp")
    assert allowed_private("") == (frozenset(), ())


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://hooks.example.com/T0KEN", "not encrypted"),
        ("ftp://hooks.example.com/T0KEN", "begins with https"),
        ("file:///etc/T0KEN", "begins with https"),
        ("https://user:T0KEN@example.com/", "user and password"),
        ("https://[::1]/T0KEN", "private address"),
        ("https://2130706433/T0KEN\n", "printable"),
        ("https://example.com:99999/T0KEN", "no URL"),
        ("T0KEN", "begins with https"),
    ],
)
def test_a_webhooks_url_is_checked_and_never_repeated(url: str, said: str) -> None:
    with pytest.raises(InputError, match=said) as raised:
        require_webhook_url(url)
    assert "T0KEN" not in str(raised.value)


def test_tries_spread_over_about_a_day() -> None:
    pauses = [pause_after(attempts, jitter=0) for attempts in range(1, 12)]
    assert pauses[:4] == [5, 20, 80, 320]
    assert pauses[-1] is None
    waited = sum(pause for pause in pauses if pause is not None)
    assert 24 * 3600 < waited < 28 * 3600


def test_pauses_differ_by_a_fifth_at_most() -> None:
    found = {pause_after(1) for _ in range(50)}
    assert len(found) > 1
    assert all(pause is not None and 4 <= pause <= 6 for pause in found)


JOB = {
    "id": "ftjob-1",
    "name": "support bot",
    "tenant": "default",
    "user": "ada",
    "state": "failed",
    "method": "lora",
    "base_model": "llama",
    "step": 12,
    "gpu_seconds": 125.0,
    "waited_seconds": 3700,
    "error": {"code": "out_of_memory", "message": "the device's memory ran out"},
}
BUDGET = {
    "tenant": "physics",
    "user": None,
    "month": "2026-11",
    "gpu_hours_used": 81.5,
    "gpu_hours_per_month": 100,
    "percent": 80,
}


def sending(notice: Notice, data: dict[str, Any], body: Format = Format.CELORA) -> Sending:
    return Sending(
        id=1,
        attempt=1,
        target_id=1,
        target="ops",
        sending=1,
        kind="webhook",
        format=body,
        sealed_url="",
        sealed_secret=None,
        message_id="evt_1",
        notice=notice,
        data=data,
        created_at=datetime(2026, 11, 24, tzinfo=UTC),
    )


@pytest.mark.parametrize(
    ("notice", "data", "title", "text"),
    [
        (
            Notice.STARTED,
            JOB,
            "Celora: support bot (ftjob-1) has started",
            (
                "Job support bot (ftjob-1) of ada has started: lora on llama.\n"
                "Next: celora watch ftjob-1"
            ),
        ),
        (
            Notice.COMPLETED,
            JOB,
            "Celora: support bot (ftjob-1) has completed",
            (
                "Job support bot (ftjob-1) of ada has completed after 12 steps and 2 min 5 s of GPU"
                " time.\nNext: celora report ftjob-1"
            ),
        ),
        (
            Notice.FAILED,
            JOB | {"name": None},
            "Celora: ftjob-1 failed",
            "Job ftjob-1 of ada failed: the device's memory ran out.\nNext: celora logs ftjob-1",
        ),
        (
            Notice.CANCELLED,
            JOB,
            "Celora: support bot (ftjob-1) was cancelled",
            (
                "Job support bot (ftjob-1) of ada was cancelled after 12 steps and 2 min 5 s of GPU"
                " time.\nNext: celora job ftjob-1"
            ),
        ),
        (
            Notice.WAITING,
            JOB,
            "Celora: support bot (ftjob-1) waits",
            (
                "Job support bot (ftjob-1) of ada has waited for a GPU for 1 h 1 min.\n"
                "Next: celora why ftjob-1"
            ),
        ),
        (
            Notice.BUDGET,
            BUDGET,
            "Celora: GPU hours of 2026-11 are nearly used up",
            (
                "Tenant physics has used 81.5 of 100 GPU hours in 2026-11. Once all are used, jobs"
                " wait for the next month.\nNext: celora tenants"
            ),
        ),
        (
            Notice.TEST,
            {"asked_by": "ada"},
            "Celora: a test message",
            "A test message, asked for by ada. Nothing has happened.",
        ),
    ],
)
def test_a_message_says_what_happened_and_what_to_run_next(
    notice: Notice, data: dict[str, Any], title: str, text: str
) -> None:
    made = sending(notice, data)
    assert messages.title(made) == title
    assert messages.text(made) == text


def test_the_body_of_openais_format_is_openais() -> None:
    body = messages.webhook_body(sending(Notice.FAILED, JOB, Format.OPENAI))
    assert json.loads(body) == {
        "id": "evt_1",
        "object": "event",
        "created_at": 1_795_478_400,
        "type": "fine_tuning.job.failed",
        "data": {"id": "ftjob-1"},
    }
