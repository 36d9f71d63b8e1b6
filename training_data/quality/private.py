"""What looks like a secret or like personal data: found and counted, never shown.

A table of anchored patterns. detect-secrets, the obvious library, was tried and left out: it takes
2 to 6 ms a row of prose and found 65 "high-entropy strings" in each. Its plugins' patterns
(Yelp/detect-secrets 1.5, Apache-2.0) and the formats that the issuers publish are the sources here.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

# Reserved for examples (RFC 2606): such an address belongs to nobody.
_NOBODYS = re.compile(
    r"(?:^|[@.])(?:example\.(?:com|net|org)|\w+\.(?:example|test|invalid))$", re.IGNORECASE
)
# First digits of a card's number and its lengths, as in ISO/IEC 7812: Visa, Mastercard, American
# Express, Diners Club, Discover, JCB.
_CARD = re.compile(
    r"4\d{12}(?:\d{3}){0,2}|5[1-5]\d{14}|2(?:22[1-9]|2[3-9]\d|[3-6]\d\d|7[01]\d|720)\d{12}"
    r"|3[47]\d{13}|3(?:0[0-5]|[68]\d)\d{11}|6(?:011|4[4-9]\d|5\d\d)\d{12}|35(?:2[89]|[3-8]\d)\d{12}"
)
_FEWEST_DIGITS, _MOST_DIGITS = 8, 15  # of a telephone number with its country code: ITU-T E.164


@dataclass(frozen=True, slots=True)
class Pattern:
    """`mark` is a cheaper pattern, in RE2's syntax too, that every match of `look` contains.

    Neither may take more than linear time on any text: a row has up to 8 MiB.
    """

    kind: str
    words: str
    mark: str
    look: re.Pattern[str]
    right: Callable[[str], bool] = bool
    personal: bool = False


@dataclass(frozen=True, slots=True)
class Found:
    pattern: Pattern
    start: int
    end: int


def _email(text: str) -> bool:
    return not _NOBODYS.search(text)


def _phone(text: str) -> bool:
    return _FEWEST_DIGITS <= sum(map(str.isdigit, text)) <= _MOST_DIGITS


def _card(text: str) -> bool:
    digits = re.sub(r"\D", "", text)
    if not _CARD.fullmatch(digits) or len(set(digits)) == 1:
        return False
    doubled = [int(digit) * (1 + place % 2) for place, digit in enumerate(reversed(digits))]
    return sum(value - 9 * (value > 9) for value in doubled) % 10 == 0  # noqa: PLR2004 (Luhn's rule)


def _mixed(text: str) -> bool:
    """A word of letters alone is no key."""
    return any(map(str.isdigit, text)) and any(map(str.isalpha, text))


def _pattern(
    kind: str,
    words: str,
    mark: str,
    look: str,
    right: Callable[[str], bool] = bool,
    *,
    personal: bool = False,
) -> Pattern:
    return Pattern(kind, words, mark, re.compile(look), right, personal)


# In this order: what an earlier one has taken, a later one does not count again.
PATTERNS = (
    _pattern(
        "private_key",
        "private key",
        "PRIVATE KEY",
        r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----"
        r"(?:(?s:.)*?-----END [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----|(?s:.)*)",
    ),
    _pattern(
        "aws_access_key",
        "AWS access key",
        "A(?:KIA|SIA|BIA|CCA|3T)",
        r"\b(?:A3T[A-Z0-9]|ABIA|ACCA|AKIA|ASIA)[0-9A-Z]{16}\b",
    ),
    _pattern(
        "github_token",
        "GitHub token",
        "gh[pousr]_|github_pat_",
        r"\b(?:gh[pousr]_[A-Za-z0-9]{36,251}|github_pat_[A-Za-z0-9]{22}_[A-Za-z0-9]{59})",
    ),
    _pattern("gitlab_token", "GitLab token", "glpat-", r"\bglpat-[A-Za-z0-9_-]{20,}"),
    _pattern(
        "slack_token",
        "Slack token or webhook",
        r"xox|hooks\.slack\.com",
        r"\bxox[abeoprs]-[A-Za-z0-9-]{10,}|hooks\.slack\.com/services/T\w+/B\w+/\w+",
    ),
    _pattern(
        "stripe_key", "Stripe key", "k_(?:live|test)_", r"\b[rs]k_(?:live|test)_[0-9A-Za-z]{16,}"
    ),
    _pattern(
        "model_api_key",
        "OpenAI or Anthropic key",
        "sk-",
        r"\bsk-[A-Za-z0-9_-]{32,}",
        _mixed,
    ),
    _pattern("google_key", "Google API key", "AIza", r"\bAIza[0-9A-Za-z_-]{35}"),
    _pattern("huggingface_token", "Hugging Face token", "hf_", r"\bhf_[A-Za-z0-9]{30,}"),
    _pattern("npm_token", "npm token", "npm_", r"\bnpm_[A-Za-z0-9]{36}"),
    _pattern("pypi_token", "PyPI token", "pypi-AgE", r"\bpypi-AgE[A-Za-z0-9_-]{50,}"),
    _pattern("sendgrid_key", "SendGrid key", r"SG\.", r"\bSG\.[\w-]{22}\.[\w-]{43}"),
    _pattern("telegram_token", "Telegram bot token", ":AA", r"\b\d{8,10}:AA[\w-]{33}"),
    _pattern("azure_key", "Azure storage key", "AccountKey=", r"AccountKey=[A-Za-z0-9+/]{86}=="),
    _pattern(
        "jwt",
        "JSON web token",
        r"eyJ[\w-]{10}",
        r"(?<![\w-])eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]*",
    ),
    _pattern(
        "password",
        "password or key in code or in a URL",
        r"://[^/\s:@]+:[^/\s:@]+@|[yndtYNDT][\"']?\s*[:=]+\s*[\"']",
        r"://[^/\s:@]{1,64}:[^/\s:@]{3,128}@"
        r"|(?i:(?:api|secret|access|private)_?-?key|(?:auth|access|api)_?-?token|client_?-?secret"
        r"|passw(?:or)?d)[\"']?\s*[:=]+>?\s*[\"'][^\s\"']{8,200}[\"']",
    ),
    _pattern(
        "email",
        "e-mail address",
        r"@[\w-]+\.",
        r"(?<![\w.+-])[A-Za-z0-9][\w.+-]{0,63}@(?:[A-Za-z0-9-]{1,63}\.)+[A-Za-z]{2,24}\b",
        _email,
        personal=True,
    ),
    _pattern(
        "card",
        "card number",
        r"\d(?:[ -]?\d){12}",
        r"(?<![\d.,])\d(?:[ -]?\d){12,18}(?![\d.,]?\d)",
        _card,
        personal=True,
    ),
    _pattern(
        "phone",
        "telephone number",
        r"\+[1-9](?:[ .()/-]{0,2}\d){7}|\d\d\d\)? ?[ .-]?\d\d\d[ .-]\d\d\d\d",
        r"(?<![\w+])\+[1-9](?:[ .()/-]{0,2}\d){7,14}(?!\d)"
        r"|(?<![\w.+-])(?:\([2-9]\d\d\) ?|[2-9]\d\d[ .-])\d{3}[ .-]\d{4}(?![\w-]|\.\d)",
        _phone,
        personal=True,
    ),
)
_ANY = "|".join(pattern.mark for pattern in PATTERNS)
_MARKS = [(pattern, re.compile(pattern.mark)) for pattern in PATTERNS]


def suspects(texts: Sequence[str]) -> list[int]:
    """Which of the texts have to be looked at: one pass of RE2, which needs no GIL."""
    import pyarrow.compute as pc

    from training_data.arrow_arrays import strings

    marked = pc.match_substring_regex(strings(texts), _ANY)
    return [number for number, found in enumerate(marked.to_pylist()) if found]


def find(text: str) -> list[Found]:
    """Everything in a text that looks private, no two overlapping, in order."""
    found: list[Found] = []
    for pattern, mark in _MARKS:
        if not mark.search(text):
            continue
        begins = [one.start for one in found]
        new = []
        for match in pattern.look.finditer(text):
            start, end = match.span()
            place = bisect_right(begins, start)
            taken = (place > 0 and found[place - 1].end > start) or (
                place < len(begins) and begins[place] < end
            )
            if not taken and pattern.right(match[0]):
                new.append(Found(pattern, start, end))
        if new:
            found = sorted([*found, *new], key=lambda one: one.start)
    return found


def masked(text: str) -> str:
    """The text with what looks private replaced by what it looks like."""
    return masked_pieces([text])[0]


def masked_pieces(pieces: Sequence[str]) -> list[str]:
    """As `masked`, for a text in pieces, over whose bounds a secret may reach."""
    whole, bounds = "".join(pieces), list(accumulate(map(len, pieces), initial=0))
    found = find(whole)
    shown = []
    for begin, end in pairwise(bounds):
        parts, position = [], begin
        for one in found:
            if one.end <= begin or one.start >= end:
                continue
            parts.append(whole[position : max(position, one.start)])
            if one.start >= begin:
                parts.append(f"[{one.pattern.words}]")
            position = min(one.end, end)
        shown.append("".join([*parts, whole[position:end]]))
    return shown
