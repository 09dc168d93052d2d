"""Fronts by hand, against a quadratic definition, and hypervolumes against moocore."""

import itertools
from dataclasses import dataclass

import moocore
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from warp_core.evaluation.fronts import default_reference, dominated, hypervolume, pareto_front


@dataclass(frozen=True)
class P:
    kl: float
    reward: float
    kind: str | None = None


coarse = st.integers(-6, 6).map(lambda i: i / 2)
points = st.lists(st.builds(P, coarse, coarse), max_size=12)


def test_the_front_of_the_feasibility_run() -> None:
    sft, half, slerp = P(0, 0.80), P(7.2, 4.32), P(20.0, 5.16)
    policy, lerp, near = P(14.1, 4.88), P(13.3, 4.90), P(15.0, 5.06)
    given_points = [slerp, policy, sft, lerp, near, half]
    assert dominated(given_points) == [False, True, False, False, False, False]
    assert pareto_front(given_points) == [sft, half, lerp, near, slerp]


def test_ties() -> None:
    # same KL, same reward, the same point twice, and one beaten by an equal reward at less KL
    assert dominated([P(1, 1), P(1, 2)]) == [True, False]
    assert dominated([P(1, 1), P(2, 1)]) == [False, True]
    assert dominated([P(1, 1), P(1, 1)]) == [False, False]
    assert dominated([P(1, 1), P(2, 1), P(2, 1)]) == [False, True, True]
    assert dominated([]) == []
    assert pareto_front([]) == []


@given(points)
def test_dominated_is_its_definition(found: list[P]) -> None:
    def beats(a: P, b: P) -> bool:
        return a.kl <= b.kl and a.reward >= b.reward and (a.kl, a.reward) != (b.kl, b.reward)

    assert dominated(found) == [any(beats(a, b) for a in found) for b in found]


@given(points)
def test_the_front_rises(found: list[P]) -> None:
    front = pareto_front(found)
    pairs = list(itertools.pairwise(front))
    assert all(a == b or (a.kl < b.kl and a.reward < b.reward) for a, b in pairs)
    assert bool(front) == bool(found)


def test_hypervolume_by_hand() -> None:
    # reference (10, 0): 9 * 1 for (1, 1), then 6 * 2 for (4, 3); (5, 2) is dominated, (11, 9) and (2, -1) are outside
    assert hypervolume([P(4, 3), P(1, 1)], (10, 0)) == 21
    assert hypervolume([P(4, 3), P(1, 1), P(5, 2), P(11, 9), P(2, -1), P(1, 1)], (10, 0)) == 21
    assert hypervolume([], (10, 0)) == 0
    assert hypervolume([P(10, 5), P(0, 0)], (10, 0)) == 0


@given(points, coarse, coarse)
def test_hypervolume_agrees_with_moocore(found: list[P], kl_ref: float, reward_ref: float) -> None:
    ours = hypervolume(found, (kl_ref, reward_ref))
    if not found:
        assert ours == 0
        return
    minimised = np.array([[p.kl, -p.reward] for p in found])
    assert ours == pytest.approx(moocore.hypervolume(minimised, ref=[kl_ref, -reward_ref]), rel=1e-12, abs=1e-12)


@pytest.mark.parametrize(
    ("kl", "reference"),
    [
        (16.2, 20),
        (20.0, 25),
        (9.99, 10),
        (10.0, 15),
        (0.34, 0.35),
        (0.3, 0.35),
        (1, 1.5),
        (99.5, 100),
        (0.0, 1),
        (-0.1, 1),
    ],
)
def test_the_default_reference_is_the_next_round_kl(kl: float, reference: float) -> None:
    assert default_reference([P(kl, 3.0), P(-1.0, 0.8, "sft")]) == (reference, 0.8)
    assert default_reference([P(np.float64(kl), 3.0)])[0] == reference


def test_the_default_reference_takes_the_reward_of_the_sft_policy() -> None:
    assert default_reference([P(5, 3.0), P(0.2, 1.0, "merge"), P(0.3, 0.8, "sft")]) == (5.5, 0.8)
    assert default_reference([P(5, 3.0), P(0.2, 1.0, "merge")]) == (5.5, 1.0)
    with pytest.raises(ValueError, match="no points"):
        default_reference([])
