"""Names, order and grouping of the points of a front."""

import pytest

from tests.evaluation.fake_front import HOSTILE, LERP, ONE, POINTS, RUN, SFT, SLERP, TWO, merge, point
from warp_core.evaluation.series import (
    how_measured,
    hypervolume_note,
    kl_range,
    label,
    make_front,
    number,
    plain,
    with_error,
)


def test_points_come_in_reading_order_and_training_is_no_point() -> None:
    front = make_front(POINTS)
    assert list(front.points) == [SFT, ONE, TWO, *SLERP, *LERP]
    assert [label(p) for p, flag in zip(front.points, front.dominated, strict=True) if flag] == ["policy 1", "LERP"]
    assert front.pareto == (SFT, *SLERP[:2], LERP[1], SLERP[2], TWO, SLERP[3])
    assert front.is_dominated(ONE)
    assert not front.is_dominated(SFT)


def test_the_hypervolume_has_the_stated_reference() -> None:
    front = make_front(POINTS)
    assert front.reference == (25.0, 0.80)
    # columns from KL 25 down, each (kl_i - 25) wide in steps of reward above 0.80
    steps = [(2.3, 1.94), (7.2, 1.58), (13.3, 0.58), (15, 0.16), (16.2, 0.03), (20, 0.07)]
    assert front.hypervolume == pytest.approx(sum((25 - kl) * rise for kl, rise in steps), rel=1e-12)
    assert make_front(POINTS, reference=(10, 4)).hypervolume == pytest.approx(2.8 * 0.32, rel=1e-12)
    assert hypervolume_note(front) == "Hypervolume 81.2 against KL 25.0, reward 0.80."


def test_merges_that_differ_in_eta_alone_are_one_curve_from_the_sft_policy() -> None:
    series = {(s.group, s.name): s for s in make_front(POINTS).series}
    assert list(series) == [
        ("Reference", "SFT policy"),
        ("Iteration 1", "single policies"),
        ("Iteration 1", "SLERP"),
        ("Iteration 1", "LERP"),
        ("Iteration 1", "RL run 1"),
    ]
    slerp = series["Iteration 1", "SLERP"]
    assert slerp.members == tuple(SLERP)
    assert slerp.path == (SFT, *SLERP)
    assert series["Iteration 1", "RL run 1"].path == tuple(RUN)
    assert series["Iteration 1", "single policies"].path == ()


def test_a_curve_of_iteration_two_starts_at_the_sft_policy_only_if_it_goes_there() -> None:
    to_init = [merge(5, 3, "slerp", 0.5, 2), merge(9, 4, "slerp", 1.0, 2)]
    to_sft = [merge(4, 3, "slerp", 0.5, 2, towards="s" * 64)]
    series = {s.name: s for s in make_front([SFT, *to_init, *to_sft]).series}
    assert series["SLERP"].path == tuple(to_init)
    assert series["SLERP to SFT"].path == (SFT, *to_sft)


def test_curves_with_their_own_start_or_other_weights_are_told_apart() -> None:
    whole = [merge(0, 0.8, "slerp", 0.0), merge(9, 4, "slerp", 1.0)]
    tilted = [merge(9, 4, "slerp", 1.0, weights=(0.25, 0.75))]
    series = {s.name: s for s in make_front([SFT, *whole, *tilted]).series}
    assert series["SLERP"].path == tuple(whole)
    assert series["SLERP 0.25/0.75"].members == tuple(tilted)


def test_iterations_have_their_own_colours() -> None:
    points = [SFT, *(merge(i, i, "slerp", 0.5, i) for i in range(1, 6))]
    colors = [s.color for s in make_front(points).series]
    assert len(set(colors)) == 6


@pytest.mark.parametrize(
    ("subject", "name"),
    [
        (SFT, "SFT policy"),
        (TWO, "policy 2"),
        (RUN[1], "policy 1, step 20"),
        (point(1, 1, policy="b" * 64), "bbbbbbbb"),
        (point(1, 1, policy="runs/" + "long/" * 10 + "end"), "...ong/long/long/long/long/long/long/end"),
        (merge(1, 1, "slerp-weights", 0.5), "SLERP of weights"),
    ],
)
def test_names(subject: object, name: str) -> None:
    assert label(subject) == name


def test_hostile_names_are_one_printable_line() -> None:
    assert plain(HOSTILE).isprintable()
    assert label(point(1, 1, policy="x", kind="policy", run=HOSTILE)).isprintable()
    assert len(plain("x" * 1000)) == 120


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (0.0, "0.00"), (-0.001, "-0.0010"), (-1e-9, "0.000000"), (0.8, "0.80"), (4.876, "4.88"),
     (99.96, "100.0"), (123.4, "123"), (12345.6, "12346"), (0.0342, "0.034")],
)  # fmt: skip
def test_numbers(value: float | None, text: str) -> None:
    assert number(value) == text


def test_errors_share_the_decimals_of_their_mean_and_can_be_seen() -> None:
    assert with_error(4.884, 0.113, sign="+-") == "4.88 +- 0.11"
    assert with_error(16.2, 0.04, sign="+-") == "16.20 +- 0.04"
    assert with_error(16.2, 0.9, sign="+-") == "16.2 +- 0.9"
    assert with_error(0.0, 0.0, sign="+-") == "0.00 +- 0.00"
    assert with_error(5.0, None, sign="+-") == "5.00"
    assert with_error(-0.001, 2.0, sign="+-") == "-0.0010 +- 2.0000"


def test_the_measurement_in_words() -> None:
    assert how_measured(make_front([SFT])) == "KL by the exact estimator; n = 80 completions each, seed 0"
    mixed = [SFT, *(point(1, 1, policy="x", n=10 * i, seed=i, kl_estimator="mc") for i in range(1, 7))]
    assert how_measured(make_front(mixed)) == (
        "KL by the exact and mc estimator; n = 10 to 80 completions each, seed 0, 1, 2, 3, ..."
    )


def test_long_training_runs_do_not_squeeze_the_front() -> None:
    far = point(200, 5.0, None, policy="run", kind="training", iteration=1, run="1", step=9)
    assert kl_range(make_front([*POINTS, far])) == (-0.5, pytest.approx(1.6 * 20.5))
    assert kl_range(make_front(POINTS)) == (-0.5, pytest.approx(1.06 * 20.5))
    assert kl_range(make_front([point(0, 1, None, policy="x")])) == (0.0, 1.0)


def test_no_measured_point() -> None:
    with pytest.raises(ValueError, match="no points"):
        make_front(RUN)
