"""The documentation says what the code does: tables, commands, links and names."""

from __future__ import annotations

import re
import sys
from importlib import import_module
from pathlib import Path

import pytest
import typer

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
# In code: `celora jobs`, `$ celora jobs`, "celora gpu-worker --devices all".
_WORD = r"[a-z0-9]+(?:-[a-z0-9]+)*"
_COMMAND = re.compile(rf"(?:^|[`$ ])celora ({_WORD}(?: [a-z]+(?:-[a-z]+)*)?)", re.MULTILINE)
_CODE = re.compile(r"```.*?```|`[^`\n]+`", re.DOTALL)


def _reference() -> object:
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        return import_module("reference")
    finally:
        sys.path.remove(str(ROOT / "docs"))


@pytest.mark.parametrize(
    "page", ["jobspec.md", "settings.md", "commands.md", "guide.md", "planning.md"]
)
def test_generated_tables_are_in_step_with_the_code(page: str) -> None:
    reference = _reference()
    path = ROOT / "docs" / page
    table = reference.pages()[page]  # type: ignore[attr-defined]  # loaded by path
    written = path.read_text()
    assert written == reference.with_table(written, table), "run `python docs/reference.py`"  # type: ignore[attr-defined]  # as above


def _commands() -> dict[str, set[str]]:
    """Command name → names of its sub-commands."""
    from celora.cli import app

    group = typer.main.get_command(app)
    return {
        name: set(getattr(command, "commands", {}))
        for name, command in group.commands.items()  # type: ignore[attr-defined]  # a group has
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_documented_command_exists(page: Path) -> None:
    commands = _commands()
    for code in _CODE.findall(page.read_text()):
        for match in _COMMAND.findall(code):
            name, *rest = match.split(" ")
            assert name in commands, f"celora {name}"
            if commands[name] and rest:
                assert rest[0] in commands[name], f"celora {match}"


def test_every_command_is_documented() -> None:
    text = "\n".join(page.read_text() for page in PAGES)
    for name in _commands():
        assert f"celora {name}" in text, f"no page mentions `celora {name}`"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_make_target_that_is_documented_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        for code in _CODE.findall(page.read_text()):
            for name in re.findall(r"(?:^|[`\n])make ([a-z-]+)", code):
                assert name in targets, f"{page.name}: make {name}"


def test_every_test_that_is_named_exists() -> None:
    tests = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    for page in PAGES:
        for name in re.findall(r"`(test_\w+)`", page.read_text()):
            assert f"def {name}(" in tests, f"{page.name}: {name}"


def test_the_drawing_of_a_jobs_life_has_every_edge_and_no_other() -> None:
    from models.states import EDGES

    page = (ROOT / "docs" / "job-lifecycle.md").read_text()
    drawn = set(re.findall(r"^    (\w+) --> (\w+)", page, re.MULTILINE))
    edges = {(old.value, new.value) for old, news in EDGES.items() for new in news}
    assert drawn == edges
