"""Rules of the tree that import-linter cannot say. docs/architecture.md gives the reasons."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
FLOORS = ("celora", "tasks", "gpu_worker", "training_data", "migrations", "models")

# Statements that make SQL; a Session, a URL or an error type may be imported anywhere.
_SQL = {"select", "insert", "update", "delete", "text", "exists", "union", "union_all"}
_SQL_MODULES = ("sqlalchemy", "sqlalchemy.dialects.postgresql", "sqlalchemy.sql")


def _modules(*folders: str) -> Iterator[tuple[Path, ast.Module]]:
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield path.relative_to(ROOT), ast.parse(path.read_text())


def test_sql_stands_in_models_queries_alone() -> None:
    allowed = ("models/queries/", "models/tables/", "migrations/")
    found = [
        f"{path}: {alias.name}"
        for path, module in _modules(*FLOORS)
        if not str(path).startswith(allowed)
        for node in ast.walk(module)
        if isinstance(node, ast.ImportFrom) and node.module in _SQL_MODULES
        for alias in node.names
        if alias.name in _SQL
    ]
    assert found == []


def test_queries_never_end_the_callers_transaction() -> None:
    found = [
        f"{path}:{node.lineno}"
        for path, module in _modules("models/queries")
        for node in ast.walk(module)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in {"commit", "rollback", "close"}
    ]
    assert found == []


def test_nothing_is_unpickled() -> None:
    found = []
    for path, module in _modules(*FLOORS):
        for node in ast.walk(module):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [getattr(node, "module", None), *(alias.name for alias in node.names)]
                found += [f"{path}: {name}" for name in names if name in {"pickle", "dill"}]
            if (
                isinstance(node, ast.Call)
                and ast.unparse(node.func) == "torch.load"
                and "weights_only=True" not in ast.unparse(node)
            ):
                found.append(f"{path}:{node.lineno}: torch.load without weights_only=True")
    assert found == []


def _longer_than(lines: int, *folders: str) -> dict[str, int]:
    lengths = {
        str(path): len((ROOT / path).read_text().splitlines())
        for path, _ in _modules(*folders)
        if path.parent.name != "versions"  # a migration is one step, however many tables it makes
    }
    return {path: length for path, length in lengths.items() if length > lines}


def test_no_file_is_longer_than_400_lines() -> None:
    assert _longer_than(400, *FLOORS, "benchmarks", "examples", "docs") == {}
    # Tests are read one at a time, and those of one file share what is dear to start.
    assert _longer_than(600, "tests") == {}


def test_folders_that_are_no_packages_stay_so() -> None:
    for folder in ("tests", "docker", "benchmarks", "examples", "docs"):
        assert list((ROOT / folder).rglob("__init__.py")) == []
