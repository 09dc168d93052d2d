"""Fig. 3c, 8: from one policy to another, by SLERP and by LERP."""

import numpy as np

from warp_core.studies.asking import curved, number
from warp_core.studies.claims import Claim
from warp_core.studies.common import reward_of, stages
from warp_core.studies.outcome import Evidence, Study
from warp_core.studies.plan import Curve, Model
from warp_core.studies.scales import Scale

__all__ = ["STUDY"]

SLERP, LERP = "SLERP", "LERP"


def _curves(scale: Scale, seed: int) -> list[Curve]:
    policies = stages(scale, seed)

    def between(method: str) -> tuple[Model, ...]:
        return tuple(
            Model(policies=policies, method="slerp" if method == SLERP else "lerp", weights=(1 - share, share))
            for share in scale.lambdas
        )

    return [
        Curve(name=SLERP, models=between(SLERP), at=scale.lambdas, axis="lambda", judged=True),
        Curve(name=LERP, models=between(LERP), at=scale.lambdas, axis="lambda", dash="dash"),
    ]


def _claims(evidence: Evidence) -> list[Claim]:
    tables, both = evidence.tables, (SLERP, LERP)
    return [
        curved("concave", tables, SLERP, read=reward_of, what="reward", concave=True),
        number(
            "reward",
            tables,
            lambda means: float(np.mean((means[SLERP].reward_P - means[LERP].reward_P)[1:-1])),
            curves=both,
            says="reward of SLERP over LERP between the policies",
            unit="reward",
        ),
        number(
            "kl",
            tables,
            lambda means: float(np.mean((means[SLERP].kl_P - means[LERP].kl_P)[1:-1])),
            curves=both,
            says="KL of SLERP over LERP between the policies",
            unit="nats",
        ),
    ]


STUDY = Study(
    name="slerp",
    title="Reward and KL between two policies",
    figure="Fig. 3c, 8",
    observation="Reward along lambda is concave; SLERP gives more reward than LERP, LERP less KL",
    curves=_curves,
    claims=_claims,
    axes=(("at", "reward"), ("at", "kl"), ("kl", "reward")),
)
