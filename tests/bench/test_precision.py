"""Gains of numbers whose variances are known."""

import numpy as np
import pytest

from bench.precision import AIM, Way, gains, rows_of
from bench.trajectories import REACH, Trajectories


def known(prompts: int, *, points: int = 2) -> np.ndarray:
    """Values of variance 4 between prompts and 1 within, of which 3/4 is shared by the points."""
    generator = np.random.default_rng(0)
    easy = generator.normal(scale=2, size=(prompts, 1, 1))
    shared = generator.normal(scale=np.sqrt(0.75), size=(prompts, 3, 1))
    return np.asarray(easy + shared + generator.normal(scale=0.5, size=(prompts, 3, points)))


def test_gains_are_ratios_of_variances() -> None:
    value_GSE = known(4000)
    alone = value_GSE[..., None] * np.eye(2)
    ways = [
        Way(name="same prompts", contribution_GSEE=alone, common=False, seconds=1.0),
        Way(name="common noise", contribution_GSEE=alone, common=True, seconds=1.0),
    ]
    same, common = gains(value_GSE, ways, [(1, 0)], replicates=50)
    # the peer 2 (4 + 1); the same prompts 2 * 1; common noise 2 / 4
    assert same.ratio == pytest.approx(5.0, rel=0.05)
    assert common.ratio == pytest.approx(20.0, rel=0.05)
    assert same.low < 5.0 < same.high
    assert common.low < 20.0 < common.high


def test_what_prompts_make_of_a_difference_is_left_in() -> None:
    generator = np.random.default_rng(1)
    value_GSE = known(4000)
    value_GSE[:, :, 1] += generator.normal(scale=1.5, size=(4000, 1))  # the second point is better on some prompts
    way = Way(name="common noise", contribution_GSEE=value_GSE[..., None] * np.eye(2), common=True, seconds=1.0)
    (found,) = gains(value_GSE, [way], [(1, 0)], replicates=10)
    # the peer 5 + 7.25; common noise 0.5 within and 2.25 between
    assert found.ratio == pytest.approx(12.25 / 2.75, rel=0.06)


def test_rows_have_every_way_at_every_distance_and_an_aim_for_ours() -> None:
    points, kinds = 11, ("sample", "anchor", "neighbour", "exact", "reward")
    value_GSE = known(12, points=points)
    shape = (12, 3, points, 2 * REACH + 1, 1)
    data = Trajectories(
        etas=tuple(i / 10 for i in range(points)),
        reward_GSE=value_GSE,
        mask_GSET=np.ones((12, 3, points, 1), dtype=bool),
        logp_GSEOT=np.full(shape, -1.0),
        anchor_GSET=-1.0 - value_GSE[..., None],
        kl_GSEOT=np.broadcast_to(value_GSE[..., None, None], shape),
        seconds=dict.fromkeys(kinds, 1.0),
    )
    rows = rows_of(data, replicates=5)
    assert len(rows) == 4 * 4 + 4 * 5 + 1
    aimed = [row for row in rows if row.aim]
    assert {row.case.partition(": ")[2] for row in aimed} == {"+ common noise", "+ exact KL"}
    assert len(aimed) == 8
    assert all(row.meets == (row.value >= AIM) for row in aimed)
    # mc and exact KL are the same numbers here: so are the gains; per second the exact KL costs 3 kinds for 2
    by_case = {row.case: row for row in rows}
    mc, exact = (by_case[f"KL, 0.5 apart: {way}"] for way in ("+ common noise", "+ exact KL"))
    assert mc.value == pytest.approx(exact.value, rel=1e-12)
    assert exact.note.endswith(f"per second {exact.value * 2 / 3:.1f} x")
    assert rows[-1].value == pytest.approx(3.0)
