"""The checkpoints that most studies start from: runs of WARP itself, shared by all of them."""

from warp_core.studies.claims import Floats, Means
from warp_core.studies.plan import Rollout, Stage
from warp_core.studies.scales import Scale

__all__ = ["kl_of", "length_of", "reward_of", "rollout", "similarity_of", "stages"]


def rollout(scale: Scale, seed: int, *, iteration: int = 1, policy: int = 1) -> Rollout:
    """One RL run of WARP with the preset's own settings."""
    return Rollout(config=scale.seeded(seed), iteration=iteration, policy=policy)


def stages(scale: Scale, seed: int, *, count: int = 2, iteration: int = 1) -> tuple[Stage, ...]:
    """The first policies of an iteration of WARP."""
    return tuple(
        Stage(rollout=rollout(scale, seed, iteration=iteration, policy=policy)) for policy in range(1, count + 1)
    )


def kl_of(means: Means) -> Floats:
    """KL along a curve."""
    return means.kl_P


def reward_of(means: Means) -> Floats:
    """Reward along a curve."""
    return means.reward_P


def length_of(means: Means) -> Floats:
    """Tokens per completion along a curve."""
    return means.length_P


def similarity_of(means: Means) -> Floats:
    """Similarity of two completions of a prompt along a curve."""
    assert means.similarity_P is not None, "completions come in pairs at every scale"
    return means.similarity_P
