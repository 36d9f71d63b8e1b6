"""How close generated answers come to the expected ones."""

from __future__ import annotations

import re
from collections.abc import Sequence

_WORDS = re.compile(r"[^\W_]+")


def exact_match(
    answers: Sequence[str], expected: Sequence[str], pattern: str | None = None
) -> float:
    """Share of answers that are the expected text, 0–1, but for spaces at both ends.

    With a `pattern`, its last match is compared (the first group where there is one), for the
    answer to a worked problem stands at its end. An answer without a match is wrong; an expected
    text without one is compared whole.
    """
    compiled = re.compile(pattern) if pattern is not None else None
    hits = 0
    for given, wanted in zip(answers, expected, strict=True):
        picked = pick(compiled, wanted)
        hits += pick(compiled, given) == (wanted.strip() if picked is None else picked)
    return hits / len(answers)


def pick(pattern: re.Pattern[str] | None, text: str) -> str | None:
    """The part of `text` that is compared, or None where the pattern is not in it."""
    if pattern is None:
        return text.strip()
    last = None
    for last in pattern.finditer(text):  # noqa: B007  the last one is wanted
        pass
    if last is None:
        return None
    group = last.group(1) if pattern.groups else None
    return (last.group() if group is None else group).strip()


def bleu(answers: Sequence[str], expected: Sequence[str]) -> float:
    """Corpus BLEU of sacrebleu with its standard settings, 0–100."""
    from sacrebleu import corpus_bleu

    return corpus_bleu(list(answers), [list(expected)], force=True).score


def rouge_l(answers: Sequence[str], expected: Sequence[str]) -> float:
    """Mean F-measure of ROUGE-L, 0–1."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], tokenizer=_AnyScript())
    scores = [scorer.score(w, g)["rougeL"].fmeasure for g, w in zip(answers, expected, strict=True)]
    return float(sum(scores) / len(scores))


class _AnyScript:
    """rouge_score's own tokenizer, which drops all but a–z and 0–9, for every script."""

    def tokenize(self, text: str) -> list[str]:
        return _WORDS.findall(text.lower())
