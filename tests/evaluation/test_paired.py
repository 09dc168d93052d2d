"""Differences of points and gaps of curves, by hand and by simulation."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from tests.evaluation.fake_front import LERP, SFT, SLERP, merge, point
from warp_core.evaluation.paired import (
    Curve,
    compare_front,
    curve_of,
    difference,
    difference_note,
    difference_rows,
    front_gap,
    hypervolume_difference,
)
from warp_core.evaluation.points import Sample
from warp_core.evaluation.series import make_front, reference_name


def samples(*values: tuple[str, float, float]) -> list[Sample]:
    """Samples from (prompt, reward, kl)."""
    return [Sample(prompt=p, completion="x", reward=r, kl=k, num_tokens=1) for p, r, k in values]


HERE, THERE = SLERP[0], SLERP[1]
STORED = {
    SFT.key: samples(("p", 0, 0), ("p", 2, 0), ("q", 1, 0), ("q", 3, 0)),
    # prompt means of the reward 3 and 4, of the KL 1 and 3; less those of the SFT policy 2 and 2, 1 and 3
    HERE.key: samples(("p", 2, 0), ("p", 4, 2), ("q", 4, 3), ("q", 4, 3)),
    # 5 and 5, 4 and 8
    THERE.key: samples(("q", 5, 8), ("p", 5, 4), ("q", 5, 8), ("p", 5, 4)),
}


def test_a_difference_by_hand() -> None:
    found = difference(HERE, SFT, STORED)
    assert found is not None
    assert (found.reward.mean, found.reward.se) == (2.0, 0.0)
    # KL differences 1 and 3: mean 2, sd sqrt(2), se 1
    assert found.kl.mean == 2.0
    assert found.kl.se == pytest.approx(1.0, rel=1e-15)
    assert found.to_json() == {"to": SFT.key, "reward": 2.0, "reward_se": 0.0, "kl": 2.0, "kl_se": found.kl.se}


def test_without_samples_or_with_other_prompts_there_is_no_difference() -> None:
    other = STORED | {SFT.key: samples(("p", 0, 0), ("r", 0, 0))}
    assert difference(HERE, SFT, other) is None
    assert difference(HERE, SFT, {}) is None
    assert difference(HERE, SLERP[2], STORED) is None


def test_a_point_stands_beside_the_sft_policy_and_the_one_before() -> None:
    found = compare_front(make_front([THERE, SFT, HERE]), STORED)
    assert found[SFT.key].to_reference is None
    assert found[SFT.key].to_previous is None
    first, second = found[HERE.key], found[THERE.key]
    assert first.to_reference == first.to_previous  # the curve starts at the SFT policy
    assert second.to_reference is not None
    assert (second.to_reference.to, second.to_reference.reward.mean) == (SFT, 3.5)
    assert second.to_previous is not None
    # rewards 5-3 and 5-4: mean 1.5, se 0.5; KLs 4-1 and 8-3: mean 4, se 1
    assert (second.to_previous.to, second.to_previous.reward.mean, second.to_previous.kl.mean) == (HERE, 1.5, 4.0)
    assert second.to_previous.reward.se == pytest.approx(0.5)
    assert second.to_previous.kl.se == pytest.approx(1.0)


def test_another_reference() -> None:
    front = make_front([THERE, SFT, HERE])
    found = compare_front(front, STORED, reference=THERE)
    assert found[THERE.key].to_reference is None
    base = found[HERE.key].to_reference
    assert base is not None
    assert (base.to, base.reward.mean) == (THERE, -1.5)
    assert difference_note(found) == (
        "Differences on the same prompts and noise: less SLERP at eta 0.5; step: less the point before."
    )


def test_curves_have_their_own_neighbours_and_training_none() -> None:
    stored = {p.key: samples(("p", p.reward, p.kl), ("q", p.reward, p.kl)) for p in [SFT, *SLERP, *LERP]}
    found = compare_front(make_front([SFT, *SLERP, *LERP]), stored)
    before = {key: one.to_previous.to for key, one in found.items() if one.to_previous}
    assert before[LERP[1].key] is LERP[0]
    assert before[LERP[0].key] is SFT
    assert [before[p.key] for p in SLERP] == [SFT, *SLERP[:-1]]


def test_what_a_table_shows() -> None:
    front = make_front([THERE, SFT, HERE])
    rows = difference_rows(front, compare_front(front, STORED), sign="+-")
    assert [(p, cells) for p, cells in rows] == [
        (HERE, ("+2.00 +- 0.00", "+2.00 +- 1.00", "+2.00 +- 0.00", "+2.00 +- 1.00")),
        (THERE, ("+3.50 +- 0.50", "+6.00 +- 2.00", "+1.50 +- 0.50", "+4.00 +- 1.00")),
    ]
    assert difference_note(compare_front(front, {})) == ""
    assert difference_rows(front, compare_front(front, {}), sign="+-") == []


@pytest.mark.parametrize(
    ("subject", "name"),
    [
        (SFT, "sft"),
        (point(1, 1, policy="b" * 64, kind="policy", run="policy-2", iteration=1), "1/policy-2"),
        (point(1, 1, policy="b" * 64, kind="policy", run="policy-2"), "policy-2"),
        (SLERP[0], "1/slerp:0.3"),
        (merge(1, 1, "lerp", 1.0, 2), "2/lerp:1:to-init"),
        (merge(1, 1, "lerp", 1.0, 2, towards="a" * 64), "2/lerp:1"),
    ],
)
def test_the_names_of_references(subject: Any, name: str) -> None:
    assert reference_name(subject) == name


def straight(rewards: Sequence[float], kls: Sequence[float], *, prompts: int = 4) -> Curve:
    """A curve that is the same on every prompt."""
    return curve_of([samples(*[(f"p{g}", r, k) for g in range(prompts)]) for r, k in zip(rewards, kls, strict=True)])


def test_a_gap_by_hand() -> None:
    # a: (0,0) (4,4) (8,6); b: (2,1) (6,3): at 2, 3, 5 nats a has 2, 3, 4.5 and b 1, 1.5, 2.5
    found = front_gap(straight([0, 4, 6], [0, 4, 8]), straight([3, 1], [6, 2]), kls=[2, 3, 5], replicates=20)
    assert [one.value for one in found.gap] == [1.0, 1.5, 2.0]
    assert found.mean.value == 1.5
    # prompts that agree leave nothing uncertain
    assert [(one.se, one.low, one.high) for one in found.gap] == [(0, 1, 1), (0, 1.5, 1.5), (0, 2, 2)]


def test_the_range_is_what_both_curves_cover() -> None:
    found = front_gap(straight([0, 4, 6], [0, 4, 8]), straight([1, 3], [2, 6]), replicates=20)
    assert (found.kl_K[0], found.kl_K[-1], len(found.kl_K)) == (2.0, 6.0, 21)
    with pytest.raises(ValueError, match="from 2 to 6 nats"):
        front_gap(straight([0, 4, 6], [0, 4, 8]), straight([1, 3], [2, 6]), kls=[1.0])
    with pytest.raises(ValueError, match="no KL that both curves cover"):
        front_gap(straight([0, 1], [0, 1]), straight([0, 1], [1, 2]))


def test_a_constant_gap_is_certain_although_the_curves_are_not() -> None:
    hard = np.random.default_rng(0).normal(scale=5, size=30)
    low = [samples(*[(f"p{g}", float(hard[g]) + k, k) for g in range(30)]) for k in (0.0, 5.0)]
    high = [samples(*[(f"p{g}", float(hard[g]) + k + 0.25, k) for g in range(30)]) for k in (0.0, 5.0)]
    found = front_gap(curve_of(high), curve_of(low))
    assert found.mean.value == pytest.approx(0.25, abs=1e-12)
    assert found.mean.se < 1e-12
    # at a reference that both keep above, the difference is 0.25 over the KLs below 10: exact up to rounding
    area = hypervolume_difference(curve_of(high), curve_of(low), reference=(10.0, -20.0))
    assert area.value == pytest.approx(0.25 * 10, abs=1e-9)
    assert area.se < 1e-9


def test_a_difference_of_hypervolumes_by_hand() -> None:
    # reference (10, 0): a 10 * 1 + 6 * 2 = 22 with (0, 1), (4, 3); b 9 * 1 + 5 * 1 = 14 with (1, 1), (5, 2)
    found = hypervolume_difference(straight([1, 3], [0, 4]), straight([1, 2], [1, 5]), reference=(10, 0), replicates=9)
    assert (found.value, found.se, found.low, found.high) == (8, 0, 8, 8)


def test_uneven_samples_weigh_as_the_mean_of_a_point_does() -> None:
    one = curve_of([samples(("p", 0, 0), ("p", 3, 0), ("q", 6, 3)), samples(("p", 1, 1), ("q", 1, 1))])
    kl_RP, reward_RP = one.means(np.array([[1.0, 1.0], [2.0, 0.0]]))
    assert reward_RP.tolist() == [[3.0, 1.0], [1.5, 1.0]]
    assert kl_RP.tolist() == [[1.0, 1.0], [0.0, 1.0]]


def test_steps_and_ends_of_a_curve() -> None:
    steep = straight([0, 2, 5, 5], [0, 2, 2, 4])  # two points at one KL: the later one counts
    assert [one.value for one in front_gap(steep, straight([0, 0], [0, 4]), kls=[1, 2, 4], replicates=2).gap] == [
        1,
        5,
        5,
    ]


def test_curves_that_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="at least two points"):
        straight([1], [1])
    with pytest.raises(ValueError, match="not measured on the same prompts"):
        curve_of([samples(("p", 0, 0)), samples(("q", 0, 0))])
    with pytest.raises(ValueError, match="same prompts"):
        front_gap(straight([0, 1], [0, 1]), straight([0, 1], [0, 1], prompts=5))
    with pytest.raises(ValueError, match="one prompt"):
        front_gap(straight([0, 1], [0, 1], prompts=1), straight([0, 1], [0, 1], prompts=1))


def test_the_intervals_of_a_gap_cover_it_as_often_as_they_say() -> None:
    generator = np.random.default_rng(0)
    hits, rounds, prompts, slope = 0, 200, 40, 0.3
    for _ in range(rounds):
        easy_G = generator.normal(scale=2, size=prompts)

        def noisy(lift: float, easy_G: Any = easy_G) -> Curve:
            kl_PG = np.array([0.0, 5.0, 10.0])[:, None] + generator.normal(size=(3, prompts)) * [[0.0], [1.0], [2.0]]
            reward_PG = easy_G + slope * kl_PG + lift + generator.normal(size=(3, prompts))
            names = tuple(map(str, range(prompts)))
            return Curve(prompts=names, kl_PG=kl_PG, reward_PG=reward_PG, count_PG=np.ones((3, prompts)))

        found = front_gap(noisy(0.5), noisy(0.0), kls=[4.0], replicates=400).gap[0]
        hits += found.low <= 0.5 <= found.high
    # 95 % less what a percentile interval of 40 prompts loses; two errors of the count are 3 %
    assert 0.90 <= hits / rounds <= 0.985
    assert math.isfinite(found.se)
