"""What an evaluation asks and finds: samples, the settings they were drawn with, and the point they add up to.

JSON in and out is one flat object per point, the same in the store, on stdout (`evaluate --json`, `front --json`) and
in the web app. Every mean has a standard error beside it, null where one prompt alone gives none.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self, TypeVar, get_args

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from warp_core.errors import WorkspaceError
from warp_core.evaluation.diversity import diversity
from warp_core.evaluation.statistics import clustered_mean

__all__ = ["KINDS", "Evaluation", "Kind", "KlEstimator", "Point", "Sample", "point_from_samples"]

KlEstimator = Literal["exact", "mc"]
Kind = Literal["sft", "policy", "merge", "training"]
T = TypeVar("T")
KINDS: tuple[str, ...] = get_args(Kind)

# Unknown keys are passed over: `front --json` adds "dominated", a later version may add more.
_CONFIG = ConfigDict(extra="ignore")
# Strict: the text "1" and the truth value are no numbers.
_Finite = Annotated[float, Field(strict=True, allow_inf_nan=False)]
_NotNegative = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]
_Positive = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]
_Share = Annotated[float, Field(strict=True, ge=0, le=1)]
_Integer = Annotated[int, Field(strict=True)]
_Count = Annotated[int, Field(strict=True, ge=1)]
_Whole = Annotated[int, Field(strict=True, ge=0)]


@dataclass(frozen=True, kw_only=True, config=_CONFIG)
class Sample:
    """One completion and what was measured on it."""

    prompt: str
    completion: str
    reward: _Finite
    """The total: the weighted sum of the parts."""
    kl: _Finite
    """KL to the anchor, nats per completion; the mc estimator can be negative."""
    num_tokens: _Whole
    """Tokens of the completion, EOS included."""
    rewards: dict[str, _Finite] = dataclasses.field(default_factory=dict)
    """The parts of the reward, before their weights, by name."""

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary; `from_json` reads it back."""
        return dataclasses.asdict(self)  # type: ignore[call-overload, no-any-return]

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read what `to_json` wrote. Raises WorkspaceError naming the field that is missing or wrong."""
        return _validated(cls, data)


@dataclass(frozen=True, kw_only=True, config=_CONFIG)
class Evaluation:
    """What was asked: points with the same evaluation were measured alike and can be compared."""

    reward_id: str
    """Identity of the reward, `RewardSum.id`."""
    prompts_id: str
    """Hash of the prompts in their order."""
    num_prompts: _Count
    samples_per_prompt: _Count
    max_new_tokens: _Count
    temperature: _Positive
    seed: _Integer
    kl_estimator: KlEstimator = "exact"
    chat_template: bool = False
    anchor: str | None = None
    """Id of the SFT policy that the KL is to, where the place of the result does not say it."""
    dtype: str = "float32"
    """What the model computed in; a merge is rounded to it, as its export in that dtype is."""
    speech: str | None = None
    """Hash of what decides how the policy is spoken to and when it ends: tokenizer, chat template, end tokens."""

    @property
    def id(self) -> str:
        """Hash of all settings, 16 hex digits."""
        return _hash(self.to_json())[:16]

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary; `from_json` reads it back."""
        return dataclasses.asdict(self)  # type: ignore[call-overload, no-any-return]

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read what `to_json` wrote. Raises WorkspaceError naming the field that is missing or wrong."""
        return _validated(cls, data)


@dataclass(frozen=True, kw_only=True, config=_CONFIG)
class Point:
    """One model on the reward-versus-KL plane: a recipe or a policy, the means over its samples and their errors.

    Exactly one of `recipe` (`Recipe.to_json()`) and `policy` (the id or name of a checkpoint) is given.
    Raises pydantic's ValidationError (a ValueError) for a value that is not finite or of the wrong type.
    """

    recipe: dict[str, Any] | None = None
    policy: str | None = None
    evaluation: Evaluation | None = None
    """None for a point that no evaluation made, e.g. the mean of a training batch."""
    reward: _Finite
    reward_se: _NotNegative | None
    """Standard error of the mean; null when a single prompt gives none."""
    rewards: dict[str, _Finite] = dataclasses.field(default_factory=dict)
    """Mean of every part of the reward, before its weight."""
    kl: _Finite
    """KL to the anchor, nats per completion."""
    kl_se: _NotNegative | None
    kl_estimator: KlEstimator
    length: _NotNegative
    """Mean number of tokens of a completion."""
    length_se: _NotNegative | None = None
    diversity: _Share | None = None
    """1 - mean similarity of two completions of the same prompt; null with one completion per prompt."""
    diversity_se: _NotNegative | None = None
    n: _Count
    """Number of completions."""
    seed: _Integer
    kind: Kind | None = None
    """sft, policy (the end of an RL run), merge (a recipe) or training (a moment of an RL run)."""
    method: str | None = None
    """How policies were merged: slerp, lerp or slerp-weights."""
    eta: _Finite | None = None
    """LITI position of a merge."""
    iteration: _Integer | None = None
    """Iteration of Algorithm 1 that the policies belong to, from 1."""
    step: _Integer | None = None
    """Training step, of a moment of an RL run."""
    run: str | None = None
    """Which RL run of the iteration a policy or a moment belongs to."""

    def __post_init__(self) -> None:
        if (self.recipe is None) == (self.policy is None):
            raise ValueError("a point is of a recipe or of a policy: give exactly one")

    @property
    def subject(self) -> str:
        """What was measured: the id of the recipe (equal to `Recipe.id`) or the policy."""
        return _hash(self.recipe) if self.recipe is not None else str(self.policy)

    @property
    def key(self) -> str:
        """Key in the results store: subject, evaluation and, for moments of a run, the step."""
        parts = [self.subject, self.evaluation.id if self.evaluation else "training"]
        return ":".join(parts if self.step is None else [*parts, str(self.step)])

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary with every field; `from_json` reads it back."""
        return dataclasses.asdict(self)  # type: ignore[call-overload, no-any-return]

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read what `to_json` wrote. Raises WorkspaceError naming the field that is missing or wrong."""
        return _validated(cls, data)


def point_from_samples(
    samples: Sequence[Sample],
    *,
    evaluation: Evaluation,
    recipe: dict[str, Any] | None = None,
    policy: str | None = None,
    kind: Kind | None = None,
    method: str | None = None,
    eta: float | None = None,
    iteration: int | None = None,
    step: int | None = None,
    run: str | None = None,
) -> Point:
    """Aggregate samples to a point: means, and standard errors in which the completions of a prompt are one cluster.

    `method` and `eta` default to those of the recipe, `kind` to "merge" for a recipe and "policy" for a policy.
    Raises ValueError for no samples, or samples whose reward parts differ.
    """
    if not samples:
        raise ValueError("a point needs at least one sample")
    if len({frozenset(s.rewards) for s in samples}) != 1:
        raise ValueError("the samples do not have the same parts of the reward")
    prompts = [s.prompt for s in samples]
    reward = clustered_mean([s.reward for s in samples], prompts)
    kl = clustered_mean([s.kl for s in samples], prompts)
    length = clustered_mean([s.num_tokens for s in samples], prompts)
    variety = diversity([s.completion for s in samples], prompts)
    from_recipe = recipe or {}
    return Point(
        recipe=recipe,
        policy=policy,
        evaluation=evaluation,
        reward=reward.mean,
        reward_se=reward.se,
        rewards={part: clustered_mean([s.rewards[part] for s in samples], prompts).mean for part in samples[0].rewards},
        kl=kl.mean,
        kl_se=kl.se,
        kl_estimator=evaluation.kl_estimator,
        length=length.mean,
        length_se=length.se,
        diversity=variety.mean if variety else None,
        diversity_se=variety.se if variety else None,
        n=len(samples),
        seed=evaluation.seed,
        kind=kind or ("merge" if recipe is not None else "policy"),
        method=method if method is not None else from_recipe.get("method"),
        eta=eta if eta is not None else from_recipe.get("eta"),
        iteration=iteration,
        step=step,
        run=run,
    )


def _hash(obj: Any) -> str:
    return hashlib.sha256(json.dumps(obj, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _validated(cls: type[T], data: Mapping[str, Any]) -> T:
    if not isinstance(data, Mapping):  # what a damaged store holds may be anything
        raise WorkspaceError(f"a stored {cls.__name__.lower()} is not readable: it is no object; evaluate it again")
    try:
        return TypeAdapter(cls).validate_python(dict(data))
    except ValidationError as err:
        first = err.errors(include_url=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the whole"
        raise WorkspaceError(
            f"a stored {cls.__name__.lower()} is not readable: {where}: {first['msg']}; evaluate it again"
        ) from err
