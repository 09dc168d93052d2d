"""A recipe: the whole definition of a merged model, small enough for a URL."""

import hashlib
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from warp_core.errors import RecipeError
from warp_core.weights.checkpoints import Checkpoint
from warp_core.weights.layers import GRANULARITIES

__all__ = ["METHODS", "Granularity", "Method", "Recipe", "make_recipe"]

Method = Literal["slerp", "lerp", "slerp-weights"]
Granularity = Literal["layer", "tensor", "model"]
METHODS: tuple[str, ...] = get_args(Method)
_MAX_ETA = 2.0
_SUM_TOLERANCE = 1e-6
_FIELDS = {"init", "policies", "method", "weights", "eta", "granularity", "towards"}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How policies become one model. All checkpoints are named by content id, so a recipe fits any machine.

    Attributes:
        init: id of theta_init, the start of every task vector.
        policies: ids of theta_1..theta_M; the order counts (eq. 26 is not symmetric).
        method: "slerp" of task vectors (SLERP), "lerp", or "slerp-weights" (SLERP of the full weights, Fig. 10c).
        weights: one non-negative weight per policy, sum 1.
        eta: LITI position, 0 = init (or `towards`), 1 = the merged policies, up to 2 = extrapolation.
        granularity: what shares one angle: "layer", "tensor" or "model".
        towards: id of the checkpoint that LITI interpolates from instead of init (the SFT policy in iteration >= 2):
            theta = (1-eta)*theta_towards + eta*theta_merged.

    Raises RecipeError, naming the field, when a value makes no sense.
    """

    init: str
    policies: tuple[str, ...]
    method: Method = "slerp"
    weights: tuple[float, ...]
    eta: float = 1.0
    granularity: Granularity = "layer"
    towards: str | None = None

    def __post_init__(self) -> None:
        _check(bool(self.init) and isinstance(self.init, str), "init", self.init, "give the id of a checkpoint")
        ids_ok = all(isinstance(p, str) and p for p in self.policies)
        _check(bool(self.policies) and ids_ok, "policies", self.policies, "give at least one policy id")
        _check(self.method in METHODS, "method", self.method, f"choose one of {', '.join(METHODS)}")
        _check(self.granularity in GRANULARITIES, "granularity", self.granularity, f"choose from {GRANULARITIES}")
        numbers_ok = all(_is_finite(w) and w >= 0 for w in self.weights)
        _check(numbers_ok, "weights", self.weights, "give non-negative numbers")
        count_ok = len(self.weights) == len(self.policies)
        _check(count_ok, "weights", self.weights, f"give {len(self.policies)} numbers, one per policy")
        # The largest first: the sum of two near the largest float raises.
        sum_ok = max(self.weights) <= 2 and abs(math.fsum(self.weights) - 1) <= _SUM_TOLERANCE
        _check(sum_ok, "weights", self.weights, "make them sum to 1")
        _check(_is_finite(self.eta) and 0 <= self.eta <= _MAX_ETA, "eta", self.eta, "choose 0 <= eta <= 2")
        towards_ok = self.towards is None or (bool(self.towards) and isinstance(self.towards, str))
        _check(towards_ok, "towards", self.towards, "give a checkpoint id or none")

    @property
    def id(self) -> str:
        """Content hash (64 hex digits): two recipes with the same id are the same model."""
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary; `from_json` reads it back."""
        return {
            "init": self.init,
            "policies": list(self.policies),
            "method": self.method,
            "weights": [float(w) for w in self.weights],
            "eta": float(self.eta),
            "granularity": self.granularity,
            "towards": self.towards,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Recipe":
        """Read what `to_json` wrote. Raises RecipeError for missing, unknown or wrong fields."""
        unknown = sorted(set(data) - _FIELDS)
        _check(not unknown, "field", unknown, f"known fields are {', '.join(sorted(_FIELDS))}")
        try:
            return cls(**dict(data) | {"policies": tuple(data["policies"]), "weights": tuple(data["weights"])})
        except (KeyError, TypeError) as err:
            raise RecipeError(
                f"recipe: a field is missing or of the wrong type ({str(err)[:200]}); see Recipe"
            ) from err


def make_recipe(
    init: Checkpoint,
    policies: Sequence[Checkpoint],
    *,
    method: Method = "slerp",
    weights: Sequence[float] | None = None,
    eta: float = 1.0,
    granularity: Granularity = "layer",
    towards: Checkpoint | None = None,
) -> Recipe:
    """A Recipe from opened checkpoints; `weights` default to 1/M each. Raises RecipeError as Recipe does."""
    count = max(1, len(policies))
    return Recipe(
        init=init.id,
        policies=tuple(policy.id for policy in policies),
        method=method,
        weights=tuple(weights) if weights is not None else (1 / count,) * count,
        eta=eta,
        granularity=granularity,
        towards=towards.id if towards else None,
    )


def _is_finite(value: Any) -> bool:
    # Compared, because math.isfinite fails for a whole number that no float holds.
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _check(ok: bool, field: str, value: Any, remedy: str) -> None:
    if not ok:
        raise RecipeError(f"recipe: {field} = {repr(value)[:200]} is not valid; {remedy}")
