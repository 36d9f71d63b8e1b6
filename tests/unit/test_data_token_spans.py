"""Which tokens hold which characters: by bytes as by offsets, for tokenizers of every make."""

from __future__ import annotations

from array import array
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, trainers

from tests.data_tokenizers import CORPUS, make_tokenizer
from training_data.token_spans import ByteRuler, Encoded, OffsetRuler, Ruler, Span, ruler_for
from training_data.tokenizer import Frozen, load


def plain(_: Tokenizer) -> None:
    pass


def composing(tokenizer: Tokenizer) -> None:
    """As Qwen's, which brings text into Unicode's composed form first."""
    tokenizer.normalizer = normalizers.NFC()


def swallowing(tokenizer: Tokenizer) -> None:
    """A token that takes the white space before it with it."""
    tokenizer.add_special_tokens([AddedToken("<gap>", lstrip=True, special=True)])


def word_pieces(tokenizer: Tokenizer) -> None:
    """As Llama 2's: spaces become letters, bytes are a last resort. Not byte-level."""
    replaced = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    model = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    model.normalizer = normalizers.Sequence(replaced)
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{value:02X}>" for value in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=tokens, show_progress=False)
    model.train_from_iterator(CORPUS, trainer)
    tokenizer.model = model.model
    tokenizer.normalizer = model.normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([])


def lowering(tokenizer: Tokenizer) -> None:
    """Not what its bytes say: İ becomes two letters in lower case."""
    tokenizer.normalizer = normalizers.Lowercase()


MAKES = {make.__name__: make for make in (plain, composing, swallowing, word_pieces, lowering)}


@pytest.fixture(scope="module")
def frozen(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Frozen:
    folder = make_tokenizer(tmp_path_factory.mktemp("base"), special=("<gap>",))
    make: Callable[[Tokenizer], None] = MAKES[request.param]
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    make(tokenizer)
    tokenizer.save(str(folder / "tokenizer.json"))
    return load(str(folder))


def measured(ruler: Ruler, texts: list[str], spans: list[Span]) -> list[tuple[int, int]]:
    encodings = ruler.encode(texts)
    ids = [array("i", encoding.ids) for encoding in encodings]
    return ruler.ranges(Encoded(texts, encodings, ids), spans)


PIECES = st.sampled_from(
    [*"abé \n😀İ1.", "the ", "fox", "<gap>", "</s>", "e\u0301", "\u0958", "\u212b", " " * 3]
)
TEXTS = st.lists(PIECES, min_size=1, max_size=12).map("".join)


@settings(max_examples=300)
@given(data=st.data())
@pytest.mark.parametrize("frozen", list(MAKES), indirect=True)
def test_bytes_and_offsets_agree(frozen: Frozen, data: st.DataObject) -> None:
    texts = data.draw(st.lists(TEXTS, min_size=1, max_size=4))
    spans = []
    for row, text in enumerate(texts):
        for _ in range(data.draw(st.integers(0, 2))):
            start = data.draw(st.integers(0, len(text)))
            spans.append(Span(row, start, data.draw(st.integers(start, len(text)))))
    by_offsets = measured(OffsetRuler(frozen), texts, spans)
    assert measured(ruler_for(frozen), texts, spans) == [
        # Of an empty span only the first token is asked for.
        found if span.start < span.end else (found[0], theirs[1])
        for span, found, theirs in zip(
            spans, by_offsets, measured(ruler_for(frozen), texts, spans), strict=True
        )
    ]


@pytest.mark.parametrize(
    ("frozen", "quick"),
    [
        ("plain", True),
        ("composing", True),
        ("swallowing", True),
        ("word_pieces", False),
        ("lowering", False),
    ],
    indirect=["frozen"],
)
def test_which_ruler_is_used(frozen: Frozen, quick: object) -> None:
    assert isinstance(ruler_for(frozen), ByteRuler) is quick


@pytest.mark.parametrize("frozen", ["plain"], indirect=True)
def test_a_span_holds_every_token_with_a_character_of_it(frozen: Frozen) -> None:
    text = "the quick fox é😀"
    spans = [Span(0, 0, 3), Span(0, 3, 4), Span(0, 10, len(text)), Span(0, 4, 4)]
    encoding = frozen.backend.encode(text)
    for span, (first, last) in zip(spans, measured(ruler_for(frozen), [text], spans), strict=True):
        for number, (start, end) in enumerate(encoding.offsets):
            inside = start < span.end and end > span.start
            if span.start < span.end:
                assert (first <= number < last) == inside
