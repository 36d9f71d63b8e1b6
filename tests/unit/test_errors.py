"""Errors say what happened, where, and what to do; and their tree is drawn as it is."""

from __future__ import annotations

import re

import pytest

from models import errors
from models.errors import CeloraError, DataError, RowProblem


def tree() -> list[type[CeloraError]]:
    return [
        value
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, CeloraError)
    ]


def test_the_drawing_names_every_error() -> None:
    drawn = set(re.findall(r"\b\w+Error\b", errors.__doc__ or ""))
    assert drawn == {error.__name__ for error in tree()}


def test_codes_are_unique() -> None:
    codes = [error.code for error in tree()]
    assert len(codes) == len(set(codes))


@pytest.mark.parametrize("error", tree())
def test_each_says_what_where_and_what_to_do(error: type[CeloraError]) -> None:
    raised = error("it broke", where="rows.jsonl:3", remedy="mend it")
    assert "rows.jsonl:3: it broke" in str(raised)
    assert "mend it" in str(raised)
    record = raised.record()
    assert (record["message"], record["where"], record["remedy"]) == (
        "it broke",
        "rows.jsonl:3",
        "mend it",
    )
    assert record["code"] == error.code


def test_row_problems_are_listed_and_the_rest_counted() -> None:
    raised = DataError(
        "bad rows", problems=[RowProblem(7, "no answer", "add one")], problem_count=9
    )
    assert "line 7: no answer (add one)" in str(raised)
    assert "and 8 more" in str(raised)
    assert raised.record()["problems"] == [{"line": 7, "what": "no answer", "remedy": "add one"}]
