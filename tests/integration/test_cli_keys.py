"""Keys of the HTTP API and tokens for the hub, by command."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable

import pytest

from models import secrets
from models.queries.hub_tokens import tenant_with_token
from models.session import transaction
from tests import records
from tests.environment import variables

pytestmark = pytest.mark.usefixtures("database")

Celora = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def _empty(database: str) -> None:  # noqa: ARG001 (after the database, before each test)
    records.clear()


def test_a_key_is_made_listed_and_revoked(celora: Celora) -> None:
    code, out, err = celora(
        "keys", "create", "team", "--user", "ann", "--name", "CI", "--days", "9"
    )
    key = out.strip()
    assert (code, err) == (0, "")
    assert key.startswith("sk-celora-")
    _, out, _ = celora("keys", "list", "--json")
    (listed,) = json.loads(out)
    assert (listed["tenant"], listed["user"], listed["name"]) == ("team", "ann", "CI")
    assert listed["scopes"] == ["submit"]
    assert key not in out
    _, out, _ = celora("keys", "list")
    assert f"{key[:16]}…" in out
    assert celora("keys", "revoke", listed["id"])[0] == 0
    assert "No keys" in celora("keys", "list")[1]
    assert "revoked" in celora("keys", "list", "--all")[1]


def test_keys_that_cannot_be(celora: Celora) -> None:
    code, _, err = celora("keys", "create", "team", "--scope", "everything")
    assert code == 2
    assert "read, submit, admin" in err
    code, _, err = celora("keys", "revoke", "key_none")
    assert code == 2
    assert "no such key" in err


def test_a_tenants_token_is_sealed(celora: Celora, monkeypatch: pytest.MonkeyPatch) -> None:
    celora("keys", "create", "team")  # makes the tenant
    code, _, err = celora("tenants", "token", "set", "team")
    assert code == 5
    assert "CELORA_SECRET_KEY" in err
    with variables(CELORA_SECRET_KEY=secrets.new_key()):
        monkeypatch.setattr(sys, "stdin", io.StringIO("hf_secret\n"))
        code, out, err = celora("tenants", "token", "set", "team")
        assert (code, err) == (0, "")
        assert "hf_secret" not in out
        with transaction() as session:
            _, sealed = tenant_with_token(session, "team")
        assert sealed is not None
        assert "hf_secret" not in sealed
        assert secrets.unseal(sealed) == "hf_secret"
        monkeypatch.setattr(sys, "stdin", io.StringIO("\n"))
        assert celora("tenants", "token", "set", "team")[0] == 2
        monkeypatch.setattr(sys, "stdin", io.StringIO("hf_secret\n"))
        assert "no tenant" in celora("tenants", "token", "set", "nobody")[2]
    assert [
        one["tenant"] for one in json.loads(celora("tenants", "token", "list", "--json")[1])
    ] == ["team"]
    assert "is removed" in celora("tenants", "token", "remove", "team")[1]
    assert "had no token" in celora("tenants", "token", "remove", "team")[1]
