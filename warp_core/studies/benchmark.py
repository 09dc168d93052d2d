"""Table 2: abilities kept, for the SFT policy, REINFORCE and WARP at equal reward."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from warp_core.studies.claims import Claim, Floats, decide, mean_interval
from warp_core.studies.common import rollout, stages
from warp_core.studies.lab import Found
from warp_core.studies.outcome import Evidence, Study
from warp_core.studies.plan import Curve, Model, Stage, liti
from warp_core.studies.scales import Scale

__all__ = ["STUDY"]

SFT, REINFORCE, WARP = "SFT", "REINFORCE", "WARP"


@dataclass(frozen=True, kw_only=True, eq=False)
class _Place:
    """A model that is compared, or a place between two of a front: negative log-likelihood per window, nats a token."""

    nll_W: Floats
    reward: float
    kl: float
    tasks: dict[str, Any]


def _curves(scale: Scale, seed: int) -> list[Curve]:
    alone = Model(policies=(Stage(rollout=rollout(scale, seed)),))
    policies = stages(scale, seed, iteration=scale.config.warp.iterations)
    return [
        Curve(name=REINFORCE, models=(alone,), at=(1.0,), texts=True, judged=True),
        liti(WARP, policies, scale.etas, texts=True, judged=True),
    ]


def _compared(evidence: Evidence, seed: int) -> dict[str, _Place] | None:
    """Return the SFT policy, REINFORCE, and WARP where its reward is REINFORCE's; None while it is open."""
    alone, front = evidence.complete(seed, REINFORCE), evidence.complete(seed, WARP)
    if alone is None or front is None or any(one.text is None for one in [*alone, *front]):
        return None
    run, places = _place(alone[0]), [_place(one) for one in front]
    return {SFT: places[0], REINFORCE: run, WARP: _at_reward(places, run.reward)}


def _at_reward(places: list[_Place], reward: float) -> _Place:
    """Return where a front first has a reward, between two of its places by straight lines; the nearest if nowhere.

    The likelihoods that are lost grow faster than eta, so that a straight line puts the loss rather too high.
    """
    for one, other in pairwise(places):
        if min(one.reward, other.reward) <= reward <= max(one.reward, other.reward):
            rise = other.reward - one.reward
            share = (reward - one.reward) / rise if rise else 0.0
            near = one if share < 0.5 else other
            return _Place(
                nll_W=(1 - share) * one.nll_W + share * other.nll_W,
                reward=reward,
                kl=(1 - share) * one.kl + share * other.kl,
                tasks=near.tasks,
            )
    return min(places, key=lambda place: abs(place.reward - reward))


def _place(found: Found) -> _Place:
    assert found.text is not None
    return _Place(
        nll_W=np.asarray(found.text["nll"], dtype=np.float64),
        reward=found.point.reward,
        kl=found.point.kl,
        tasks=found.text["tasks"],
    )


def _claims(evidence: Evidence) -> list[Claim]:
    known = [compared for seed in evidence.curves if (compared := _compared(evidence, seed)) is not None]
    return [_less_lost(known), _lost(known)]


def _less_lost(known: list[dict[str, _Place]]) -> Claim:
    differences = [one[REINFORCE].nll_W - one[WARP].nll_W for one in known]
    says = "WARP keeps more than REINFORCE"
    if known:
        own, other = (np.mean([one[name].reward for one in known]) for name in (WARP, REINFORCE))
        says = f"{says} (reward {own:+.2f} against {other:+.2f})"
    return _claim("kept", says, differences, counts=True)


def _lost(known: list[dict[str, _Place]]) -> Claim:
    differences = [one[WARP].nll_W - one[SFT].nll_W for one in known]
    return _claim("lost", "WARP has lost against the SFT policy", differences, counts=False)


def _claim(name: str, says: str, differences: list[Any], *, counts: bool) -> Claim:
    """Return the claim that a difference of likelihoods per token is positive; windows of the text are resampled."""
    interval = mean_interval(np.array(differences)) if differences else None
    verdict = decide(interval)
    shown = "not measured"
    if interval is not None:
        shown = f"{interval.value:+.4f} [{interval.low:+.4f}, {interval.high:+.4f}] nats per token of held-out text"
    return Claim(
        name=name,
        verdict=verdict,
        sentence=f"{says}: {shown}",
        unit="nats per token",
        interval=interval,
        counts=counts,
    )


def _numbers(evidence: Evidence) -> dict[str, Any]:
    rows = []
    for seed in evidence.curves:
        for name, place in (_compared(evidence, seed) or {}).items():
            rows.append(
                {
                    "seed": seed,
                    "model": name,
                    "perplexity": float(np.exp(place.nll_W.mean())),
                    "reward": place.reward,
                    "kl": place.kl,
                    "tasks": place.tasks,
                }
            )
    return {"text": evidence.scale.text.name if evidence.scale.text else None, "models": rows}


STUDY = Study(
    name="benchmark",
    title="Abilities kept",
    figure="Table 2",
    observation="At equal reward WARP keeps more of the model's abilities than REINFORCE (perplexity of held-out text)",
    curves=_curves,
    claims=_claims,
    numbers=_numbers,
    needs_text=True,
    sampled="windows of text",
)
