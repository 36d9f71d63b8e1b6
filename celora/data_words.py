"""The quality of training data in words, for the command and for reports.

Takes `verdict["quality"]` as training_data/quality/look.py makes it. A record of another version
may lack keys or have more: what is missing is left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

_BAR = 30
_NAMED_PLACES = 5
_SPREAD = ("min", "p50", "p95", "p99", "max")  # jsonb gives an object's keys in an order of its own


def quality_facts(quality: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(name, value), one line each."""
    rows, of_rows = quality.get("rows", 0), quality.get("of_rows", 0)
    yield "looked at", f"{rows:,} rows" + ("" if rows == of_rows else f", the first of {of_rows:,}")
    for part in ("prompt", "answer"):
        if lengths := (quality.get("characters") or {}).get(part):
            yield f"characters, {part}", spread(lengths)
    for name, words in (
        ("duplicates", _repeated),
        ("leakage", _leaked),
        ("answers", _answers),
        ("labels", _labels),
        ("language", _languages),
        ("broken_text", _broken),
        ("private", _private),
    ):
        if quality.get(name) is not None:
            yield from words(quality[name])


def quality_warnings(quality: dict[str, Any]) -> list[str]:
    return [f"{one['what']}; {one['remedy']}" for one in quality.get("findings") or []]


def spread(lengths: dict[str, Any]) -> str:
    """Least, percentiles and most, in this order; what is missing is left out."""
    return ", ".join(
        f"{name} {lengths[name]:,}" for name in _SPREAD if lengths.get(name) is not None
    )


def histogram_facts(bins: list[dict[str, int]]) -> Iterator[tuple[str, str]]:
    """`verdict["length_histogram"]` as bars."""
    most = max((one["rows"] for one in bins), default=0)
    for one in bins:
        bar = "▇" * round(_BAR * one["rows"] / most)
        yield f"{one['from']:,}–{one['to']:,} tokens", f"{bar} {one['rows']:,}".strip()


def _repeated(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield "copies", f"{found['exact']:,} exact (left out), {_near(found)}"
    if found["same_prompt"]:
        yield "same prompt", f"{_rows(found['same_prompt'])}, with other answers"
    if found["common_share"]:
        yield "common to most rows", f"{found['common_share']:.0%} of the text"


def _near(repeated: dict[str, Any]) -> str:
    words = f"{repeated['near']:,} nearly the same as another of {repeated['compared']:,} compared"
    if repeated["near"]:
        words += (
            f" (alike to {repeated['alike']:.0%}; {repeated['groups']:,} groups, the largest of"
            f" {repeated['largest_group']:,})" + _examples(repeated["examples"])
        )
    if repeated["too_short"]:
        words += f"; {repeated['too_short']:,} too short to compare"
    if repeated["left_out"]:
        words += (
            f"; {repeated['left_out']:,} beyond the first {repeated['compared']:,} not compared"
        )
    return words


def _leaked(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    own = found["between"] == "eval_dataset"
    same = f"{found['exact']:,} exact (left out), {found['same_prompt']:,} with the same prompt"
    near = f"{found['near']:,} nearly the same{_examples(found['examples'])}"
    of = f"of {found['held_out']:,} held out: "
    yield "in evaluation data too" if own else "held out and trained on", f"{of}{same}, {near}"


def _answers(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    names = (("empty", "empty"), ("placeholder", "placeholders"), ("one_word", "of one word"))
    yield "answers", ", ".join(f"{found[name]['rows']:,} {words}" for name, words in names)


def _labels(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    listed = ", ".join(f"{one['label']} {one['rows']:,}" for one in found["listed"])
    more = found["classes"] - len(found["listed"])
    yield "labels", f"{found['classes']}: {listed}" + (f"; {more} more" if more else "")


def _languages(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    if told := found["rows"] - found["too_short"]:
        short = f"; {found['too_short']:,} too short or no prose" if found["too_short"] else ""
        languages = _shares(found["languages"], told)
        yield "languages of answers", f"{languages}, of {told:,} rows looked at{short}"
    if found["with_both"]:
        unlike = f"{found['other_than_prompt']:,} of {found['with_both']:,} rows looked at"
        yield "answered otherwise", f"{unlike}, in another language than they are asked in"
    if found["scripts"]:
        yield "scripts", f"{_shares(found['scripts'], found['rows'])}, of {found['rows']:,} rows"


def _broken(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    if found["rows"]:
        yield "wrong encoding", f"{_rows(found['rows'])}: {_places(found)}"


def _private(found: list[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    for one in found:
        yield one["name"], f"{one['count']:,} in {_rows(one['rows'])}: {_places(one)}"
    if not found:
        yield "keys, personal data", "none found"


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count:,} rows"


def _shares(listed: list[dict[str, Any]], total: int) -> str:
    return ", ".join(f"{one['name']} {one['rows'] / total:.1%}" for one in listed)


def _places(noted: dict[str, Any]) -> str:
    named = ", ".join(map(_place, noted["places"][:_NAMED_PLACES]))
    return named + (" …" if noted["rows"] > _NAMED_PLACES else "")


def _examples(pairs: list[dict[str, Any]]) -> str:
    if not pairs:
        return ""
    first = pairs[0]
    return f", as {_place(first['row'])} and {_place(first['like'])}"


def _place(place: dict[str, Any]) -> str:
    where = f"line {place['line']}"
    if place["file"]:
        where = f"{place['file']} {where}"
    return f"evaluation data {where}" if place["data"] == "eval_dataset" else where
