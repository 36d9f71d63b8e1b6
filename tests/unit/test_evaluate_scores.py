"""Scores of generated answers, against values worked out by hand."""

import pytest

from gpu_worker.trainer.scores import bleu, exact_match, rouge_l


def test_exact_match_looks_past_outer_spaces_only() -> None:
    assert exact_match([" yes\n", "Yes", "y es"], ["yes", "yes", "yes"]) == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("answer", "expected", "hit"),
    [
        ("so it is\n#### 42", "thus\n#### 42", True),
        ("#### 41 no, #### 42", "#### 42", True),  # the last one is the answer
        ("#### 42 no, #### 41", "#### 42", False),
        ("42", "#### 42", False),  # the pattern is not in the answer
        ("#### 42", "42", True),  # nor in the expected text, which then counts whole
        ("", "", False),
    ],
)
def test_a_pattern_picks_the_answer_out(answer: str, expected: str, *, hit: bool) -> None:
    assert exact_match([answer], [expected], r"#### (\S+)") == hit


def test_a_pattern_without_group_compares_the_whole_match() -> None:
    assert exact_match(["it is 7 or 12"], ["12"], r"\d+") == 1
    assert exact_match(["it is 12 or 7"], ["12"], r"\d+") == 0


def test_a_group_that_took_no_part_gives_way_to_the_whole_match() -> None:
    assert exact_match(["so b", "so c"], ["b", "b"], r"(a)|[bc]") == 0.5


def test_bleu_counts_over_the_whole_corpus() -> None:
    assert bleu(["the cat sat on the mat"], ["the cat sat on the mat"]) == pytest.approx(100)
    # 7 of 8 words, 5 of 6 pairs, 4 of 4 triples, 3 of 3 quadruples; no shorter than expected.
    geometric_mean = (7 / 8 * 5 / 6) ** 0.25
    answers, expected = ["the cat sat on the mat", "a b"], ["the cat sat on the mat", "a c"]
    assert bleu(answers, expected) == pytest.approx(100 * geometric_mean)
    assert bleu([""], ["a b"]) == 0


def test_rouge_l_is_the_mean_f_measure_in_any_script() -> None:
    assert rouge_l(["a b c d"], ["a c d e"]) == pytest.approx(0.75)
    assert rouge_l(["Кот сидит"], ["кот сидит тут"]) == pytest.approx(0.8)
    assert rouge_l(["a b c d", ""], ["a c d e", "a"]) == pytest.approx(0.375)
