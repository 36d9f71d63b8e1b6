"""Which shape the records have: said by the user, by the column mapping, or detected."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from models.errors import DataError, RowProblem
from models.spec import PREFERENCE_SHAPES
from training_data.formats import chat, plain, preference
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
    "preference": ("chosen", "rejected"),
    "openai_preference": ("preferred_output", "non_preferred_output"),
}
_PARSERS: dict[str, Callable[[dict[str, Any], Mapping[str, str]], Row]] = {
    "messages": chat.messages,
    "sharegpt": chat.conversations,
    "instruction": plain.instruction,
    "prompt_completion": plain.prompt_completion,
    "text": plain.text_only,
    "preference": preference.preference,
    "openai_preference": preference.openai_preference,
}
_OPTIONAL = {
    "messages": ("system", "tools"),
    "sharegpt": ("system", "tools"),
    "instruction": ("system", "input"),
    "prompt_completion": ("system",),
    "text": (),
    "preference": ("system", "tools", "prompt"),
    "openai_preference": ("input",),
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
            other = _fitting(record, {}, pairs=self.name in PREFERENCE_SHAPES)
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
    record: Any,
    asked: str,
    mapping: Mapping[str, str],
    *,
    pairs: bool = False,
    where: str,
    line: int,
) -> Shape:
    """The shape of the data whose first record this is; with `pairs` a preference shape, else none
    of them. Raises DataError where none fits."""
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
    name: str | None = asked
    if asked == "auto":
        name = _mapped(mapping, pairs=pairs) or _fitting(record, mapping, pairs=pairs)
    # An optional column (input, system) may be absent from the first row alone.
    needed = [mapping[role] for role in _SHOWN_BY.get(name or "", ()) if role in mapping]
    if name is None or any(column in absent for column in needed):
        raise _unfit(record, absent, where, pairs=pairs)
    roles = (*_SHOWN_BY[name], *_OPTIONAL[name])
    return Shape(name, {role: mapping.get(role, role) for role in roles})


def are_pairs(record: Any, mapping: Mapping[str, str]) -> bool:
    """Whether data that begins with this record can only be preference pairs."""
    if not isinstance(record, dict):
        return False
    plain, pairs = (
        _mapped(mapping, pairs=pairs) or _fitting(record, mapping, pairs=pairs)
        for pairs in (False, True)
    )
    return pairs is not None and plain is None


def _shown(*, pairs: bool) -> dict[str, tuple[str, ...]]:
    return {name: by for name, by in _SHOWN_BY.items() if (name in PREFERENCE_SHAPES) == pairs}


def _mapped(mapping: Mapping[str, str], *, pairs: bool) -> str | None:
    """The shape whose roles a mapping names."""
    shown = _shown(pairs=pairs)
    return next((name for name, roles in shown.items() if any(r in mapping for r in roles)), None)


def _fitting(record: dict[str, Any], mapping: Mapping[str, str], *, pairs: bool) -> str | None:
    for name, roles in _shown(pairs=pairs).items():
        if all(mapping.get(role, role) in record for role in roles):
            return name
    return None


def _unfit(record: dict[str, Any], absent: list[str], where: str, *, pairs: bool) -> DataError:
    names = [str(name) for name in record]
    what = f"no column {absent[0]!r} in the data" if absent else "the rows have no known shape"
    if not absent and (other := _fitting(record, {}, pairs=not pairs)) is not None:
        remedy = (
            "dpo wants prompt, chosen and rejected; lora, qlora or full train on these rows"
            if pairs
            else "train on preference pairs with method dpo"
        )
        return DataError(f"the rows have the shape {other}", where=where, remedy=remedy)
    asking = next((name for name in names if name.lower() in _ASKING), None)
    answering = next((name for name in names if name.lower() in _ANSWERING), None)
    if pairs:
        example = "--map prompt=COLUMN --map chosen=COLUMN --map rejected=COLUMN"
    elif asking and answering:
        example = f"--map instruction={asking} --map output={answering}"
    else:
        example = "--map prompt=COLUMN --map completion=COLUMN"
    return DataError(
        f"{what}; the columns are: {listed(names)}",
        where=where,
        remedy="name the columns: " + example,
    )
