"""Fig. 18: length bias along KL, a length penalty, and merging runs with and without it."""

from dataclasses import replace

import numpy as np

from warp_core.studies.asking import above, number, rises
from warp_core.studies.claims import Claim
from warp_core.studies.common import length_of
from warp_core.studies.outcome import Evidence, Study
from warp_core.studies.plan import Curve, Rollout, Stage, changed, liti, trajectory
from warp_core.studies.scales import Scale
from warp_core.training.config import WarpConfig

__all__ = ["STUDY"]

RUN, FREE, SHORT, MIXED = "RL run", "without penalty", "with penalty", "with and without"
_NEAR_LIMIT = 0.9


def _measured(scale: Scale, seed: int) -> WarpConfig:
    """Completions long enough to end by themselves; the penalty is no part of what is measured."""
    return changed(scale.seeded(seed), training={"max_new_tokens": scale.length_tokens})


def _curves(scale: Scale, seed: int) -> list[Curve]:
    free = _measured(scale, seed)
    terms = [*free.reward.terms, f"length:{-scale.length_penalty:g}"]
    short = changed(free, reward={"terms": terms})
    a, b = ([Stage(rollout=Rollout(config=config, policy=policy)) for policy in (1, 2)] for config in (free, short))
    return [
        trajectory(RUN, a[0].rollout, dash="dot"),
        liti(FREE, a, scale.etas),
        liti(SHORT, b, scale.etas, dash="dash"),
        liti(MIXED, (a[0], b[1]), scale.etas, judged=True),
    ]


def _claims(evidence: Evidence) -> list[Claim]:
    tables = evidence.tables
    return [
        _bias(evidence),
        number(
            "penalty",
            tables,
            lambda means: float(means[FREE].length_P[-1] - means[SHORT].length_P[-1]),
            curves=(FREE, SHORT),
            says="tokens saved by the penalty at eta = 1",
            unit="tokens",
        ),
        above("mixed-free", tables, MIXED, FREE),
        above("mixed-short", tables, MIXED, SHORT),
    ]


def _bias(evidence: Evidence) -> Claim:
    """Return the claim that completions grow; undecided where those of the SFT policy fill the room that they have."""
    claim = rises("bias", evidence.tables, RUN, read=length_of, what="length")
    limit = evidence.scale.length_tokens
    starts = [float(table[RUN].length_PG[0].mean()) for table in evidence.tables if RUN in table]
    if claim.interval is None or np.mean(starts) <= _NEAR_LIMIT * limit:
        return claim
    room = f"but no room to grow: the SFT policy has {np.mean(starts):.1f} of {limit} tokens"
    return replace(claim, verdict="undecided", sentence=f"{claim.sentence}, {room}")


STUDY = Study(
    name="length",
    title="Length bias and length penalty",
    figure="Fig. 18",
    observation="Completions grow longer along KL; a length penalty holds them back; merging runs with and without it "
    "improves the front",
    curves=_curves,
    claims=_claims,
    axes=(("kl", "reward"), ("kl", "length")),
    measured=_measured,
)
