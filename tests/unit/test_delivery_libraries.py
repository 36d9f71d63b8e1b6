"""Where a library of the extra `notify` is missing, that is said, with what to install."""

from __future__ import annotations

import asyncio
import sys

import pytest

from models import secrets
from models.errors import SetupError
from tasks.delivery import webhook


@pytest.mark.parametrize("library", ["httpx", "standardwebhooks"])
def test_a_webhook_is_not_sent(monkeypatch: pytest.MonkeyPatch, library: str) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(SetupError, match=rf"{library} is not installed[\s\S]*celora\[notify\]"):
        asyncio.run(webhook.send("https://example.com/x", "whsec_AAAA", "evt_1", "{}"))


def test_no_secret_is_sealed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cryptography", None)
    with pytest.raises(SetupError, match=r"celora\[notify\]"):
        secrets.new_key()
