"""Diversity against numbers worked by hand."""

import pytest

from warp_core.evaluation.diversity import diversity, similarity


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("a b c d", "a b x d", 2 * 3 / 8),  # a b, then d
        ("a b", "c d", 0.0),
        ("the same words", "the  same\nwords", 1.0),
        ("", "", 1.0),
        ("a", "", 0.0),
        ("abc", "abd", 0.0),  # words count, not letters
    ],
)
def test_similarity_by_hand(first: str, second: str, expected: float) -> None:
    assert similarity(first, second) == pytest.approx(expected, rel=1e-15)
    assert similarity(second, first) == similarity(first, second)


def test_similarity_has_no_junk_heuristic_for_long_texts() -> None:
    # in texts of 200 words and more, difflib would leave out every word that makes up over 1 % of the text
    assert similarity("a b " * 150, "a b " * 150) == 1.0


def test_each_prompt_counts_once() -> None:
    # p: pairs (ab, ac), (ab, ab), (ac, ab): similarities 1/2, 1, 1/2: mean 2/3; q: 0
    found = diversity(["a b", "x", "a c", "y", "a b"], ["p", "q", "p", "q", "p"])
    assert found is not None
    assert found.mean == pytest.approx((1 / 3 + 1) / 2, rel=1e-15)
    # spread of 1/3 and 1 over two prompts: sd = (2/3)/sqrt(2), over sqrt(2): 1/3
    assert found.se == pytest.approx(1 / 3, rel=1e-15)
    assert found.n == 2


def test_prompts_with_one_completion_say_nothing() -> None:
    assert diversity(["a", "b"], ["p", "q"]) is None
    found = diversity(["a", "b", "b"], ["p", "q", "q"])
    assert found is not None
    assert (found.mean, found.se) == (0.0, None)


def test_every_completion_needs_its_prompt() -> None:
    with pytest.raises(ValueError, match="as many"):
        diversity(["a"], [])
