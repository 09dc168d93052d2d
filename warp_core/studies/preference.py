"""Table 1: WARP against the SFT policy and against REINFORCE, side by side, before another judge."""

from typing import Any

import numpy as np

from warp_core.evaluation.preferences import Judgement, judged, preference, quartiles
from warp_core.studies.claims import Claim, Floats, decide, mean_interval
from warp_core.studies.common import rollout, stages
from warp_core.studies.lab import Found
from warp_core.studies.outcome import Evidence, Study
from warp_core.studies.plan import Curve, Model, Stage, liti
from warp_core.studies.scales import Scale

__all__ = ["STUDY"]

REINFORCE, SFT = "REINFORCE", "SFT"
_LIKE = 0.2
"""By what share of REINFORCE's KL the place on a front may miss it and still be at like KL."""


def _name(iteration: int) -> str:
    return f"WARP, iteration {iteration}"


def _curves(scale: Scale, seed: int) -> list[Curve]:
    alone = Model(policies=(Stage(rollout=rollout(scale, seed)),))
    return [
        Curve(name=REINFORCE, models=(alone,), at=(1.0,), judged=True),
        *(
            liti(_name(iteration), stages(scale, seed, iteration=iteration), scale.etas, judged=True)
            for iteration in range(1, scale.config.warp.iterations + 1)
        ),
    ]


def contestants(evidence: Evidence, seed: int) -> dict[str, tuple[float, Found]] | None:
    """Return the models that are compared, with their eta: each WARP at the place whose KL is nearest to REINFORCE's.

    The place is chosen by the KL, of which the judge knows nothing. None while something is missing. The policies of
    a later iteration have more steps of training behind them than REINFORCE, which is that of one run.
    """
    alone = evidence.complete(seed, REINFORCE)
    names = [_name(iteration) for iteration in range(1, evidence.scale.config.warp.iterations + 1)]
    fronts = {name: evidence.complete(seed, name) for name in names}
    if alone is None or any(front is None or any(one.judge is None for one in front) for front in fronts.values()):
        return None
    found: dict[str, tuple[float, Found]] = {REINFORCE: (1.0, alone[0])}
    for name, front in fronts.items():
        assert front is not None
        kl = alone[0].point.kl
        found[name] = min(zip(evidence.scale.etas, front, strict=True), key=lambda pair: abs(pair[1].point.kl - kl))
        found.setdefault(SFT, (0.0, front[0]))
    return found


def _kls(evidence: Evidence, *names: str) -> Floats:
    """Return the KL of models that are compared, in nats: a row per seed that is finished, a column per name."""
    known = [models for seed in evidence.curves if (models := contestants(evidence, seed)) is not None]
    return np.array([[models[name][1].point.kl for name in names] for models in known], dtype=np.float64)


def _judgements(evidence: Evidence) -> list[list[Judgement]]:
    """Return, per seed, what the judge says of all pairs; graded by quartiles of WARP against the SFT policy."""
    votes: list[list[Judgement]] = []
    for seed in evidence.curves:
        models = contestants(evidence, seed)
        if models is None or any(found.judge is None for _, found in models.values()):
            continue
        prompts = [sample.prompt for sample in models[SFT][1].samples]
        scores = {name: list(found.judge or ()) for name, (_, found) in models.items()}
        last = _name(evidence.scale.config.warp.iterations)
        spread = [a - b for a, b in zip(scores[last], scores[SFT], strict=True)]
        votes.append(judged(prompts, scores, quartiles(spread)))
    return votes


def _claims(evidence: Evidence) -> list[Claim]:
    votes = _judgements(evidence)
    last = evidence.scale.config.warp.iterations
    pairs = [(_name(i), SFT) for i in range(1, last + 1)] + [(_name(i), REINFORCE) for i in range(1, last + 1)]
    return [
        _claim(votes, first, second, kl_S2=_kls(evidence, first, second), counts=first == _name(last))
        for first, second in pairs
    ]


def _claim(votes: list[list[Judgement]], first: str, second: str, *, kl_S2: Floats, counts: bool) -> Claim:
    found = preference([vote for one in votes for vote in one], first, second)
    interval = None
    if found is not None and found.low is not None:
        interval = mean_interval(np.array([_scores(one, first, second) for one in votes]))
    verdict = decide(interval)
    shown = "not measured, or all prompts say the same"
    if interval is not None and found is not None:
        counted = f"{found.wins} won, {found.ties} tied, {found.losses} lost"
        shown = f"{interval.value:+.2f} [{interval.low:+.2f}, {interval.high:+.2f}] of 1.5, {counted}"
    sentence = f"{first} preferred to {second}: {shown}"
    if interval is not None and second == REINFORCE:
        own, other = kl_S2.mean(axis=0)
        sentence = f"{sentence}, KL {own:.1f} against {other:.1f}"
        if (np.abs(kl_S2[:, 0] - kl_S2[:, 1]) > _LIKE * kl_S2[:, 1]).any():
            verdict, sentence = "undecided", f"{sentence}, too far apart to decide"
    return Claim(
        name=f"{first} / {second}", verdict=verdict, sentence=sentence, unit="score", interval=interval, counts=counts
    )


def _scores(votes: list[Judgement], first: str, second: str) -> list[float]:
    """Mean score of the first over the second per prompt."""
    by_prompt: dict[Any, list[float]] = {}
    for vote in votes:
        if {vote.first, vote.second} == {first, second}:
            by_prompt.setdefault(vote.prompt, []).append(vote.score if vote.first == first else -vote.score)
    return [float(np.mean(scores)) for scores in by_prompt.values()]


def _numbers(evidence: Evidence) -> dict[str, Any]:
    chosen = {seed: contestants(evidence, seed) for seed in evidence.curves}
    return {
        "compared": {
            str(seed): {name: {"eta": eta, "kl": found.point.kl} for name, (eta, found) in models.items()}
            for seed, models in chosen.items()
            if models is not None
        }
    }


STUDY = Study(
    name="preference",
    title="Side by side, before another judge",
    figure="Table 1",
    observation="A reward model that was not the training reward prefers WARP to the SFT policy, and to REINFORCE with "
    "an EMA anchor at like KL",
    curves=_curves,
    claims=_claims,
    numbers=_numbers,
    axes=(("kl", "judge"), ("kl", "reward")),
)
