"""Fig. 4a, 9, 10a, 10b, 13: interpolation towards the init, against RL trajectories and cheaper averages."""

import numpy as np

from warp_core.studies.asking import above, curved, number
from warp_core.studies.claims import Claim, front_gap
from warp_core.studies.common import kl_of, reward_of, rollout, stages
from warp_core.studies.outcome import Evidence, Study
from warp_core.studies.plan import Curve, Stage, liti, trajectory
from warp_core.studies.scales import Scale

__all__ = ["STUDY"]

WARP, RUN, AVERAGE, BEYOND = "LITI of SLERP", "RL run", "moving average", "extrapolation"
ALONE, OTHER = "LITI of M = 1", "LITI of M = 1, policy 2"


def _curves(scale: Scale, seed: int) -> list[Curve]:
    own, both = rollout(scale, seed), stages(scale, seed)
    steps = own.kept_steps[:-1]
    on_the_way = (*(Stage(rollout=own, step=step) for step in steps), Stage(rollout=own))
    return [
        liti(WARP, both, scale.etas, judged=True),
        trajectory(RUN, own, dash="dot"),
        liti(ALONE, both[:1], scale.etas, method="lerp", dash="dash"),
        liti(OTHER, both[1:], scale.etas, method="lerp", dash="dash"),
        liti(AVERAGE, on_the_way, scale.etas, method="lerp", dash="dash"),
        liti(BEYOND, both, (1.0, *scale.far_etas), dash="dot"),
    ]


def _claims(evidence: Evidence) -> list[Claim]:
    tables = evidence.tables
    return [
        above("trajectory", tables, WARP, RUN),
        curved("kl-convex", tables, WARP, read=kl_of, what="KL", concave=False),
        curved("reward-concave", tables, WARP, read=reward_of, what="reward", concave=True),
        number(
            "one-policy",
            tables,
            # Both of the merged policies: one of them alone may be the better or the worse by chance.
            lambda means: float(np.mean([front_gap(means[WARP], means[one]) for one in (ALONE, OTHER)])),
            curves=(WARP, ALONE, OTHER),
            says=f"{WARP} above LITI of M = 1 (mean over its two policies)",
            unit="reward at equal KL",
        ),
        above("moving-average", tables, WARP, AVERAGE),
        above("one-policy-trajectory", tables, ALONE, RUN, counts=False),
        number(
            "extrapolation",
            tables,
            lambda means: float(means[BEYOND].reward_P[-1] - means[BEYOND].reward_P[0]),
            curves=(BEYOND,),
            says=f"reward at eta = {max(evidence.scale.far_etas):g} over eta = 1",
            unit="reward",
            counts=False,
        ),
    ]


STUDY = Study(
    name="liti",
    title="Linear interpolation towards the init",
    figure="Fig. 4a, 9, 10a, 10b, 13",
    observation="LITI of SLERP lies above the RL trajectories; KL is convex and reward concave in eta; M = 1 and a "
    "moving average of one run's checkpoints gain less",
    curves=_curves,
    claims=_claims,
    axes=(("kl", "reward"), ("at", "reward"), ("at", "kl")),
)
