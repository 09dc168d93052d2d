"""Claims against numbers worked out by hand, and intervals against what is known of them."""

import numpy as np
import pytest

from warp_core.evaluation import paired
from warp_core.studies.asking import above, alike, curved, rises, trend
from warp_core.studies.claims import (
    Claim,
    Interval,
    Means,
    Readings,
    bootstrapped,
    chord_height,
    decide,
    front_gap,
    hypervolume_gap,
    mean_heights,
    mean_interval,
    verdict_of,
)

PROMPTS = 40


def curve(kl, reward, *, noise=0.0, seed=0, at=None, length=None):
    """Readings whose means over the prompts are exactly `kl` and `reward`; prompts differ by a common offset."""
    generator = np.random.default_rng(seed)
    offset_G = np.random.default_rng(99).normal(size=PROMPTS)
    offset_G -= offset_G.mean()
    own_PG = noise * generator.normal(size=(len(kl), PROMPTS))
    own_PG -= own_PG.mean(axis=1, keepdims=True)
    wide = np.ones(PROMPTS)
    return Readings(
        at_P=np.array(at if at is not None else range(len(kl)), dtype=float),
        kl_PG=np.outer(kl, wide),
        reward_PG=np.outer(reward, wide) + offset_G + own_PG,
        length_PG=np.outer(length if length is not None else np.zeros(len(kl)), wide),
    )


def means(kl, reward):
    return Means(
        at_P=np.arange(len(kl), dtype=float),
        kl_P=np.array(kl, dtype=float),
        reward_P=np.array(reward, dtype=float),
        length_P=np.zeros(len(kl)),
    )


def test_the_gap_of_two_lines_is_their_mean_distance_where_both_are():
    low, high = means([0, 4], [0, 4]), means([0, 2], [1, 3])  # y = x and y = x + 1 up to 2
    assert front_gap(high, low) == pytest.approx(1.0)
    assert front_gap(low, high) == pytest.approx(-1.0)
    assert front_gap(means([0, 2, 1], [0, 2, 1]), low) == pytest.approx(0.0), "points in any order"
    steeper = means([0, 2], [0, 4])  # y = 2x: the mean of x over [0, 2] is 1
    assert front_gap(steeper, low) == pytest.approx(1.0)


def test_curves_that_share_no_kl_have_no_gap():
    assert np.isnan(front_gap(means([0, 1], [0, 1]), means([2, 3], [0, 1])))
    assert (
        bootstrapped(
            lambda m: front_gap(m["a"], m["b"]), [{"a": curve([0, 1], [0, 1]), "b": curve([2, 3], [0, 1])}], ("a", "b")
        )
        is None
    )


def test_hypervolumes_differ_by_the_area_between():
    # To (2, 0): a has 1 x 3 = 3 from KL 1 on; b has 1 x 1.
    assert hypervolume_gap(means([0, 1], [0, 3]), means([0, 1], [0, 1]), (2.0, 0.0)) == pytest.approx(2.0)


def test_a_parabola_lies_above_its_chord_by_the_known_amount():
    x = np.array([0.0, 0.25, 0.5, 0.75, 1.0])
    assert chord_height(x, x * (1 - x)) == pytest.approx((0.1875 + 0.25 + 0.1875) / 3)
    assert chord_height(x, x**2) == pytest.approx(-(0.1875 + 0.25 + 0.1875) / 3)
    uneven = np.array([0.0, 0.1, 1.0])
    assert chord_height(uneven, 5 + 3 * uneven) == pytest.approx(0.0)


def test_what_prompts_have_in_common_cancels():
    table = {"a": curve([0, 1], [0.5, 1.5]), "b": curve([0, 1], [0.0, 1.0])}
    found = bootstrapped(lambda m: front_gap(m["a"], m["b"]), [table], ("a", "b"))
    assert found is not None
    assert (found.value, found.low, found.high) == pytest.approx((0.5, 0.5, 0.5))
    assert (found.num_prompts, found.num_seeds, found.over_seeds) == (PROMPTS, 1, False)


def test_the_interval_is_as_wide_as_the_standard_error_says():
    generator = np.random.default_rng(5)
    noise_G = generator.normal(size=PROMPTS)
    one = Readings(
        at_P=np.zeros(1),
        kl_PG=np.zeros((1, PROMPTS)),
        reward_PG=noise_G[None],
        length_PG=np.zeros((1, PROMPTS)),
    )
    found = bootstrapped(lambda m: float(m["a"].reward_P[0]), [{"a": one}], ("a",))
    assert found is not None
    half = 1.96 * noise_G.std() / np.sqrt(PROMPTS)
    assert found.high - found.low == pytest.approx(2 * half, rel=0.1)


def test_three_seeds_widen_the_interval_by_students_t_and_two_do_not():
    tables = [{"a": curve([0, 1], [0, height])} for height in (1.0, 2.0, 6.0)]
    few = bootstrapped(lambda m: float(np.ptp(m["a"].reward_P)), tables[:2], ("a",))
    many = bootstrapped(lambda m: float(np.ptp(m["a"].reward_P)), tables, ("a",))
    assert few is not None
    assert many is not None
    assert (few.value, few.low, few.high) == pytest.approx((1.5, 1.5, 1.5))
    assert many.value == pytest.approx(3.0)
    assert many.over_seeds
    # Heights of 1, 2, 6 have a standard error of 1.528 around 3; Student's t of two degrees of freedom: 4.303.
    assert (many.low, many.high) == pytest.approx((3.0 - 6.57, 3.0 + 6.57), abs=0.6)


def test_intervals_hold_the_truth_as_often_as_they_say():
    generator = np.random.default_rng(8)
    inside = []
    for _ in range(400):
        # Seeds differ by 1, prompts by 1 in each seed.
        value_SG = generator.normal(size=(3, 1)) + generator.normal(size=(3, 24))
        interval = mean_interval(value_SG, draws=200)
        inside.append(interval.low <= 0 <= interval.high)
    # 95 % of 400 +- 3 standard errors; resampling three seeds gave about three quarters.
    assert 0.917 <= np.mean(inside) <= 0.985


def test_a_plain_mean_has_an_interval_alike():
    value_SG = np.random.default_rng(0).normal(size=(3, 50)) + np.array([[0.0], [1.0], [5.0]])
    few, many = mean_interval(value_SG[:2]), mean_interval(value_SG)
    assert few.value == pytest.approx(value_SG[:2].mean())
    assert few.high - few.low < 0.5
    assert many.high - many.low > 3, "three seeds that differ"
    assert (few.num_prompts, many.num_seeds) == (50, 3)


def test_a_seed_that_lacks_a_curve_does_not_count():
    tables = [{"a": curve([0, 1], [0, 1])}, {"b": curve([0, 1], [0, 1])}]
    found = bootstrapped(lambda m: float(m["a"].reward_P[1]), tables, ("a",))
    assert found is not None
    assert found.num_seeds == 1
    assert bootstrapped(lambda m: 0.0, tables, ("a", "b")) is None


@pytest.mark.parametrize(
    ("low", "high", "margin", "one_sided", "verdict"),
    [
        (0.1, 0.3, None, False, "held"),
        (-0.3, -0.1, None, False, "failed"),
        (-0.1, 0.3, None, False, "undecided"),
        (-0.1, 0.1, 0.2, False, "held"),
        (0.3, 0.5, 0.2, False, "failed"),
        (-0.5, -0.3, 0.2, False, "failed"),
        (0.1, 0.3, 0.2, False, "undecided"),
        (-0.1, 9.0, 0.2, True, "held"),
        (-0.9, -0.3, 0.2, True, "failed"),
        (-0.3, 0.5, 0.2, True, "undecided"),
    ],
)
def test_verdicts(low, high, margin, one_sided, verdict):
    interval = Interval(value=(low + high) / 2, low=low, high=high, num_prompts=9, num_seeds=1)
    assert decide(interval, margin=margin, one_sided=one_sided) == verdict
    assert decide(None, margin=margin) == "undecided"


def claim(verdict):
    return Claim(name="x", verdict=verdict, sentence="", unit="", interval=None)


def test_an_observation_held_if_all_of_it_held_and_failed_if_a_part_did():
    assert verdict_of([claim("held"), claim("held")]) == "held"
    assert verdict_of([claim("held"), claim("undecided")]) == "undecided"
    assert verdict_of([claim("undecided"), claim("failed"), claim("held")]) == "failed"
    assert verdict_of([]) == "undecided"


def test_claims_say_their_numbers():
    table = {
        "a": curve([0, 1, 2], [0, 2, 3], noise=0.01, seed=1, length=[3, 4, 5]),
        "b": curve([0, 1, 2], [0, 1, 2], noise=0.01, seed=2),
    }
    found = above("x", [table], "a", "b")
    assert found.verdict == "held"
    assert found.interval is not None
    assert found.hypervolume is not None
    assert found.interval.value == pytest.approx(0.75)  # 0 at 0, 1 at 1, 1 at 2
    assert found.sentence.startswith("a above b: +0.75 [")
    assert above("x", [table], "b", "a").verdict == "failed"
    assert alike("x", [table], "a", "b").verdict == "failed"
    assert alike("x", [table], "a", "b", one_sided=True).verdict == "held"
    assert curved("x", [table], "a", read=lambda m: m.reward_P, what="reward", concave=True).verdict == "held"
    assert curved("x", [table], "a", read=lambda m: m.reward_P, what="reward", concave=False).verdict == "failed"
    slope = rises("x", [table], "a", read=lambda m: m.length_P, what="length")
    assert slope.interval is not None
    assert slope.interval.value == pytest.approx(1.0)
    assert slope.verdict == "held"
    upwards = trend("x", [table], ["b", "a"], per="per curve")
    assert upwards.interval is not None
    assert upwards.interval.value == pytest.approx(0.75)
    assert trend("x", [table], ["a", "c"], per="per curve").interval is None
    assert not above("x", [table], "a", "b", counts=False).counts


def test_heights_are_compared_where_all_curves_are():
    # From 1 to 2, where the third has its points, though the first two go from 0 to 4.
    heights = mean_heights([means([0, 4], [0, 4]), means([0, 4], [0, 8]), means([1, 2], [5, 7])])
    assert heights == pytest.approx([1.5, 3.0, 6.0])
    assert np.isnan(mean_heights([means([0, 1], [0, 1]), means([2, 3], [0, 1])])).all()
    table = {"a": curve([0, 4], [0, 4]), "b": curve([0, 4], [0, 8]), "c": curve([1, 2], [5, 7])}
    upwards = trend("x", [table], ["a", "b", "c"], per="per curve")
    assert upwards.interval is not None
    assert upwards.interval.value == pytest.approx(2.25), "least squares through 1.5, 3, 6"


def test_the_gap_is_that_of_the_reports_of_fronts():
    generator = np.random.default_rng(3)
    table = {
        "a": curve([0, 1, 3, 6], [0, 1.0, 2.0, 2.2], noise=0.4, seed=1),
        "b": curve([0, 2, 5, 7], [0, 0.8, 1.5, 1.6], noise=0.4, seed=2),
    }
    ours = bootstrapped(lambda m: front_gap(m["a"], m["b"]), [table], ("a", "b"))
    prompts = tuple(map(str, range(PROMPTS)))
    theirs = paired.front_gap(
        *(
            paired.Curve(
                prompts=prompts,
                kl_PG=table[name].kl_PG,
                reward_PG=table[name].reward_PG,
                count_PG=np.ones_like(table[name].kl_PG),
            )
            for name in ("a", "b")
        ),
        seed=int(generator.integers(100)),
    ).mean
    assert ours is not None
    assert (ours.value, ours.low, ours.high) == pytest.approx((theirs.value, theirs.low, theirs.high), abs=0.03)
