"""Fig. 19: completions of a prompt become alike as KL grows."""

from warp_core.studies.asking import rises
from warp_core.studies.claims import Claim
from warp_core.studies.common import rollout, similarity_of, stages
from warp_core.studies.outcome import Evidence, Study
from warp_core.studies.plan import Curve, liti, trajectory
from warp_core.studies.scales import Scale

__all__ = ["STUDY"]

RUN, WARP = "RL run", "LITI of SLERP"


def _curves(scale: Scale, seed: int) -> list[Curve]:
    return [
        trajectory(RUN, rollout(scale, seed), dash="dot"),
        liti(WARP, stages(scale, seed), scale.etas, judged=True),
    ]


def _claims(evidence: Evidence) -> list[Claim]:
    return [rises(curve, evidence.tables, curve, read=similarity_of, what="similarity") for curve in (RUN, WARP)]


STUDY = Study(
    name="diversity",
    title="Diversity along KL",
    figure="Fig. 19",
    observation="The similarity of two completions of a prompt rises with KL",
    curves=_curves,
    claims=_claims,
    axes=(("kl", "similarity"), ("reward", "similarity")),
)
