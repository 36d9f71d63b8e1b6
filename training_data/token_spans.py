"""From spans of characters to ranges of tokens, for a batch of texts.

`tokenizers` can tell where each token's characters stand, but keeping count of that is a fifth of
the time it takes to tokenise. With a byte-level tokenizer, which is what most models have, it is
known from the tokens alone: each stands for as many bytes as it has letters. A text whose bytes
do not add up (a normaliser has changed it) is tokenised again, with offsets.
"""

from __future__ import annotations

import unicodedata
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from training_data.tokenizer import Frozen


@dataclass(slots=True)
class Span:
    """Characters from `start` up to (not with) `end` of text number `row`."""

    row: int
    start: int
    end: int


@dataclass(slots=True)
class Encoded:
    """Texts, what `tokenizers` made of them, and the ids of each."""

    texts: list[str]
    encodings: list[Any]
    ids: list[array[int]]


TokenRange = tuple[int, int]


class Ruler(Protocol):
    """Tokenises texts and tells which tokens hold any character of a span."""

    def encode(self, texts: list[str]) -> list[Any]: ...

    def ranges(self, batch: Encoded, spans: Sequence[Span]) -> list[TokenRange]:
        """Of an empty span only the beginning means something: the token at that character."""
        ...


def ruler_for(tokenizer: Frozen) -> Ruler:
    return ByteRuler(tokenizer) if tokenizer.byte_level else OffsetRuler(tokenizer)


class OffsetRuler:
    """By the offsets that `tokenizers` keeps. Works with every tokenizer."""

    def __init__(self, tokenizer: Frozen) -> None:
        self._backend = tokenizer.backend

    def encode(self, texts: list[str]) -> list[Any]:
        encodings: list[Any] = self._backend.encode_batch(texts, add_special_tokens=False)
        return encodings

    def ranges(self, batch: Encoded, spans: Sequence[Span]) -> list[TokenRange]:
        return [
            _by_offsets(batch.encodings[span.row], batch.texts[span.row], span) for span in spans
        ]


class ByteRuler:
    """By the bytes that each token stands for."""

    def __init__(self, tokenizer: Frozen) -> None:
        import numpy as np

        self._backend = tokenizer.backend
        self._nfc = tokenizer.nfc
        vocabulary = self._backend.get_vocab()
        added = {token.content for token in self._backend.get_added_tokens_decoder().values()}
        self._bytes = np.zeros(max(vocabulary.values(), default=0) + 1, np.int64)
        for token, number in vocabulary.items():
            # A byte-level vocabulary writes each byte as one letter; added tokens are as they are.
            self._bytes[number] = len(token.encode()) if token in added else len(token)

    def encode(self, texts: list[str]) -> list[Any]:
        encodings: list[Any] = self._backend.encode_batch_fast(texts, add_special_tokens=False)
        return encodings

    def ranges(self, batch: Encoded, spans: Sequence[Span]) -> list[TokenRange]:
        import numpy as np

        texts = batch.texts
        first_tokens = np.concatenate([[0], np.cumsum([len(ids) for ids in batch.ids])])
        ids = np.concatenate([np.frombuffer(ids, np.int32) for ids in batch.ids])
        ends = np.concatenate([[0], self._bytes[ids].cumsum()])
        first_bytes = ends[first_tokens]  # of each row, in the row of all bytes

        rows = [span.row for span in spans]
        starts = first_bytes[rows] + [_bytes_to(texts[span.row], span.start) for span in spans]
        stops = first_bytes[rows] + [_bytes_to(texts[span.row], span.end) for span in spans]
        # The first token that ends behind a byte holds it; a token that begins before the span's
        # end holds some of it.
        firsts = np.searchsorted(ends[1:], starts, side="right") - first_tokens[rows]
        lasts = np.searchsorted(ends[:-1], stops, side="left") - first_tokens[rows]
        found = list(zip(firsts.tolist(), lasts.tolist(), strict=True))

        held = np.diff(first_bytes).tolist()
        unlike = {row for row, text in enumerate(texts) if not self._adds_up(text, held[row])}
        for number, span in enumerate(spans):
            if span.row in unlike:
                encoding = self._backend.encode(texts[span.row], add_special_tokens=False)
                found[number] = _by_offsets(encoding, texts[span.row], span)
        return found

    def _adds_up(self, text: str, held: int) -> bool:
        if text.isascii():
            return len(text) == held
        if self._nfc and not unicodedata.is_normalized("NFC", text):
            return False
        return len(text.encode()) == held


def _bytes_to(text: str, position: int) -> int:
    return position if text.isascii() else len(text[:position].encode())


def _by_offsets(encoding: Any, text: str, span: Span) -> TokenRange:
    first = _token_at(encoding, span.start, text)
    last = _token_at(encoding, span.end, text)
    # A token may straddle the span's end; it holds some of it, so it belongs to it.
    while (held := encoding.token_to_chars(last)) is not None and held[0] < span.end:
        last += 1
    return first, last


def _token_at(encoding: Any, position: int, text: str) -> int:
    """The first token that holds the character at `position`, or the next that any token holds."""
    for place in range(position, len(text)):
        token = encoding.char_to_token(place)
        if token is not None:
            return int(token)
    return len(encoding)
