"""Fig. 1b, 4c, 17: iterations of train, merge, interpolate."""

from itertools import pairwise

from warp_core.studies.asking import above, alike
from warp_core.studies.claims import Claim
from warp_core.studies.common import stages
from warp_core.studies.outcome import Evidence, Study
from warp_core.studies.plan import Curve, liti
from warp_core.studies.scales import Scale

__all__ = ["STUDY"]


def _name(iteration: int) -> str:
    return f"iteration {iteration}"


def _curves(scale: Scale, seed: int) -> list[Curve]:
    last = scale.config.warp.iterations
    curves = []
    for iteration in range(1, last + 1):
        policies = stages(scale, seed, iteration=iteration)
        curves.append(liti(_name(iteration), policies, scale.etas, judged=iteration == last))
        if iteration > 1:
            curves.append(liti(f"{_name(iteration)} to its init", policies, scale.etas, to_init=True, dash="dash"))
    return curves


def _claims(evidence: Evidence) -> list[Claim]:
    names = [_name(iteration) for iteration in range(1, evidence.scale.config.warp.iterations + 1)]
    return [
        *(above(f"rise-{later[-1]}", evidence.tables, later, name) for name, later in pairwise(names)),
        above("last", evidence.tables, names[-1], names[0], counts=False),
        *(alike(f"init-{name[-1]}", evidence.tables, f"{name} to its init", name) for name in names[1:]),
    ]


STUDY = Study(
    name="iterate",
    title="Fronts by the iteration",
    figure="Fig. 1b, 4c, 17",
    observation="Fronts rise with the iterations; interpolation towards the iteration's init and towards the SFT "
    "policy are alike",
    curves=_curves,
    claims=_claims,
)
