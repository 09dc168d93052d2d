"""Pooling on a model so small that every expectation is a sum, and variances of numbers made to measure."""

import numpy as np
import pytest

from bench.trajectories import REACH, Trajectories
from bench.variances import blocks, contributions, effective_share, pooled_kl, pooled_reward, spread, window

# Three models of at most two tokens. FIRST: chance not to end at once; SECOND: chance of token 1 after that.
FIRST, SECOND = np.array([0.3, 0.5, 0.9]), np.array([0.2, 0.6, 0.7])
# The completions: ends at once; token 0; token 1. Every row of a `Trajectories` below is one of them at all points.
CHANCE_XE = np.array([1 - FIRST, FIRST * (1 - SECOND), FIRST * SECOND])
REWARD_X = np.array([-1.0, 2.0, 5.0])
KL_TE = np.array([[0.1, 0.4, 0.9], [0.3, 0.0, 2.0]])  # at the first position, and at the second where it is reached
SERVES = [window(3, 0), window(3, 1), window(3, 2), blocks(3, 2)]


def enumerated() -> Trajectories:
    """Every completion once, as if drawn at each of the three points."""
    alive_XT = np.array([[True, False], [True, True], [True, True]])
    logp_XTE = np.log([[1 - FIRST, np.ones(3)], [FIRST, 1 - SECOND], [FIRST, SECOND]])
    logp, kl = np.full((2, 3, 1, 3, 2 * REACH + 1, 2), np.nan)
    for i in range(3):
        for j in range(3):
            logp[:, 0, i, REACH + j - i] = logp_XTE[:, :, j]
            kl[:, 0, i, REACH + j - i] = KL_TE[:, j] * alive_XT
    return Trajectories(
        etas=(0.0, 0.5, 1.0),
        reward_GSE=np.broadcast_to(REWARD_X[:, None, None], (3, 1, 3)),
        mask_GSET=np.broadcast_to(alive_XT[:, None, None], (3, 1, 3, 2)),
        logp_GSEOT=logp,
        anchor_GSET=np.zeros((3, 1, 3, 2)),
        kl_GSEOT=kl,
        seconds={"sample": 1.0},
    )


def expected(contribution_GSEE: np.ndarray) -> np.ndarray:
    """Sum over i of E c_ij(x_i), x_i drawn from p_i: it is linear, so the coupling of the x_i does not matter."""
    return np.einsum("xi,xij->j", CHANCE_XE, contribution_GSEE[:, 0])


@pytest.mark.parametrize("baseline", [False, True])
@pytest.mark.parametrize("serves_EE", SERVES)
def test_pooled_estimates_are_unbiased(serves_EE: np.ndarray, baseline: bool) -> None:
    reward = expected(pooled_reward(enumerated(), serves_EE, baseline=baseline))
    assert reward == pytest.approx(REWARD_X @ CHANCE_XE, rel=1e-12)
    kl = expected(pooled_kl(enumerated(), serves_EE, baseline=baseline))
    assert kl == pytest.approx(KL_TE[0] + FIRST * KL_TE[1], rel=1e-12)


def test_who_serves_whom() -> None:
    assert window(3, 1).tolist() == [[True, True, False], [True, True, True], [False, True, True]]
    assert blocks(3, 2).tolist() == [[True, True, False], [True, True, False], [False, False, True]]


def test_the_balance_heuristic_by_hand() -> None:
    # x_0 has densities .2, .6 and x_1 .5, .5: weights .25, .75 and .5, .5
    logp_GSEE = np.log([[[[0.2, 0.6], [0.5, 0.5]]]])
    value_GSEE = np.array([[[[4.0, 8.0], [2.0, 6.0]]]])
    plain = contributions(value_GSEE, logp_GSEE, window(2, 1), np.zeros(2))
    assert plain[0, 0].tolist() == pytest.approx(np.array([[1.0, 6.0], [1.0, 3.0]]))
    # with baselines 2 and 4: .25 * 2 + 2, .75 * 4; .5 * 0, .5 * 2 + 4
    centred = contributions(value_GSEE, logp_GSEE, window(2, 1), np.array([2.0, 4.0]))
    assert centred[0, 0].tolist() == pytest.approx(np.array([[2.5, 3.0], [0.0, 5.0]]))


def test_completions_that_are_equally_likely_everywhere_count_in_full() -> None:
    data = enumerated()
    same = np.where(np.isnan(data.logp_GSEOT), np.nan, np.log(0.5))
    alike = Trajectories(
        etas=data.etas,
        reward_GSE=data.reward_GSE,
        mask_GSET=data.mask_GSET,
        logp_GSEOT=same,
        anchor_GSET=data.anchor_GSET,
        kl_GSEOT=data.kl_GSEOT,
        seconds=data.seconds,
    )
    assert effective_share(alike, window(3, 1)) == pytest.approx([2.0, 3.0, 2.0])
    assert effective_share(alike, window(3, 0)) == pytest.approx([1.0, 1.0, 1.0])


def test_variances_of_a_difference_by_hand() -> None:
    # one prompt, two samples, two points: 1, 4 and then 3, 8; differences 3 and 5
    value_GSE = np.array([[[1.0, 4.0], [3.0, 8.0]]])
    alone = value_GSE[..., None] * np.eye(2)
    common = spread(alone, [(1, 0)], common=True)
    assert common.mean_GSD.tolist() == [[[3.0], [5.0]]]
    assert common.within_GD.tolist() == [[2.0]]  # of 3 and 5
    assert spread(alone, [(1, 0)], common=False).within_GD.tolist() == [[10.0]]  # of 1, 3: 2; of 4, 8: 8


def test_a_file_holds_what_was_collected(tmp_path) -> None:
    data = enumerated()
    data.save(tmp_path / "a.npz")
    again = Trajectories.load([tmp_path / "a.npz", tmp_path / "a.npz"])
    assert again.etas == data.etas
    assert again.seconds == {"sample": 2.0}
    np.testing.assert_array_equal(again.kl_GSEOT, np.concatenate([data.kl_GSEOT] * 2))
    np.testing.assert_array_equal(again.mask_GSET, np.concatenate([data.mask_GSET] * 2))
    np.testing.assert_array_equal(again.exact_kl_GSE[1, 0], KL_TE.sum(axis=0))
