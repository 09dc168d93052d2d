"""The words of a study: RL runs, checkpoints of them, merges of those, and curves of merges.

Everything here is a description. `lab.py` trains and measures what it describes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from warp_core.training.config import WarpConfig, config_from_mapping, config_to_mapping
from warp_core.weights.recipes import Method

__all__ = ["Curve", "Model", "Rollout", "Stage", "changed", "liti", "trajectory"]

Axis = Literal["eta", "lambda", "step"]


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """One RL run: theta_policy of an iteration (both 1-based) of a configuration."""

    config: WarpConfig
    iteration: int = 1
    policy: int = 1

    @property
    def steps(self) -> int:
        """T of this run."""
        return self.config.steps_in(self.iteration)

    @property
    def kept_steps(self) -> tuple[int, ...]:
        """The steps whose checkpoints a trajectory has: every `training.keep_every`, and the last."""
        every = self.config.training.keep_every or self.steps
        return tuple(sorted({*range(every, self.steps, every), self.steps}))


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A checkpoint of an RL run: at its end (`step` None), on its way, or the EMA weights of that moment."""

    rollout: Rollout
    step: int | None = None
    ema: bool = False


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model to measure: checkpoints of one iteration merged, and interpolated towards the SFT policy or the init."""

    policies: tuple[Stage, ...]
    method: Method = "lerp"
    weights: tuple[float, ...] | None = None
    eta: float = 1.0
    to_init: bool = False


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Models in order, with the number that orders them.

    Attributes:
        name: unique within a study; the legend shows it.
        at: eta, lambda or step of each model.
        axis: which of them `at` is.
        judged: also scored by the second judge.
        texts: also given held-out text, for its perplexity.
        dash: how the line is drawn.
    """

    name: str
    models: tuple[Model, ...]
    at: tuple[float, ...]
    axis: Axis = "eta"
    judged: bool = False
    texts: bool = False
    dash: Literal["solid", "dash", "dot"] = "solid"


def changed(config: WarpConfig, /, **sections: dict[str, Any]) -> WarpConfig:
    """Return the configuration with fields changed, by section: `changed(config, training={"beta": 0.0})`."""
    mapping = config_to_mapping(config)
    for section, fields in sections.items():
        mapping[section] = mapping[section] | fields
    return config_from_mapping(mapping)


def liti(
    name: str,
    policies: Sequence[Stage],
    etas: Sequence[float],
    *,
    method: Method = "slerp",
    to_init: bool = False,
    **about: Any,
) -> Curve:
    """Return the LITI curve of a merge with equal shares: one model per eta."""
    models = tuple(Model(policies=tuple(policies), method=method, eta=eta, to_init=to_init) for eta in etas)
    return Curve(name=name, models=models, at=tuple(etas), **about)


def trajectory(name: str, rollout: Rollout, *, ema: bool = False, **about: Any) -> Curve:
    """Return the way of an RL run through its checkpoints, from its init (step 0), or that of its EMA."""
    steps = rollout.kept_steps
    stages = [Stage(rollout=rollout, step=step, ema=ema) for step in steps]
    if not ema:
        stages[-1] = Stage(rollout=rollout)
    end = Stage(rollout=rollout)
    models = (Model(policies=(end,), eta=0.0), *(Model(policies=(stage,)) for stage in stages))
    return Curve(name=name, models=models, at=(0.0, *map(float, steps)), axis="step", **about)
