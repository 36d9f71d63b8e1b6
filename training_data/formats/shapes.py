"""Which shape the records have: said by the user, by the column mapping, or detected."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from models.errors import DataError, RowProblem
from training_data.formats import chat, plain
from training_data.formats.rows import Row
from training_data.formats.values import kind, listed
from training_data.problems import RowError

# A shape and the roles whose columns show it, in order of preference: Alpaca's rows, for one,
# carry a rendered `text` beside instruction and output.
_SHOWN_BY: dict[str, tuple[str, ...]] = {
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "instruction": ("instruction", "output"),
    "prompt_completion": ("prompt", "completion"),
    "text": ("text",),
}
_PARSERS: dict[str, Callable[[dict[str, Any], Mapping[str, str]], Row]] = {
    "messages": chat.messages,
    "sharegpt": chat.conversations,
    "instruction": plain.instruction,
    "prompt_completion": plain.prompt_completion,
    "text": plain.text_only,
}
_OPTIONAL = {
    "messages": ("system", "tools"),
    "sharegpt": ("system", "tools"),
    "instruction": ("system", "input"),
    "prompt_completion": ("system",),
    "text": (),
}
_ASKING = ("question", "query", "problem", "source", "context", "input", "instruction", "prompt")
_ANSWERING = ("answer", "response", "target", "solution", "label", "reply", "output", "completion")


@dataclass(frozen=True, slots=True)
class Shape:
    """A known shape. `columns` maps each role to the column that holds it in this data."""

    name: str
    columns: dict[str, str]

    def parse(self, record: Any) -> Row:
        """The row in a record. Raises RowError."""
        if not isinstance(record, dict):
            raise RowError(f"the row is {kind(record)}, not an object", 'write {"…": "…", …}')
        try:
            return _PARSERS[self.name](record, self.columns)
        except RowError as error:
            other = _fitting(record, {})
            needed = {self.columns[role] for role in _SHOWN_BY[self.name]}
            if other is not None and other != self.name and not needed <= set(record):
                raise RowError(
                    f"the row has the shape {other}, the data before it {self.name}",
                    "keep one shape in a file: split it in two, or bring the rows into one shape",
                ) from None
            raise error from None


def wanted_columns(mapping: Mapping[str, str]) -> frozenset[str]:
    """Every column that could matter, so that a reader may leave the others out."""
    roles = {role for roles in (*_SHOWN_BY.values(), *_OPTIONAL.values()) for role in roles}
    return frozenset(roles | set(mapping.values()))


def shape_of(
    record: Any, asked: str, mapping: Mapping[str, str], *, where: str, line: int
) -> Shape:
    """The shape of the data whose first record this is. Raises DataError where none fits."""
    if not isinstance(record, dict):
        what = f"the row is {kind(record)}, not an object"
        remedy = 'give rows such as {"instruction": "…", "output": "…"}'
        raise DataError(
            "the rows have no known shape",
            where=where,
            remedy=remedy,
            problems=[RowProblem(line, what, remedy)],
        )
    absent = sorted(set(mapping.values()) - set(record))
    name = asked if asked != "auto" else _mapped(mapping) or _fitting(record, mapping)
    # An optional column (input, system) may be absent from the first row alone.
    needed = [mapping[role] for role in _SHOWN_BY.get(name or "", ()) if role in mapping]
    if name is None or any(column in absent for column in needed):
        raise _unfit(record, absent, where)
    roles = (*_SHOWN_BY[name], *_OPTIONAL[name])
    return Shape(name, {role: mapping.get(role, role) for role in roles})


def _mapped(mapping: Mapping[str, str]) -> str | None:
    """The shape whose roles a mapping names."""
    return next(
        (name for name, roles in _SHOWN_BY.items() if any(role in mapping for role in roles)), None
    )


def _fitting(record: dict[str, Any], mapping: Mapping[str, str]) -> str | None:
    for name, roles in _SHOWN_BY.items():
        if all(mapping.get(role, role) in record for role in roles):
            return name
    return None


def _unfit(record: dict[str, Any], absent: list[str], where: str) -> DataError:
    names = [str(name) for name in record]
    what = f"no column {absent[0]!r} in the data" if absent else "the rows have no known shape"
    asking = next((name for name in names if name.lower() in _ASKING), None)
    answering = next((name for name in names if name.lower() in _ANSWERING), None)
    if asking and answering:
        example = f"--map instruction={asking} --map output={answering}"
    else:
        example = "--map prompt=COLUMN --map completion=COLUMN"
    return DataError(
        f"{what}; the columns are: {listed(names)}",
        where=where,
        remedy="name the columns: " + example,
    )
