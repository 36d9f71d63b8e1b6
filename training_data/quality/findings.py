"""What is worth telling of a quality record, and what to do about it. All of it is advice."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

_MANY_NEAR = 0.01
_MANY_SAME_PROMPT = 0.05
_MANY_ONE_WORD = 0.1
_MANY_TONGUES = 0.02
_MUCH_COMMON = 0.5
_UNEVEN = 20  # times as many rows as the rarest class has
_FEW_IN_CLASS = 10
_REVOKE = (
    "take it out of the data and revoke it: a model repeats what it was trained on, and the"
    " adapter's users could read it"
)
_PERSONAL = (
    "replace it with made-up values unless you may use it: a model repeats what it was trained on"
)


def findings(record: dict[str, Any]) -> list[dict[str, Any]]:
    """[{code, count, of, what, remedy}, …], the most serious first. Empty for fine data."""
    told = [*_private(record), *_leaks(record), *_answers(record), *_repeated(record)]
    return [*told, *_labels(record), *_languages(record)]


def _finding(code: str, count: int, of: int, what: str, remedy: str) -> dict[str, Any]:
    return {"code": code, "count": count, "of": of, "what": what, "remedy": remedy}


def _private(record: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for found in record["private"]:
        rows = found["rows"]
        yield _finding(
            f"private_{found['kind']}",
            rows,
            record["rows"],
            f"{rows:,} {_rows(rows)} what looks like {_a(found['name'])}",
            _PERSONAL if found["personal"] else _REVOKE,
        )


def _leaks(record: dict[str, Any]) -> Iterator[dict[str, Any]]:
    leaked = record["leakage"]
    total = leaked["held_out"]
    own = leaked["between"] == "eval_dataset"
    mend = (
        "take them out of eval_dataset: an evaluation on them measures memory"
        if own
        else "keep one row of each group, or give an eval_dataset of your own: an evaluation on"
        " them measures memory"
    )
    if leaked["exact"]:
        yield _finding(
            "leakage_exact",
            leaked["exact"],
            total,
            f"{leaked['exact']:,} training rows stand in the evaluation data too",
            "nothing has to be done: they are not trained on",
        )
    if leaked["same_prompt"]:
        yield _finding(
            "leakage_same_prompt",
            leaked["same_prompt"],
            total,
            f"{leaked['same_prompt']:,} of {total:,} held-out rows ask what a training row asks",
            mend,
        )
    if leaked["near"]:
        yield _finding(
            "leakage_near",
            leaked["near"],
            total,
            f"{leaked['near']:,} of {total:,} held-out rows say nearly the same as a training row",
            mend,
        )


def _answers(record: dict[str, Any]) -> Iterator[dict[str, Any]]:
    total, answers = record["rows"], record["answers"]
    for name, words in (
        ("empty", "without a letter or digit"),
        ("placeholder", "that only hold a place (n/a, none, todo)"),
    ):
        rows = answers[name]["rows"]
        if rows:
            yield _finding(
                f"answers_{name}",
                rows,
                total,
                f"{rows:,} answers {words}",
                "fill them in, or drop the rows",
            )
    rows = answers["one_word"]["rows"]
    if rows > _MANY_ONE_WORD * total and record["labels"] is None:
        yield _finding(
            "answers_one_word",
            rows,
            total,
            f"{rows:,} answers are one word, and they are not a few labels",
            "the model will learn to answer in one word; write them out if that is not meant",
        )
    rows = record["broken_text"]["rows"]
    if rows:
        yield _finding(
            "broken_text",
            rows,
            total,
            f"{rows:,} {_rows(rows)} text that was read in a wrong encoding (\ufffd, â€™)",
            "read the source as UTF-8 and write the rows again",
        )


def _repeated(record: dict[str, Any]) -> Iterator[dict[str, Any]]:
    total, repeated = record["rows"], record["duplicates"]
    exact, compared = repeated["exact"], repeated["compared"]
    if exact > _MANY_NEAR * (total + exact):
        yield _finding(
            "duplicates_exact",
            exact,
            total + exact,
            f"{exact:,} rows are exact copies of an earlier one",
            "nothing has to be done: each is used once; raise epochs to see rows more often",
        )
    if repeated["near"] > _MANY_NEAR * compared:
        yield _finding(
            "duplicates_near",
            repeated["near"],
            compared,
            f"{repeated['near']:,} of {compared:,} rows compared say nearly the same as another"
            f" ({repeated['groups']:,} groups, the largest of {repeated['largest_group']:,})",
            "keep one or a few of each group: what stands there often is learnt by heart",
        )
    if repeated["same_prompt"] > _MANY_SAME_PROMPT * total:
        yield _finding(
            "same_prompt",
            repeated["same_prompt"],
            total,
            f"{repeated['same_prompt']:,} rows ask what an earlier row asks and answer otherwise",
            "right where many answers are good ones; where one is, keep that",
        )
    if repeated["common_share"] > _MUCH_COMMON:
        yield _finding(
            "common_text",
            round(repeated["common_share"] * 100),
            100,
            f"{repeated['common_share']:.0%} of the text is the same in most rows",
            "shorten what all prompts have in common: it is paid for in every row",
        )


def _labels(record: dict[str, Any]) -> Iterator[dict[str, Any]]:
    labels = record["labels"]
    if labels is None:
        return
    most, least = labels["listed"][0], labels["listed"][-1]
    if most["rows"] >= _UNEVEN * least["rows"]:
        yield _finding(
            "labels_uneven",
            most["rows"],
            labels["rows"],
            f"the label {most['label']!r} has {most['rows']:,} rows,"
            f" {least['label']!r} {least['rows']:,}",
            "bring more rows of the rare labels, or fewer of the frequent one; compare exact match"
            " with always answering the most frequent",
        )
    elif least["rows"] < _FEW_IN_CLASS:
        yield _finding(
            "labels_few",
            least["rows"],
            labels["rows"],
            f"the label {least['label']!r} has only {least['rows']:,} rows",
            f"bring at least {_FEW_IN_CLASS} rows of each label",
        )


def _languages(record: dict[str, Any]) -> Iterator[dict[str, Any]]:
    found = record["language"]
    told = found["rows"] - found["too_short"]
    known = [one for one in found["languages"] if one["name"] != "other"]
    several = [one for one in known if one["rows"] > _MANY_TONGUES * told]
    if len(several) > 1:
        listed = ", ".join(f"{one['name']} {one['rows'] / told:.0%}" for one in several)
        yield _finding(
            "languages_mixed",
            told - several[0]["rows"],
            told,
            f"answers are in several languages ({listed} of {told:,} rows looked at)",
            "right for a model that is to speak them all; else drop the rows of the others",
        )
    if found["other_than_prompt"] > _MANY_TONGUES * found["with_both"]:
        yield _finding(
            "language_other_than_prompt",
            found["other_than_prompt"],
            found["with_both"],
            f"{found['other_than_prompt']:,} of {found['with_both']:,} rows looked at answer in"
            " another language than they are asked in",
            "right for translation; else the model will answer people in the wrong language",
        )


def _rows(count: int) -> str:
    return "row holds" if count == 1 else "rows hold"


def _a(name: str) -> str:
    return f"an {name}" if name[0] in "aeioAO" else f"a {name}"
