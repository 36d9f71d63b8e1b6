"""`celora adapters`: what it prints, its JSON, its exit codes; and the same from Python."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from sqlalchemy import text

import celora as api
from models.errors import GateError
from models.session import transaction
from tests import records
from tests.versions import evaluated, trained

pytestmark = pytest.mark.usefixtures("database", "_empty")

Celora = Callable[..., tuple[int, str, str]]


@pytest.fixture
def _empty(database: str) -> None:  # noqa: ARG001 (after the database, before each test)
    records.clear()


def test_from_registration_to_rollback(celora: Celora) -> None:
    assert "No adapters" in celora("adapters")[1]
    job_id = evaluated()
    assert celora("adapters", "register", job_id, "--name", "bot")[1] == f"{job_id} is bot/1\n"
    evaluated(adapter_name="bot", tuned={"loss": 3.0})
    evaluated(adapter_name="bot", tuned={"loss": 0.5})
    assert "move freely" in celora("adapters", "gates", "bot")[1]
    code, out, _ = celora("adapters", "gate", "bot", "production", "loss", "--least", "0.1")
    assert (code, "holder" in out) == (0, True)
    alias = ("adapters", "alias", "bot", "production")
    assert celora(*alias, "1", "--user", "ada")[0] == 0
    code, out, err = celora(*alias, "2")
    assert (code, out) == (GateError.exit_code, "")
    assert "loss on held-out rows 3 against 1 of bot/1: better by -2, asked is 0.1" in err
    assert "--force" in err
    assert "moved: 1 → 3" in celora(*alias, "bot/3")[1]
    assert "is bot/3 already" in celora(*alias, "3")[1]
    assert "forced: 3 → 2" in celora(*alias, "2", "--force", "for a demonstration")[1]
    assert "rolled back: 2 → 3" in celora("adapters", "rollback", "bot", "production")[1]
    code, out, _ = celora("adapters", "history", "bot")
    assert code == 0
    for part in ("moved: none → 1, by ada", "✗ loss", "reason: for a demonstration", "✓ loss"):
        assert part in out, part
    moves = json.loads(celora("adapters", "history", "bot", "production", "--json")[1])
    assert [move["kind"] for move in moves] == ["rolled_back", "forced", "moved", "moved"]
    assert moves[2]["figures"][0]["improvement"] == 0.5

    code, _, err = celora("adapters", "delete", "bot/3")
    assert (code, "is production" in err) == (4, True)
    assert "bot/2 is deleted" in celora("adapters", "delete", "bot/2")[1]
    out = celora("adapters")[1]
    assert "production" in out
    assert "4 → 0.5" in out
    assert "bot/2" not in out
    found = json.loads(celora("adapters", "--name", "bot", "--json")[1])
    assert [(one["reference"], one["aliases"]) for one in found] == [
        ("bot/3", ["production"]),
        ("bot/1", []),
    ]
    shown = json.loads(celora("adapters", "show", "bot@production", "--json")[1])
    assert shown == found[0]
    assert shown["evaluation"]["tuned"]["loss"] == 0.5
    assert shown["win_rate"]["ratings"] == 0
    for part in (
        "bot/3",
        "lora, rank 16",
        "Celora 0.1.0 with torch 2",
        "r1",
        "nobody has rated it",
    ):
        assert part in celora("adapters", "show", "bot/3")[1], part
    assert celora("adapters", "gate", "bot", "production", "loss", "--remove")[0] == 0
    assert "removed: 3 → none" in celora(*alias, "none")[1]
    with transaction() as session:
        rows = session.execute(text("SELECT * FROM admin.adapters ORDER BY version")).mappings()
        seen = [
            (row["name"], row["version"], row["aliases"], row["celora_version"]) for row in rows
        ]
    assert seen == [("bot", 1, [], "0.1.0"), ("bot", 3, [], "0.1.0")]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("show", "bot/7"), "bot/7 is not there"),
        (("show", "nobody/1"), "no adapter of the name"),
        (("show", "ftjob-x"), "names no adapter"),
        (("alias", "bot", "production", "two"), "is no version"),
        (("alias", "bot", "a/b", "1"), "no plain name"),
        (("alias", "bot", "staging", "none"), "no alias 'staging'"),
        (("rollback", "bot", "staging"), "no alias 'staging'"),
        (("gate", "bot", "production", "luck"), "'luck' is no metric"),
        (("gate", "bot", "production", "loss", "--remove"), "no gate on loss"),
        (("history", "bot", "--tenant", "others"), "no adapter of the name"),
    ],
)
def test_what_cannot_be_is_explained(celora: Celora, arguments: tuple[str, ...], said: str) -> None:
    trained(adapter_name="bot")
    code, _, err = celora("adapters", *arguments)
    assert code == 2
    assert said in err
    assert "What to do" in err


def test_from_python() -> None:
    job_id = evaluated()
    made = api.register_adapter(job_id, "bot", user="ada")
    assert (made.reference, made.job_id, made.registered_by) == ("bot/1", job_id, "ada")
    moved = api.move_alias("bot", "production", 1, user="ada")
    assert moved is not None
    assert (moved.from_version, moved.to_version, moved.moved_by) == (None, 1, "ada")
    assert api.adapter("bot@production") == api.adapters()[0]
    evaluated(adapter_name="bot")
    api.move_alias("bot", "production", 2)
    assert api.roll_back_alias("bot", "production", reason="rude").to_version == 1
    assert api.delete_adapter("bot/2") == "bot/2"
    assert api.win_rate(job_id).rate is None
