"""What looks private is found and masked; what only resembles it is left alone."""

from __future__ import annotations

import re
import time

import pytest

from training_data.quality.private import PATTERNS, find, masked, masked_pieces, suspects

# Put together at run time: a scanner that looks at this file finds no key in it.
A36 = "a1B2" * 9
PLANTED = {
    "private_key": "-----BEGIN RSA PRIVATE " + "KEY-----\nMIIEow\n-----END RSA PRIVATE KEY-----",
    "aws_access_key": "AKIA" + "IOSFODNN7EXAMPLE",
    "github_token": "ghp_" + A36,
    "gitlab_token": "glpat-" + A36[:20],
    "slack_token": "xoxb-" + "123456789012-abcdefABCDEF",
    "stripe_key": "sk_live_" + A36[:24],
    "model_api_key": "sk-proj-" + A36,
    "google_key": "AIza" + A36[:35],
    "huggingface_token": "hf_" + A36[:34],
    "npm_token": "npm_" + A36,
    "pypi_token": "pypi-AgEIcHlwaS5vcmc" + A36 * 2,
    "sendgrid_key": "SG." + A36[:22] + "." + (A36 + A36)[:43],
    "telegram_token": "123456789:AA" + A36[:33],
    "azure_key": "AccountKey=" + (A36 * 3)[:86] + "==",
    "jwt": "eyJhbGciOiJIUzI1NiJ9." + "eyJzdWIiOiIxMjM0NTYifQ." + A36,
    "password": 'db_password = "' + 'hunter2-and-more"',
    "email": "jane.doe+news@mail.celora-users.co.uk",
    "card": "4111 1111 1111 " + "1111",
    "phone": "+44 20 7946 0958",
}


@pytest.mark.parametrize("kind", PLANTED)
@pytest.mark.parametrize("around", ["%s", "see (%s), then", '{"a": "%s"}\n', "été %s 机器"])
def test_each_kind_is_found_and_masked(kind: str, around: str) -> None:
    secret = PLANTED[kind]
    text = around % secret
    assert suspects(["nothing", text]) == [1]
    found = find(text)
    assert [one.pattern.kind for one in found] == [kind]
    shown = masked(text)
    assert f"[{found[0].pattern.words}]" in shown
    assert not any(piece in shown for piece in re.findall(r"[\w+/.-]{8,}", secret))


def test_every_pattern_has_its_example() -> None:
    assert [pattern.kind for pattern in PATTERNS] == list(PLANTED)


@pytest.mark.parametrize(
    "text",
    [
        "write to someone@example.com or root@db.test",
        "a price of 1,234,567,890,123,456 and pi 3.14159265358979323846",
        "4111 1111 1111 1112 fails the check digit, 0000 0000 0000 0000 is no card",
        "order 1234567890123 of 2026-11-24 12:30:45, 48/2 = <<48/2=24>>24, 3 + 4 + 5",
        "the task-based sk-learn pipeline, risk-averse-and-long-words-without-a-digit-anywhere",
        "ghp_short, AKIA, eyJ.eyJ., the password is a word, token: yes",
        "https://example.org/a:b@c and git@github",
        "call 555-0100 or dial 112; version 1.22.333.4444; 2001-2024 555 1234",
        "-----BEGIN CERTIFICATE-----",
        "",
    ],
)
def test_what_only_resembles_is_left_alone(text: str) -> None:
    assert find(text) == []
    assert masked(text) == text


def test_what_stands_side_by_side_is_told_apart() -> None:
    text = f"{PLANTED['email']} {PLANTED['phone']}, {PLANTED['card']} and {PLANTED['email']}"
    assert [one.pattern.kind for one in find(text)] == ["email", "phone", "card", "email"]


def test_a_url_with_a_password_is_no_address() -> None:
    text = "postgres://app:s3cret-pw" + "@db.internal.celora.dev/x"
    assert [one.pattern.kind for one in find(text)] == ["password"]
    assert "s3cret" not in masked(text)


@pytest.mark.parametrize("cut", [1, 8, 20])
def test_a_secret_over_the_bounds_of_pieces_is_masked_whole(cut: int) -> None:
    token = PLANTED["github_token"]
    pieces = ["a: ", token[:cut], token[cut:] + "!", " end"]
    assert masked_pieces(pieces) == ["a: ", "[GitHub token]", "!", " end"]


def test_a_key_that_is_cut_off_is_masked_to_the_end() -> None:
    text = PLANTED["private_key"][:45]
    assert masked(f"x {text}") == "x [private key]"


@pytest.mark.parametrize(
    "piece",
    [
        "eyJ",
        "-eyJ",
        "eyJ.",
        "a@",
        "a@b.co ",
        "@a.a.",
        "+1 ",
        "1 ",
        "://a:b",
        "y = ",
        "password: ",
        "-----BEGIN A PRIVATE KEY-----",
        "sk-",
        "A",
        " ",
        '"',
        "4111 1111 1111 1111 ",
    ],
)
def test_no_text_takes_long(piece: str) -> None:
    """Four times the text takes about four times as long, whatever the text."""
    find("warm up")

    def seconds(size: int) -> float:
        text = f"a@b.co {piece * (size // len(piece))}"
        began = time.thread_time()
        find(text)
        return time.thread_time() - began

    assert min(seconds(200_000) for _ in range(2)) < 10 * max(seconds(50_000), 0.02)
