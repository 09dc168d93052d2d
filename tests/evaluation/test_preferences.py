"""Preference scores, their intervals and agreement, against numbers worked by hand."""

import subprocess
import sys
from itertools import product

import numpy as np
import pytest

from warp_core.evaluation import statistics
from warp_core.evaluation.preferences import (
    SCALE,
    Judgement,
    Preference,
    agreement,
    graded,
    judged,
    paired_difference,
    preference,
    preference_matrix,
    quartiles,
)


def votes(*scores: float, first: str = "A", second: str = "B", prompts: list[str] | None = None) -> list[Judgement]:
    names = prompts or [f"p{i}" for i in range(len(scores))]
    return [
        Judgement(first=first, second=second, score=score, prompt=prompt)
        for score, prompt in zip(scores, names, strict=True)
    ]


def the(found: Preference | None) -> Preference:
    assert found is not None
    return found


def test_the_score_is_the_mean_with_the_sign_of_the_order():
    ballots = votes(1.5, 0.5, 0.0, 1.0, prompts=["p", "p", "q", "r"])
    ballots += votes(0.5, first="B", second="A", prompts=["q"])
    ballots += votes(1.0, first="B", second="A", prompts=["s"])
    ballots += votes(1.5, first="A", second="C")
    found = the(preference(ballots, "A", "B"))
    # 1.5, 0.5 | 0, -0.5 | 1 | -1: mean 1.5 / 6 = .25; residual sums 1.5, -1, .75, -1.25;
    # se^2 = 4 / 3 (2.25 + 1 + .5625 + 1.5625) / 6^2 = .199074, se = .446177; t with 3 degrees of freedom 3.182
    assert found.score == 0.25
    assert (found.wins, found.ties, found.losses, found.n, found.num_prompts) == (3, 1, 2, 6, 4)
    assert found.method == "t"
    assert found.low == pytest.approx(0.25 - 3.182 * 0.446177, abs=1e-5)
    assert found.high == 1.5  # 1.67 is off the scale


def test_two_votes_prove_nothing():
    found = the(preference(votes(1.0, 1.5), "A", "B"))  # se = .25, t = 12.706
    assert (found.low, found.high) == (-1.5, 1.5)


def test_the_other_side_sees_the_mirror_image():
    ballots = votes(1.5, 1.0, -0.5, 0.0, 0.5, 1.0, 1.0, 1.5, -1.0, 0.0)
    there, back = the(preference(ballots, "A", "B")), the(preference(ballots, "B", "A"))
    assert back.score == -there.score == -0.5
    assert (back.wins, back.ties, back.losses) == (there.losses, there.ties, there.wins) == (2, 2, 6)
    assert there.low is not None
    assert there.high is not None
    assert (back.low, back.high) == (pytest.approx(-there.high), pytest.approx(-there.low))
    assert there.reversed().reversed() == there
    assert str(the(preference(votes(0.0, 0.0), "B", "A")).score) == "0.0"


def test_without_judgements_of_the_two_there_is_no_preference():
    assert preference(votes(1.0), "A", "C") is None
    assert preference([], "A", "B") is None
    with pytest.raises(ValueError, match="compared with itself"):
        preference(votes(1.0), "A", "A")
    with pytest.raises(ValueError, match="not finite"):
        preference(votes(float("nan")), "A", "B")


@pytest.mark.parametrize(
    "ballots",
    [votes(1.0), votes(1.0, 1.0, 1.0), votes(1.0, 0.0, prompts=["p", "p"]), votes(0.0, 0.0), votes(*[1.5] * 40)],
    ids=["one vote", "all alike", "one prompt", "all ties", "forty alike"],
)
def test_no_interval_where_nothing_is_known_about_the_spread(ballots: list[Judgement]):
    found = the(preference(ballots, "A", "B"))
    assert (found.low, found.high, found.method) == (None, None, None)


def test_the_bootstrap_interval_of_a_coin_is_the_binomial_one():
    # 16 prompts, half of them +1: a resample's mean is 2 k / 16 - 1 with k ~ Binomial(16, 1/2), whose cumulative
    # probability is .0106 at 3, .0384 at 4, .9616 at 11, .9894 at 12: the 2.5 % and 97.5 % quantiles are k = 4, 12.
    found = the(preference(votes(*[1.0, -1.0] * 8), "A", "B"))
    assert (found.score, found.low, found.high, found.method) == (0.0, -0.5, 0.5, "bootstrap")


def test_votes_on_one_prompt_count_as_one_observation():
    scores = [1.0, -0.5, 0.0, 1.5, 0.5, 1.0, -1.0, 1.0, 0.0, 0.5]
    once = the(preference(votes(*scores), "A", "B"))
    prompts = [f"p{i % 10}" for i in range(50)]
    five_times = the(preference(votes(*scores * 5, prompts=prompts), "A", "B"))
    assert (five_times.score, five_times.num_prompts, five_times.n) == (once.score, 10, 50)
    assert (five_times.low, five_times.high) == pytest.approx((once.low, once.high))


@pytest.mark.parametrize(("count", "method"), [(7, "t"), (8, "bootstrap"), (1000, "bootstrap"), (1001, "t")])
def test_few_prompts_and_very_many_take_students_interval(count: int, method: str):
    found = the(preference(votes(*[1.0 if i % 3 else -0.5 for i in range(count)]), "A", "B"))
    assert found.method == method
    assert found.low is not None
    assert found.high is not None
    assert -1.5 <= found.low < found.score < found.high <= 1.5


def test_where_both_intervals_hold_they_agree():
    scores = [float(x) for x in np.random.default_rng(1).choice(SCALE, 1000)]
    found = the(preference(votes(*scores), "A", "B"))
    plain = statistics.clustered_mean(scores, range(1000))
    assert plain.se is not None
    assert (found.low, found.high) == pytest.approx(
        (plain.mean - 1.96 * plain.se, plain.mean + 1.96 * plain.se), abs=0.005
    )


def test_the_interval_holds_the_truth_as_often_as_it_says():
    generator = np.random.default_rng(7)
    held = 0
    for _ in range(300):
        easy_G = generator.normal(0.0, 0.6, 30)  # what two votes of a prompt share
        scores = np.clip(np.round(2 * (np.repeat(easy_G, 2) + generator.normal(0.0, 0.4, 60))) / 2, -1.5, 1.5)
        found = the(preference(votes(*scores.tolist(), prompts=[f"p{i // 2}" for i in range(60)]), "A", "B"))
        assert found.low is not None
        assert found.high is not None
        held += found.low <= 0 <= found.high
    assert 0.90 <= held / 300 <= 0.98


def test_the_matrix_is_antisymmetric_and_names_what_was_never_judged():
    ballots = votes(1.0, 0.5, -0.5) + votes(1.5, first="C", second="A", prompts=["p9"])
    matrix = preference_matrix(ballots, ["A", "B", "C"])
    assert [[cell and cell.score for cell in row] for row in matrix] == [
        [None, pytest.approx(1 / 3), -1.5],
        [pytest.approx(-1 / 3), None, None],
        [1.5, None, None],
    ]
    with pytest.raises(ValueError, match="itself"):
        preference_matrix(ballots, ["A", "A"])


def test_quartiles_make_each_grade_a_quarter():
    differences = [1.0, -2.0, 3.0, -4.0]
    assert quartiles(differences) == (1.75, 2.5, 3.25)
    assert graded(differences, quartiles(differences)) == [0.0, -0.5, 1.0, -1.5]
    many = np.random.default_rng(0).normal(0, 30, 4000)
    sizes = np.abs(graded(many, quartiles(many)))
    assert [(sizes == size).sum() for size in (0.0, 0.5, 1.0, 1.5)] == [1000] * 4
    with pytest.raises(ValueError, match="no differences"):
        quartiles([])


def test_grades_by_sign_and_by_thresholds():
    assert graded([0.3, 0.0, -7.0]) == [1.0, 0.0, -1.0]
    assert graded([0.0, 0.1, 0.2, 0.5, -0.6, -0.2], (0.1, 0.2, 0.5)) == [0.0, 0.0, 0.5, 1.0, -1.5, -0.5]
    assert graded([0.0, 1e-9, -1e-9], (0.0, 0.0, 0.0)) == [0.0, 1.5, -1.5]
    assert "-0.0" not in map(str, graded([-0.05, -0.0], (0.1, 0.2, 0.5)))
    for wrong in [(-1.0, 0.0, 1.0), (0.0, 2.0, 1.0)]:
        with pytest.raises(ValueError, match="do not fall"):
            graded([1.0], wrong)


def test_a_scoring_judge_compares_row_by_row():
    scores = {"A": [1.0, 2.0, 3.0], "B": [0.0, 2.0, 5.0], "C": [1.0, 1.0, 1.0]}
    found = judged(["p", "p", "q"], scores)
    assert len(found) == 9
    a_b = the(preference(found, "A", "B"))
    assert (a_b.wins, a_b.ties, a_b.losses, a_b.num_prompts, a_b.score) == (1, 1, 1, 2, 0.0)
    assert the(preference(found, "A", "C")).score == pytest.approx(2 / 3)
    strong = the(preference(judged(["p", "p", "q"], scores, (0.5, 1.5, 1.75)), "B", "A"))
    assert strong.score == pytest.approx((1.5 - 0.5) / 3)
    with pytest.raises(ValueError, match="one per row"):
        judged(["p"], scores)


def test_agreement_of_a_hand_worked_table():
    # signs + + - 0 + and + - - + +: same 3 of 5; decided by both 4, of them 3 alike;
    # chance .2 * 0 + .8 * 1 / 2 = .4; kappa (.6 - .4) / .6
    found = agreement([1.0, 1.5, -0.5, 0.0, 1.5], [0.5, -1.0, -1.0, 1.0, 1.0])
    assert (found.n, found.num_decided, found.share) == (5, 4, 0.75)
    assert found.kappa == pytest.approx(1 / 3)


def test_kappa_does_not_depend_on_which_completion_stood_first():
    generator = np.random.default_rng(3)
    first, second = generator.choice(SCALE, 50), generator.choice(SCALE, 50)
    flips = generator.choice([-1, 1], 50)
    assert agreement(list(first), list(second)) == agreement(list(first * flips), list(second * flips))
    both = [(a * s, b * s) for a, b in zip(np.sign(first), np.sign(second), strict=True) for s in (1, -1)]
    same = np.mean([a == b for a, b in both])
    chance = np.mean([a == b for (a, _), (_, b) in product(both, both)])
    assert agreement(list(first), list(second)).kappa == pytest.approx((same - chance) / (1 - chance))


def test_agreement_at_its_ends():
    assert agreement([1.0, -1.0, 0.0], [0.5, -1.5, 0.0]).kappa == 1
    assert agreement([1.0, -1.0], [-0.5, 1.5]).kappa == -1
    assert agreement([1.0, -1.0], [-0.5, 1.5]).share == 0
    nothing = agreement([], [])
    assert (nothing.n, nothing.share, nothing.kappa) == (0, None, None)
    ties = agreement([0.0, 0.0], [0.0, 0.0])
    assert (ties.n, ties.num_decided, ties.share, ties.kappa) == (2, 0, None, None)
    with pytest.raises(ValueError, match="same pairs"):
        agreement([1.0], [])


def test_it_brings_the_paired_difference_along():
    assert paired_difference is statistics.paired_difference
    found = paired_difference([1.0, 3.0], ["p", "q"], [0.0, 1.0], ["p", "q"])
    assert (found.mean, found.se) == (1.5, pytest.approx(0.5))


def test_its_import_is_light():
    code = (
        "import sys, warp_core.evaluation.preferences;"
        "print(sorted({'torch', 'transformers', 'peft', 'safetensors', 'pandas', 'plotly'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
