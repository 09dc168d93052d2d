"""Means and cluster-robust errors against numbers worked by hand and against plain formulas."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from warp_core.evaluation.statistics import clustered_mean, paired_difference


def test_two_prompts_with_two_completions_by_hand() -> None:
    # mean 3; residual sums (1-3)+(2-3) = -3 and (3-3)+(6-3) = 3; se^2 = 2/1 * (9+9) / 4^2 = 2.25
    found = clustered_mean([1, 2, 3, 6], ["p", "p", "q", "q"])
    assert (found.mean, found.se, found.n, found.num_clusters) == (3.0, 1.5, 4, 2)


def test_unequal_clusters_by_hand() -> None:
    # mean 2; residual sums (0-2) = -2 and (1-2)+(5-2) = 2; se^2 = 2/1 * 8 / 9
    found = clustered_mean([0, 1, 5], [7, 8, 8])
    assert found.mean == 2.0
    assert found.se == pytest.approx(4 / 3, rel=1e-15)


def test_one_value_per_prompt_is_the_textbook_error() -> None:
    # s^2 of 1, 2, 3, 6 is 14/3; over 4 values: 7/6
    found = clustered_mean([1, 2, 3, 6], "abcd")
    assert found.se == pytest.approx(math.sqrt(7 / 6), rel=1e-15)


def test_the_order_of_the_completions_does_not_count() -> None:
    assert clustered_mean([1, 3, 2, 6], ["p", "q", "p", "q"]) == clustered_mean([1, 2, 3, 6], ["p", "p", "q", "q"])


def test_a_single_prompt_has_no_error() -> None:
    found = clustered_mean([1, 2, 3], ["p"] * 3)
    assert (found.mean, found.se, found.num_clusters) == (2.0, None, 1)


@pytest.mark.parametrize(
    ("values", "clusters"), [([], []), ([1.0], []), ([1.0, 2.0], ["p"]), ([math.nan], ["p"]), ([math.inf, 1.0], "pq")]
)
def test_values_without_a_mean_are_refused(values: list[float], clusters: list[str]) -> None:
    with pytest.raises(ValueError, match=r"finite|as many"):
        clustered_mean(values, clusters)


def test_large_offsets_keep_float64_precision() -> None:
    found = clustered_mean([1e9 + 1, 1e9 + 2, 1e9 + 3, 1e9 + 6], ["p", "p", "q", "q"])
    assert (found.mean, found.se) == (1e9 + 3, 1.5)


@given(st.lists(st.lists(st.floats(-100, 100), min_size=3, max_size=3), min_size=2, max_size=8))
def test_equal_clusters_give_the_error_of_the_prompt_means(rows: list[list[float]]) -> None:
    found = clustered_mean(np.array(rows).ravel(), [i for i in range(len(rows)) for _ in range(3)])
    assert found.se is not None
    expected = np.array(rows).mean(axis=1).std(ddof=1) / math.sqrt(len(rows))
    assert found.se == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_a_paired_difference_by_hand() -> None:
    # prompt means 1, 5 and 0, 3: differences 1, 2: mean 1.5, sd sqrt(1/2), se sqrt(1/2)/sqrt(2) = 1/2
    found = paired_difference([0, 2, 4, 6], ["p", "p", "q", "q"], [0, 3], ["p", "q"])
    assert found.mean == 1.5
    assert found.se == pytest.approx(0.5, rel=1e-15)
    assert (found.n, found.num_clusters) == (6, 2)


def test_pairing_removes_what_the_prompts_share() -> None:
    hard = np.array([0.0, 10.0, 20.0, 30.0])
    found = paired_difference(hard + 1, "abcd", hard[::-1], "dcba")
    assert (found.mean, found.se) == (1.0, 0.0)
    assert clustered_mean(hard, "abcd").se == pytest.approx(math.sqrt(500 / 3) / 2, rel=1e-15)


def test_a_difference_on_one_prompt_has_no_error() -> None:
    assert paired_difference([1, 2], "pp", [3], "p").se is None


def test_other_prompts_cannot_be_paired() -> None:
    with pytest.raises(ValueError, match="same prompts"):
        paired_difference([1, 2], "pq", [1, 2], "pr")


def test_the_error_covers_the_truth_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    hits = 0
    for _ in range(400):
        values = generator.normal(size=40)[:, None] + generator.normal(size=(40, 4))
        found = clustered_mean(values.ravel(), [i for i in range(40) for _ in range(4)])
        assert found.se is not None
        hits += abs(found.mean) < 1.96 * found.se
    assert 0.92 <= hits / 400 <= 0.97
