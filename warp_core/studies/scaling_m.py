"""Fig. 4b: more policies. M = 1 is the first policy by itself, M = 2 the first two, and so on."""

from itertools import pairwise

from warp_core.studies.asking import above, alike, trend
from warp_core.studies.claims import Claim
from warp_core.studies.common import stages
from warp_core.studies.outcome import Evidence, Study
from warp_core.studies.plan import Curve, liti
from warp_core.studies.scales import Scale

__all__ = ["STUDY"]


def _name(count: int) -> str:
    return f"M = {count}"


def _curves(scale: Scale, seed: int) -> list[Curve]:
    return [
        liti(
            _name(count),
            stages(scale, seed, count=count),
            scale.etas,
            method="slerp" if count > 1 else "lerp",
            judged=count == scale.policies,
        )
        for count in range(1, scale.policies + 1)
    ]


def _claims(evidence: Evidence) -> list[Claim]:
    names = [_name(count) for count in range(1, evidence.scale.policies + 1)]
    return [
        trend("trend", evidence.tables, names, per="per policy"),
        above("most", evidence.tables, names[-1], names[0]),
        *(alike(f"to-{more[-1]}", evidence.tables, more, name, one_sided=True) for name, more in pairwise(names)),
    ]


STUDY = Study(
    name="scaling-m",
    title="Fronts by the number of policies",
    figure="Fig. 4b",
    observation="Fronts rise with the number M of policies that are merged",
    curves=_curves,
    claims=_claims,
)
