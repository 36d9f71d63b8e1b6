"""docker/compose.yaml as Docker's client reads it, where there is no client: values filled in."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]  # it ships no types

FOLDER = Path(__file__).parents[1] / "docker"
_VARIABLE = re.compile(r"\$\$|\$\{(?P<name>\w+)(?::(?P<kind>[-?])(?P<rest>[^}]*))?\}")


class MissingError(Exception):
    """What Docker says of ${NAME:?…} with NAME empty."""


def example() -> dict[str, str]:
    """The variables of .env.example, as they stand there."""
    lines = (FOLDER / ".env.example").read_text().splitlines()
    pairs = (line.split("=", 1) for line in lines if line and not line.startswith("#"))
    return {name: value for name, value in pairs}  # noqa: C416 (a list of two is no pair to dict)


def filled() -> dict[str, str]:
    """As an operator fills it in: a password of its own for whatever is empty."""
    optional = {"CELORA_SERVING_URL", "CELORA_SERVING_KEY"}
    return {
        name: value or ("" if name in optional else f"secret{number}")
        for number, (name, value) in enumerate(example().items())
    }


def composed(variables: dict[str, str]) -> dict[str, Any]:
    """The whole file, its values filled in and its anchors resolved. Raises MissingError."""
    found: dict[str, Any] = _filled(
        yaml.safe_load((FOLDER / "compose.yaml").read_text()), variables
    )
    return found


def services(variables: dict[str, str]) -> dict[str, dict[str, Any]]:
    """Service → its definition. Raises MissingError."""
    found: dict[str, dict[str, Any]] = composed(variables)["services"]
    for service in found.values():
        # A variable without a value is handed on where there is one, and else left out.
        given = {
            name: variables.get(name) if value is None else value
            for name, value in service.get("environment", {}).items()
        }
        service["environment"] = {name: it for name, it in given.items() if it is not None}
    return found


def used_variables() -> set[str]:
    found = _VARIABLE.finditer((FOLDER / "compose.yaml").read_text())
    return {match["name"] for match in found if match["name"]}


def _filled(value: Any, variables: dict[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _filled(inner, variables) for key, inner in value.items()}
    if isinstance(value, list):
        return [_filled(inner, variables) for inner in value]
    if isinstance(value, str):
        return _VARIABLE.sub(lambda match: _value(match, variables), value)
    return value


def _value(match: re.Match[str], variables: dict[str, str]) -> str:
    if match[0] == "$$":
        return "$"
    given = variables.get(match["name"], "")
    if given or match["kind"] is None:
        return given
    if match["kind"] == "?":
        raise MissingError(f"{match['name']}: {match['rest']}")
    return str(match["rest"])
