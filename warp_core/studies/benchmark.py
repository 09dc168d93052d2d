"""Table 2: abilities kept, for the SFT policy, REINFORCE and WARP at equal reward."""

from typing import Any

import numpy as np

from warp_core.studies.claims import Claim, decide, mean_interval
from warp_core.studies.common import rollout, stages
from warp_core.studies.lab import Found
from warp_core.studies.outcome import Evidence, Study
from warp_core.studies.plan import Curve, Model, Stage, liti
from warp_core.studies.scales import Scale

__all__ = ["STUDY"]

REINFORCE, WARP = "REINFORCE", "WARP"


def _curves(scale: Scale, seed: int) -> list[Curve]:
    alone = Model(policies=(Stage(rollout=rollout(scale, seed)),))
    policies = stages(scale, seed, iteration=scale.config.warp.iterations)
    return [
        Curve(name=REINFORCE, models=(alone,), at=(1.0,), texts=True, judged=True),
        liti(WARP, policies, scale.etas, texts=True, judged=True),
    ]


def _compared(evidence: Evidence, seed: int) -> dict[str, Found] | None:
    """Return the SFT policy, REINFORCE, and WARP where its reward is nearest to REINFORCE's; None while it is open."""
    alone, front = evidence.complete(seed, REINFORCE), evidence.complete(seed, WARP)
    if alone is None or front is None or any(one.text is None for one in [*alone, *front]):
        return None
    equal = min(front, key=lambda one: abs(one.point.reward - alone[0].point.reward))
    return {"SFT": front[0], REINFORCE: alone[0], WARP: equal}


def _nll(found: Found) -> np.ndarray[Any, np.dtype[np.float64]]:
    assert found.text is not None
    return np.asarray(found.text["nll"], dtype=np.float64)


def _claims(evidence: Evidence) -> list[Claim]:
    known = [compared for seed in evidence.curves if (compared := _compared(evidence, seed)) is not None]
    return [_less_lost(known), _lost(known)]


def _less_lost(known: list[dict[str, Found]]) -> Claim:
    differences = [_nll(one[REINFORCE]) - _nll(one[WARP]) for one in known]
    return _claim("kept", "WARP keeps more than REINFORCE at like reward", differences, counts=True)


def _lost(known: list[dict[str, Found]]) -> Claim:
    differences = [_nll(one[WARP]) - _nll(one["SFT"]) for one in known]
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
        for name, found in (_compared(evidence, seed) or {}).items():
            assert found.text is not None
            rows.append(
                {
                    "seed": seed,
                    "model": name,
                    "perplexity": float(np.exp(_nll(found).mean())),
                    "reward": found.point.reward,
                    "kl": found.point.kl,
                    "text": found.text["text"],
                    "tasks": found.text["tasks"],
                }
            )
    return {"models": rows}


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
