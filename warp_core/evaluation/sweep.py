"""The points of a front: recipes over one set of checkpoints, measured on one model in memory, each asked for once.

ask = Ask(prompts=prompts, reward=reward, evaluation=evaluation)
sweep = Sweep(sft=sft, init=init, policies=policies, ask=ask, store=store)
point = sweep.point(recipe)                             # sampled, scored, stored; at once if it is stored already
points = sweep.points([Spot(recipe=one) for one in recipes])    # many; merges of adapters share their batches

Full checkpoints are merged in place, one point after the other. Merges of adapters are rows of one batch over one base:
no weight moves, and several points are measured, and stored, together.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from warp_core.errors import MismatchError
from warp_core.evaluation.evaluate import Subject, measure_together
from warp_core.evaluation.points import Evaluation, Point, Sample, point_from_samples
from warp_core.policy.bank import AdapterBank, Mix, Table
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

__all__ = ["Ask", "Hooks", "Spot", "Sweep"]

# So many points share a batch and are stored together: what a measurement that is stopped can lose.
_TOGETHER = 8

Progress = Callable[[int, int], None]
Between = Callable[[], None]


@dataclass(frozen=True, kw_only=True)
class Ask:
    """What every point of a sweep has in common."""

    prompts: tuple[str, ...]
    reward: RewardSum
    evaluation: Evaluation
    batch_size: int = 32


@dataclass(frozen=True, kw_only=True)
class Spot:
    """What a point is of: a merge, or a policy alone, or the SFT policy where neither is given.

    Attributes:
        recipe: of the merge.
        policy: number of the policy, from 1.
        name: of the policy in its point; None for `policy-1` and so on.
    """

    recipe: Recipe | None = None
    policy: int | None = None
    name: str | None = None


@dataclass(frozen=True, kw_only=True)
class Hooks:
    """Who hears of a sweep on its way.

    Attributes:
        started: called with the numbers of the spots that are measured next, together.
        progress: called with (completions done, completions in all) of those.
        found: called with a spot's number and its point, which is in the store by then.
        between: called before each token and between parts of the scoring; see `measure_together`.
    """

    started: Callable[[Sequence[int]], None] | None = None
    progress: Progress | None = None
    found: Callable[[int, Point], None] | None = None
    between: Between | None = None


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
        self._bank: AdapterBank | None = None
        self._can_bank = any(one.kind == "adapter" for one in (init, *self.policies))

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
        """Return the SFT policy's own point; its KL is 0. `progress` and `between`: see `Hooks`."""
        return self.points([Spot()], hooks=Hooks(progress=progress, between=between))[0]

    def policy_point(
        self,
        policy: int,
        *,
        name: str | None = None,
        progress: Progress | None = None,
        between: Between | None = None,
    ) -> Point:
        """Return the point of theta_policy (1-based) alone. `progress` and `between`: see `Hooks`."""
        return self.points([Spot(policy=policy, name=name)], hooks=Hooks(progress=progress, between=between))[0]

    def point(self, recipe: Recipe, *, progress: Progress | None = None, between: Between | None = None) -> Point:
        """Return the point of a recipe. At eta = 0 towards the SFT policy it is the SFT policy, measured once.

        `progress` and `between`: see `Hooks`.
        """
        return self.points([Spot(recipe=recipe)], hooks=Hooks(progress=progress, between=between))[0]

    def points(self, spots: Sequence[Spot], *, hooks: Hooks | None = None) -> list[Point]:
        """Return the points of some spots, in order; what is stored costs nothing, and nothing is measured twice.

        Raises:
            DivergedError: a KL is not finite.
            RewardError: the reward misbehaved.
        """
        hooks = hooks or Hooks()
        points: dict[int, Point] = {}
        waiting: dict[str, list[int]] = {}

        def note(number: int, point: Point) -> None:
            points[number] = point
            if hooks.found:
                hooks.found(number, point)

        for number, spot in enumerate(spots):
            stored = self._stored(spot)
            if stored is not None:
                note(number, stored)
            else:
                waiting.setdefault(self._measured_as(spot), []).append(number)
        for group in self._groups([(spots[numbers[0]], numbers) for numbers in waiting.values()]):
            if hooks.started:
                hooks.started([numbers[0] for _, numbers in group])
            try:
                measured = self._measure([spot for spot, _ in group], hooks)
            except (MemoryError, RuntimeError):
                # Perhaps while weights were put back: what is in memory is no longer known to be any of the models.
                self._policy = self._resident = self._bank = None
                raise
            for (_, numbers), samples in zip(group, measured, strict=True):
                for number in numbers:
                    note(number, self._put(spots[number], samples))
        return [points[number] for number in range(len(spots))]

    def _is_sft(self, spot: Spot) -> bool:
        """Whether a spot is the SFT policy, which a merge at eta = 0 towards it is."""
        recipe = spot.recipe
        if recipe is None:
            return spot.policy is None
        return recipe.eta == 0 and (recipe.towards or recipe.init) == self.sft.id

    def _subject(self, spot: Spot) -> str:
        """What the store calls a spot."""
        if spot.recipe is not None:
            return spot.recipe.id
        return self.sft.id if spot.policy is None else self.policies[spot.policy - 1].id

    def _measured_as(self, spot: Spot) -> str:
        return self.sft.id if self._is_sft(spot) else self._subject(spot)

    def _key(self, subject: str) -> str:
        return f"{subject}:{self.ask.evaluation.id}"

    def _place(self, spot: Spot) -> dict[str, Any]:
        """How a spot is filed in this front: the same checkpoint may have been measured alone, or for another front."""
        if spot.recipe is not None:
            return {"kind": "merge", "iteration": self.iteration, "run": None}
        if spot.policy is not None:
            return {"kind": "policy", "iteration": self.iteration, "run": spot.name or f"policy-{spot.policy}"}
        return {"kind": "sft", "iteration": None, "run": None}

    def _stored(self, spot: Spot) -> Point | None:
        """The stored point, in its place in this front; that of the SFT policy serves every merge that is it."""
        stored = self.store.get_point(self._key(self._subject(spot)))
        if stored is not None:
            return Point.from_json(stored | self._place(spot))
        key = self._key(self.sft.id)
        if self._is_sft(spot) and spot.recipe is not None and self.store.get_point(key) is not None:
            return self._put(spot, [Sample.from_json(sample) for sample in self.store.samples(key)])
        return None

    def _put(self, spot: Spot, samples: list[Sample]) -> Point:
        """Aggregate samples to a point and store it before it is shown."""
        if spot.recipe is not None and self._is_sft(spot) and self.store.get_point(self._key(self.sft.id)) is None:
            self._put(Spot(), samples)
        about = {"policy": self._subject(spot)} if spot.recipe is None else {"recipe": spot.recipe.to_json()}
        settings: dict[str, Any] = about | self._place(spot)
        point = point_from_samples(samples, evaluation=self.ask.evaluation, **settings)
        self.store.put_point(point.key, point.to_json(), [sample.to_json() for sample in samples])
        return point

    def _recipe_of(self, spot: Spot) -> Recipe:
        """The merge that a spot is."""
        if spot.recipe is not None:
            return spot.recipe
        if spot.policy is None:
            return self.recipe(eta=0.0)
        alone = [float(m == spot.policy) for m in range(1, len(self.policies) + 1)]
        return self.recipe(method="lerp", weights=alone, to_init=True)

    def _groups(self, waiting: Sequence[tuple[Spot, list[int]]]) -> Iterator[Sequence[tuple[Spot, list[int]]]]:
        """Spots that are measured together: merges of adapters in groups of like size, others one by one."""
        # A batch holds a completion of each at least.
        most = max(1, min(_TOGETHER, self.ask.batch_size)) if self._can_bank else 1
        count = -(-len(waiting) // most)
        for number in range(count):
            yield waiting[number * len(waiting) // count : (number + 1) * len(waiting) // count]

    def _measure(self, spots: Sequence[Spot], hooks: Hooks) -> list[list[Sample]]:
        """The samples of each of some spots."""
        if hooks.between:
            hooks.between()
        subject = self._side_by_side(spots) if self._can_bank else None
        if subject is not None:
            return self._sampled(subject, hooks.progress, hooks.between)
        found: list[list[Sample]] = []

        def progress(done: int, total: int) -> None:
            if hooks.progress:
                hooks.progress(len(found) * total + done, len(spots) * total)

        for spot in spots:
            found.extend(self._sampled(self._in_place(spot, hooks.between), progress, hooks.between))
        return found

    def _sampled(self, subject: Subject, progress: Progress | None, between: Between | None) -> list[list[Sample]]:
        ask = self.ask
        return measure_together(
            subject,
            ask.prompts,
            ask.reward,
            ask.evaluation,
            batch_size=ask.batch_size,
            progress=progress,
            between=between,
        )

    def _in_place(self, spot: Spot, between: Between | None) -> Subject:
        """The live model, moved to a spot."""
        policy, resident = self._loaded()
        if between:
            between()
        recipe = self._recipe_of(spot)
        resident.move(coefficients(recipe, self.geometry(recipe.granularity)))
        return Subject(policy=policy, anchor=nullcontext if self._is_sft(spot) else self._at_sft)

    def _side_by_side(self, spots: Sequence[Spot]) -> Subject | None:
        """The spots as rows of a batch over the one base; None where that cannot compute them."""
        bank = self._loaded_bank()
        sources = (self.init, *self.policies, *((self.towards,) if self.towards else ()))
        bank.load(sources)
        mixes = [None if self._is_sft(spot) else self._mix(bank, spot, sources) for spot in spots]
        if not all(bank.supports(mix) for mix in mixes):
            return None
        table = bank.table(mixes)
        if not _computes(bank, table):
            self._can_bank, self._bank = False, None
            return None
        return Subject(
            policy=bank.policy,
            measured=partial(bank.at, table),
            anchor=partial(bank.at, None),
            models=len(spots),
            sft_models=frozenset(number for number, mix in enumerate(mixes) if mix is None),
        )

    def _mix(self, bank: AdapterBank, spot: Spot, sources: Sequence[Checkpoint]) -> Mix:
        recipe = self._recipe_of(spot)
        return bank.mix(coefficients(recipe, self.geometry(recipe.granularity)), sources)

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

    def _loaded_bank(self) -> AdapterBank:
        if self._bank is None:
            policy = load_policy(self.sft.path, device=self.device, dtype=DTYPES[self.ask.evaluation.dtype])
            self._bank = AdapterBank(policy, self.sft)
        return self._bank

    def _merge_of_its_own(self, model: torch.nn.Module) -> ResidentMerge:
        return ResidentMerge(model, init=self.init, policies=self.policies, towards=self.towards)

    @contextmanager
    def _at_sft(self) -> Iterator[None]:
        policy, resident = self._loaded()
        held = resident.parameters_of(self.sft)
        dtype = policy.dtype
        with pointed_at(policy.model, {name: tensor.to(dtype) for name, tensor in held.items()}):
            yield


@torch.no_grad()
def _computes(bank: AdapterBank, table: Table | None) -> bool:
    """Whether the model keeps the rows of a batch in order in all adapted layers; a router of experts does not."""
    rows = 1 if table is None else table.num_mixes
    ids_BT = torch.arange(4, device=bank.policy.device).expand(rows, 4)
    try:
        with bank.at(table):
            bank.policy.model(input_ids=ids_BT, use_cache=False)
    except MismatchError:
        return False
    return True
