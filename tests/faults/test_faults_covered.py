"""Every fault of docs/reliability.md is injected by a test, or says why it cannot be here."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reliability.md"
NUMBERS = range(1, 31)
# A row of the table: its number, and the rest.
_ROW = re.compile(r"^\| (\d+) \|(.*)\|$", re.MULTILINE)
_NOT_INJECTED = re.compile(r"not injected: \w+ \w+")  # with a reason


def marked() -> dict[str, set[int]]:
    """Test → the faults it is marked with."""
    found: dict[str, set[int]] = {}
    for path in (ROOT / "tests").rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                marks = [one for one in node.decorator_list if isinstance(one, ast.Call)]
                faults = [one for one in marks if ast.unparse(one.func) == "pytest.mark.fault"]
                numbers = {ast.literal_eval(arg) for one in faults for arg in one.args}
                if numbers:
                    found[node.name] = numbers
    return found


def test_every_fault_has_a_test_or_a_reason() -> None:
    tests = marked()
    covered = set().union(*tests.values())
    assert covered <= set(NUMBERS)
    rows = dict(_ROW.findall(PAGE.read_text()))
    assert sorted(map(int, rows)) == list(NUMBERS), "one row for each fault"
    for number in NUMBERS:
        reason = _NOT_INJECTED.search(rows[str(number)])
        assert number in covered or reason, f"fault {number} has neither a test nor a reason"


def test_every_row_names_tests_of_its_fault() -> None:
    tests = marked()
    for number, row in _ROW.findall(PAGE.read_text()):
        for name in re.findall(r"`(test_\w+)`", row):
            assert int(number) in tests.get(name, set()), f"fault {number}: {name} is not marked"
