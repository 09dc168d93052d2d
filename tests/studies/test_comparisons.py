"""What is compared at like reward, at like KL and with room to grow, and what is not decided without."""

from types import SimpleNamespace

import numpy as np
import pytest

from warp_core.studies import preference
from warp_core.studies.benchmark import _at_reward, _Place
from warp_core.studies.claims import Readings
from warp_core.studies.length import RUN, _bias

PROMPTS = 12


def place(reward, kl, nll):
    return _Place(nll_W=np.array(nll, dtype=float), reward=reward, kl=kl, tasks={"task": reward})


def test_abilities_are_compared_where_the_front_first_has_the_reward():
    front = [place(0, 0, [1, 2]), place(2, 1, [2, 2]), place(4, 6, [6, 2]), place(1, 20, [9, 9])]
    equal = _at_reward(front, 3.0)
    assert (equal.reward, equal.kl) == (3.0, 3.5)
    assert equal.nll_W == pytest.approx([4.0, 2.0])
    assert _at_reward(front, 0.5).kl == pytest.approx(0.25), "on the way up, not on the way down"
    assert _at_reward(front, 1.5).tasks == {"task": 2}, "tasks are those of the nearer model"
    beyond = _at_reward(front, 5.0)
    assert (beyond.reward, beyond.kl) == (4, 6), "a reward that the front has nowhere: the nearest"
    flat = [place(1, 0, [1]), place(1, 3, [4])]
    assert _at_reward(flat, 1).kl == 0


def lengths(start, end):
    at = np.arange(4.0)
    along = np.linspace(start, end, 4)
    spread = np.linspace(-0.01, 0.01, PROMPTS)
    return Readings(
        at_P=at, kl_PG=np.outer(at, np.ones(PROMPTS)), reward_PG=np.zeros((4, PROMPTS)),
        length_PG=along[:, None] + spread,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("start", "end", "verdict"), [(10, 14, "held"), (14, 10, "failed"), (15, 15.9, "undecided"), (15.9, 9, "undecided")]
)
def test_length_bias_is_not_decided_without_room_to_grow(start, end, verdict):
    evidence = SimpleNamespace(tables=[{RUN: lengths(start, end)}], scale=SimpleNamespace(length_tokens=16))
    claim = _bias(evidence)
    assert claim.verdict == verdict
    assert ("no room to grow" in claim.sentence) == (verdict == "undecided")


def test_length_bias_without_a_run_is_not_measured():
    claim = _bias(SimpleNamespace(tables=[{}], scale=SimpleNamespace(length_tokens=16)))
    assert (claim.verdict, claim.interval) == ("undecided", None)


@pytest.mark.parametrize(("kl", "verdict"), [(10.0, "held"), (11.9, "held"), (12.1, "undecided"), (7.0, "undecided")])
def test_preference_is_decided_at_like_kl_only(monkeypatch, kl, verdict):
    last, scores = preference._name(1), np.linspace(-0.1, 2, PROMPTS)
    samples = [SimpleNamespace(prompt=str(i)) for i in range(PROMPTS)]

    def found(kl, judge):
        return SimpleNamespace(point=SimpleNamespace(kl=kl), judge=tuple(judge), samples=samples)

    models = {
        preference.REINFORCE: (1.0, found(10.0, 0 * scores)),
        last: (0.5, found(kl, scores)),
        preference.SFT: (0.0, found(0.0, scores - np.linspace(0.1, 1, PROMPTS))),
    }
    monkeypatch.setattr(preference, "contestants", lambda evidence, seed: models)
    scale = SimpleNamespace(config=SimpleNamespace(warp=SimpleNamespace(iterations=1)))
    to_sft, to_run = preference._claims(SimpleNamespace(curves={0: []}, scale=scale))
    assert "KL" not in to_sft.sentence
    assert to_run.verdict == verdict
    assert f"KL {kl:.1f} against 10.0" in to_run.sentence
    assert ("too far apart" in to_run.sentence) == (verdict == "undecided")
