"""Sealed secrets: opened by any key of the list, and by nothing else."""

from __future__ import annotations

import pytest

from models import secrets
from models.errors import SetupError
from tests.environment import variables


def test_a_sealed_secret_is_not_readable_and_opens_again() -> None:
    with variables(CELORA_SECRET_KEY=secrets.new_key()):
        sealed = secrets.seal("whsec_abc")
        assert "whsec" not in sealed
        assert sealed != secrets.seal("whsec_abc")
        assert secrets.unseal(sealed) == "whsec_abc"


def test_a_key_is_replaced_while_the_old_one_still_opens() -> None:
    old, new = secrets.new_key(), secrets.new_key()
    with variables(CELORA_SECRET_KEY=old):
        sealed = secrets.seal("token")
    with variables(CELORA_SECRET_KEY=f"{new}, {old}"):
        assert secrets.unseal(sealed) == "token"
        resealed = secrets.seal("token")
    with variables(CELORA_SECRET_KEY=new):
        assert secrets.unseal(resealed) == "token"
        with pytest.raises(SetupError, match="a key that is not there"):
            secrets.unseal(sealed)


@pytest.mark.parametrize("key", ["", " , "])
def test_without_a_key_nothing_is_sealed_and_the_remedy_is_named(key: str) -> None:
    with variables(CELORA_SECRET_KEY=key), pytest.raises(SetupError, match="celora db new-key"):
        secrets.require_key()


def test_a_wrong_key_is_told_without_being_shown() -> None:
    with variables(CELORA_SECRET_KEY="my-password"), pytest.raises(SetupError) as raised:
        secrets.seal("token")
    assert "my-password" not in str(raised.value)


def test_the_settings_do_not_show_the_key() -> None:
    from models.settings import settings

    key = secrets.new_key()
    with variables(CELORA_SECRET_KEY=key):
        assert key not in repr(settings())
