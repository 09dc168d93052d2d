"""Fig. 3a, 3b, 12, 14: the EMA as anchor of the KL, against the fixed SFT policy."""

from warp_core.studies.asking import above, alike
from warp_core.studies.claims import Claim
from warp_core.studies.common import rollout
from warp_core.studies.outcome import Evidence, Study
from warp_core.studies.plan import Curve, Rollout, changed, trajectory
from warp_core.studies.scales import Scale

__all__ = ["STUDY"]

EMA, WEIGHTS = "EMA anchor", "EMA weights"


def _sft(beta: float) -> str:
    return f"SFT anchor, beta {beta:g}"


def _curves(scale: Scale, seed: int) -> list[Curve]:
    own = rollout(scale, seed)
    fixed = [
        (beta, Rollout(config=changed(own.config, training={"anchor": "sft", "beta": beta})))
        for beta in scale.sft_betas
    ]
    return [
        trajectory(EMA, own, judged=True),
        trajectory(WEIGHTS, own, ema=True, dash="dash"),
        *(trajectory(_sft(beta), run, dash="dot") for beta, run in fixed),
    ]


def _claims(evidence: Evidence) -> list[Claim]:
    tables = evidence.tables
    return [
        *(above(f"sft-{beta:g}", tables, EMA, _sft(beta)) for beta in evidence.scale.sft_betas),
        alike("ema-weights", tables, WEIGHTS, EMA, one_sided=True),
    ]


STUDY = Study(
    name="anchor",
    title="EMA or SFT policy as the anchor",
    figure="Fig. 3a, 3b, 12, 14",
    observation="The front of a run anchored to its EMA lies above those anchored to the SFT policy, whatever their "
    "beta; the EMA weights themselves are as good or better",
    curves=_curves,
    claims=_claims,
    axes=(("kl", "reward"), ("at", "reward"), ("at", "kl")),
)
