"""The points of a front: recipes over one set of checkpoints, measured on one model in memory, each asked for once.

ask = Ask(prompts=prompts, reward=reward, evaluation=evaluation)
sweep = Sweep(sft=sft, init=init, policies=policies, ask=ask, store=store)
point = sweep.point(recipe)          # merged in place, sampled, scored, stored; at once if it is stored already
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from warp_core.evaluation.evaluate import Subject, Within, measure
from warp_core.evaluation.points import Evaluation, Kind, Point, Sample, point_from_samples
from warp_core.policy.model import DTYPES, Policy, load_policy, pick_device, pointed_at
from warp_core.rewards import RewardSum
from warp_core.weights import (
    Checkpoint,
    Geometry,
    Recipe,
    ResidentMerge,
    coefficients,
    compute_geometry,
    make_recipe,
    require_mixable,
)
from warp_core.workspace.paths import cache_root
from warp_core.workspace.results import Results

__all__ = ["Ask", "Sweep"]

Progress = Callable[[int, int], None]
Between = Callable[[], None]


@dataclass(frozen=True, kw_only=True)
class Ask:
    """What every point of a sweep has in common."""

    prompts: tuple[str, ...]
    reward: RewardSum
    evaluation: Evaluation
    batch_size: int = 32


class Sweep:
    """Measures recipes over one init and its policies.

    The model is loaded when the first point has to be measured: points that are stored cost nothing.

    Args:
        sft: the SFT policy, a full checkpoint, which the KL is to.
        init: the init of the policies (the SFT policy in iteration 1).
        policies: theta_1..theta_M.
        ask: what to measure.
        store: where points are kept.
        iteration: of Algorithm 1, where the policies come from a run.
        device: where to compute.
        merge_on: makes what moves a live model from recipe to recipe, where the sources are in memory already.

    Raises:
        MismatchError: the checkpoints do not belong together.
    """

    def __init__(
        self,
        *,
        sft: Checkpoint,
        init: Checkpoint,
        policies: Sequence[Checkpoint],
        ask: Ask,
        store: Results,
        iteration: int | None = None,
        device: torch.device | None = None,
        merge_on: Callable[[torch.nn.Module], ResidentMerge] | None = None,
    ) -> None:
        self.sft, self.init, self.policies = sft, init, tuple(policies)
        self.ask, self.store, self.iteration = ask, store, iteration
        self.device = device or pick_device()
        # The curve that starts at the SFT policy needs it beside a later iteration's init.
        self.towards = None if init.id == sft.id else sft
        require_mixable(init, policies, towards=self.towards)
        self._merge_on = merge_on or self._merge_of_its_own
        self._geometries: dict[str, Geometry] = {}
        self._policy: Policy | None = None
        self._resident: ResidentMerge | None = None

    def sharing(self, *, ask: Ask, store: Results) -> "Sweep":
        """Return a sweep over the same checkpoints that asks something else and uses the model already in memory.

        One of the two may be measuring at a time. Raises ValueError for an `ask` that needs the model in another dtype.
        """
        if ask.evaluation.dtype != self.ask.evaluation.dtype:
            raise ValueError(f"the model in memory computes in {self.ask.evaluation.dtype}: make a sweep of its own")
        other = copy.copy(self)
        other.ask, other.store = ask, store
        return other

    def recipe(
        self,
        *,
        method: str = "slerp",
        eta: float = 1.0,
        weights: Sequence[float] | None = None,
        granularity: str = "layer",
        to_init: bool = False,
    ) -> Recipe:
        """Return a recipe over these checkpoints; LITI goes to the SFT policy, or with `to_init` to the init."""
        settings: dict[str, Any] = {"method": method, "granularity": granularity}
        towards = None if to_init else self.towards
        return make_recipe(self.init, self.policies, weights=weights, eta=eta, towards=towards, **settings)

    def sft_point(self, *, progress: Progress | None = None, between: Between | None = None) -> Point:
        """Return the SFT policy's own point; its KL is 0. `progress` and `between`: see `measure`."""

        def samples() -> list[Sample]:
            return self._measure(self.recipe(eta=0.0), progress, between, anchor=nullcontext)

        return self._stored_or(samples, policy=self.sft.id, kind="sft")

    def policy_point(
        self,
        policy: int,
        *,
        name: str | None = None,
        progress: Progress | None = None,
        between: Between | None = None,
    ) -> Point:
        """Return the point of theta_policy (1-based) alone. `progress` and `between`: see `measure`."""
        alone = [float(m == policy) for m in range(1, len(self.policies) + 1)]
        recipe = self.recipe(method="lerp", weights=alone, to_init=True)
        return self._stored_or(
            lambda: self._measure(recipe, progress, between),
            policy=self.policies[policy - 1].id,
            kind="policy",
            run=name or f"policy-{policy}",
        )

    def point(self, recipe: Recipe, *, progress: Progress | None = None, between: Between | None = None) -> Point:
        """Return the point of a recipe. At eta = 0 towards the SFT policy it is the SFT policy, measured once.

        `progress` and `between`: see `measure`.
        """
        is_sft = recipe.eta == 0 and (recipe.towards or recipe.init) == self.sft.id

        def samples() -> list[Sample]:
            if is_sft:
                key = self.sft_point(progress=progress, between=between).key
                return [Sample.from_json(sample) for sample in self.store.samples(key)]
            return self._measure(recipe, progress, between)

        return self._stored_or(samples, recipe=recipe.to_json(), kind="merge")

    def _stored_or(self, samples: Callable[[], list[Sample]], *, kind: Kind, **about: Any) -> Point:
        """Return the stored point, or aggregate what `samples` gives and store it before it is shown."""
        subject = about["recipe"] if "recipe" in about else about["policy"]
        # A stored point keeps what was measured and takes its place in this front: the same checkpoint may have been
        # measured alone, or as the policy of another front.
        place = {"kind": kind, "iteration": None if kind == "sft" else self.iteration, "run": about.get("run")}
        stored = self._find(subject)
        if stored is not None:
            return Point.from_json(stored | place)
        found = samples()
        point = point_from_samples(found, evaluation=self.ask.evaluation, **about | place)
        self.store.put_point(point.key, point.to_json(), [sample.to_json() for sample in found])
        return point

    def _find(self, subject: str | dict[str, Any]) -> dict[str, Any] | None:
        name = subject if isinstance(subject, str) else Recipe.from_json(subject).id
        return self.store.get_point(f"{name}:{self.ask.evaluation.id}")

    def _measure(
        self, recipe: Recipe, progress: Progress | None, between: Between | None, *, anchor: Within | None = None
    ) -> list[Sample]:
        policy, resident = self._loaded()
        if between:
            between()
        resident.move(coefficients(recipe, self.geometry(recipe.granularity)))
        return measure(
            Subject(policy=policy, anchor=anchor or self._at_sft),
            self.ask.prompts,
            self.ask.reward,
            self.ask.evaluation,
            batch_size=self.ask.batch_size,
            progress=progress,
            between=between,
        )

    def geometry(self, granularity: str = "layer") -> Geometry:
        """Return the geometry of the checkpoints, computed once and cached by content."""
        if granularity not in self._geometries:
            settings: dict[str, Any] = {"granularity": granularity}
            self._geometries[granularity] = compute_geometry(
                self.init, self.policies, cache_dir=cache_root() / "geometry", **settings
            )
        return self._geometries[granularity]

    def _loaded(self) -> tuple[Policy, ResidentMerge]:
        if self._policy is None or self._resident is None:
            self._policy = load_policy(self.sft.path, device=self.device, dtype=DTYPES[self.ask.evaluation.dtype])
            self._resident = self._merge_on(self._policy.model)
        return self._policy, self._resident

    def _merge_of_its_own(self, model: torch.nn.Module) -> ResidentMerge:
        return ResidentMerge(model, init=self.init, policies=self.policies, towards=self.towards)

    @contextmanager
    def _at_sft(self) -> Iterator[None]:
        policy, resident = self._loaded()
        held = resident.parameters_of(self.sft)
        dtype = policy.dtype
        with pointed_at(policy.model, {name: tensor.to(dtype) for name, tensor in held.items()}):
            yield
