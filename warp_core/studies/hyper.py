"""Fig. 15, 16: the EMA rate mu, the KL weight beta, and eta of the next init."""

from warp_core.studies.asking import alike
from warp_core.studies.claims import Claim
from warp_core.studies.common import stages
from warp_core.studies.outcome import Evidence, Study
from warp_core.studies.plan import Curve, Rollout, Stage, changed, liti
from warp_core.studies.scales import Scale
from warp_core.training.config import WarpConfig

__all__ = ["STUDY"]

OWN, OWN_SECOND = "the preset", "the preset, iteration 2"


def _variants(scale: Scale, seed: int) -> list[tuple[str, WarpConfig, int]]:
    """Return name, configuration and iteration of each variant."""
    own = scale.seeded(seed)
    return [
        *((f"mu {mu:g}", changed(own, training={"mu": mu}), 1) for mu in scale.mus),
        *((f"beta {beta:g}", changed(own, training={"beta": beta}), 1) for beta in scale.betas),
        # Two iterations are enough to see what the second starts from.
        *((f"eta {eta:g}, iteration 2", changed(own, merge={"eta": eta}), 2) for eta in scale.init_etas),
    ]


def _curves(scale: Scale, seed: int) -> list[Curve]:
    curves = [liti(OWN, stages(scale, seed), scale.etas, judged=True)]
    curves.append(liti(OWN_SECOND, stages(scale, seed, iteration=2), scale.etas))
    for name, config, iteration in _variants(scale, seed):
        policies = [Stage(rollout=Rollout(config=config, iteration=iteration, policy=policy)) for policy in (1, 2)]
        curves.append(liti(name, policies, scale.etas, dash="dash" if iteration == 1 else "dot"))
    return curves


def _claims(evidence: Evidence) -> list[Claim]:
    return [
        alike(name, evidence.tables, OWN if iteration == 1 else OWN_SECOND, name, one_sided=True)
        for name, _, iteration in _variants(evidence.scale, next(iter(evidence.curves)))
    ]


STUDY = Study(
    name="hyper",
    title="Ablations of mu, beta and eta",
    figure="Fig. 15, 16",
    observation="The front of the preset's mu, beta and eta is not below those of other values",
    curves=_curves,
    claims=_claims,
)
