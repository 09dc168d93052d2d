"""The models in memory: one SFT policy at a time, and what is sampled and measured around it.

    adapters             one base that computes every merge side by side (`bank`)
    full checkpoints     live models whose weights move (`slots`)
    measuring            a model of its own (`measuring`), so that a preview in its pause changes no number

Another SFT policy frees the one before; a measurement that is paused meanwhile keeps its own model until it ends.
"""

import gc
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from warp_core.policy.bank import AdapterBank
from warp_core.policy.model import DTYPES, load_policy, pick_device
from warp_core.service.jobs import Context
from warp_core.service.library import Library
from warp_core.service.measuring import Sweeps, measure_places
from warp_core.service.places import is_sft
from warp_core.service.preview import Board, Sampler, warm_up
from warp_core.service.protocol import SFT, MeasureRequest, Place, PrepareRequest, PreviewRequest, Selection
from warp_core.service.seats import SFT_KEY, Blend, Seat
from warp_core.service.slots import SharedSources, Slots
from warp_core.training.warp import Sources
from warp_core.weights import Checkpoint, Geometry, Recipe, coefficients, compute_geometry
from warp_core.workspace.paths import cache_root
from warp_core.workspace.sources import resolve_model

__all__ = ["Workbench"]

_GEOMETRIES = 32


@dataclass(kw_only=True, eq=False)
class _Held:
    """Everything in memory around one SFT policy, and for which selections."""

    key: tuple[str, ...]
    shared: SharedSources
    sweeps: Sweeps
    bank: AdapterBank | None = None
    slots: Slots | None = None
    bank_names: dict[str, None] = field(default_factory=dict)
    slots_name: str = ""
    sweeps_name: str = ""


class Workbench:
    """Does the jobs that need models. One job at a time, but for those that wait in a checkpoint.

    Args:
        library: finds the checkpoints.
        device: where to compute; None takes the first GPU, or the CPU.
    """

    def __init__(self, library: Library, *, device: torch.device | None = None) -> None:
        self._library = library
        self._device = device or pick_device()
        self._lock = threading.Lock()
        self._held: _Held | None = None
        self._geometries: dict[tuple[object, ...], Geometry] = {}

    def preview(self, request: PreviewRequest, context: Context) -> dict[str, Any] | None:
        """Sample the panes of a request; what is drawn is shown in the job's token buffers.

        Raises:
            RecipeError: the weights of a place do not fit; otherwise as `Library.sources` and `Sampler.run`.
        """
        context.mark("started")
        board = Board(request, context)
        blends = self._blends(request.selection, [pane.place for pane in request.panes], context)
        context.checkpoint()
        seats, together = self._seats(request.selection, blends, context)
        terms = request.reward or self._library.measuring(request.selection).reward.terms
        sampler = Sampler(request=request, context=context, board=board, blends=blends, seats=seats, together=together)
        sampler.run(blends[0].sources.sft, partial(self._library.reward, terms))
        return None

    def measure(self, request: MeasureRequest, context: Context) -> dict[str, Any]:
        """Measure places: {"keys": [...]} of their points, each stored as soon as it is measured.

        Raises: see `measure_places`.
        """
        sources = self._open(request.selection, request.places[0].iteration, context)
        held = self._take(request.selection, sources.sft)
        held.sweeps_name = _name_of(request.selection)
        return measure_places(request, context, library=self._library, sweeps=held.sweeps)

    def prepare(self, request: PrepareRequest, context: Context) -> dict[str, Any] | None:
        """Fetch, open and load what previews of a selection need, and draw a token with it.

        Raises: see `Library.sources`.
        """
        selection = request.selection
        run, config = self._library.run_of(selection), self._library.measuring(selection)
        finished = run.finished_iterations(config.warp.policies) if run else []
        places = [Place(iteration=iteration) for iteration in finished or [1]]
        blends = self._blends(selection, [SFT, *places], context)
        context.checkpoint()
        seats, together = self._seats(selection, [blends[0], blends[-1]], context, also=blends)
        for seat in seats if together else seats[-1:]:
            context.checkpoint()
            context.say("loading the models")
            seat.begin()
            warm_up(seat.policy, seat)
        context.checkpoint()
        context.say("loading the reward")
        self._library.reward(config.reward.terms)
        context.say("ready")
        return None

    def loaded(self) -> tuple[str, ...]:
        """What is in memory, in words."""
        held = self._held
        if held is None:
            return ()
        found = []
        if held.bank is not None:
            names = ", ".join(held.bank_names)
            found.append(f"{names}: {_counted(len(held.bank.adapters), 'adapter')} over one base")
        if held.slots is not None:
            found.append(f"{held.slots_name}: {_counted(held.slots.num_live, 'live model')}")
        if held.sweeps.has_model:
            found.append(f"{held.sweeps_name}: a model for measuring")
        return tuple(found)

    def _blends(self, selection: Selection, places: Sequence[Place], context: Context) -> list[Blend]:
        """The models of some places, from the checkpoints alone."""
        # The SFT policy belongs to every iteration: it is taken from the checkpoints that are needed anyway.
        home = next((place.iteration for place in places if not is_sft(place)), 1)
        blends = []
        for place in places:
            if is_sft(place):
                blends.append(Blend(key=SFT_KEY, sources=self._open(selection, home, context)))
                continue
            sources = self._open(selection, place.iteration, context)
            recipe = self._library.recipe(selection, place)
            merge = coefficients(recipe, self._geometry(sources, recipe, context))
            blends.append(Blend(key=recipe.id, sources=sources, coefficients=merge))
        return blends

    def _open(self, selection: Selection, iteration: int, context: Context) -> Sources:
        """Open checkpoints, with the base model fetched to this machine; says so where that takes a while."""
        known = self._library.opened(selection, iteration)
        if known is not None:
            return known
        config = self._library.config(selection)
        for name in [config.model.name] if config else [selection.base, selection.init]:
            if name is not None:
                context.say(f"looking for {name}")
                resolve_model(name, say=context.say)
        context.say("opening the checkpoints")
        return self._library.sources(selection, iteration)

    def _geometry(self, sources: Sources, recipe: Recipe, context: Context) -> Geometry:
        key = recipe.init, recipe.policies, recipe.granularity
        if key not in self._geometries:

            def progress(done: int, total: int) -> None:
                context.checkpoint()
                context.progress(done, total, "reading the weights for their angles, once")

            found = compute_geometry(
                sources.init,
                sources.policies,
                granularity=recipe.granularity,
                cache_dir=cache_root() / "geometry",
                progress=progress,
            )
            with self._lock:
                self._geometries = dict([*list(self._geometries.items())[1 - _GEOMETRIES :], (key, found)])
        return self._geometries[key]

    def _take(self, selection: Selection, sft: Checkpoint) -> _Held:
        """What is held around an SFT policy; what is held around another is let go of."""
        dtype = self._library.measuring(selection).model.dtype
        key = sft.id, str(sft.path), dtype
        with self._lock:
            if self._held is None or self._held.key != key:
                self._held = None
                gc.collect()
                shared = SharedSources()
                self._held = _Held(key=key, shared=shared, sweeps=Sweeps(self._device, shared=shared))
            return self._held

    def _seats(
        self, selection: Selection, blends: Sequence[Blend], context: Context, *, also: Sequence[Blend] = ()
    ) -> tuple[list[Seat], bool]:
        """Who computes some models, and whether all at once; `also` are models that will be asked for later."""
        sft = blends[0].sources.sft
        held = self._take(selection, sft)
        dtype = DTYPES[held.key[-1]]
        if blends[-1].sources.policies[0].kind == "adapter":
            if held.bank is None:
                context.say("loading the base model")
                held.bank = AdapterBank(load_policy(sft.path, device=self._device, dtype=dtype), sft)
            seat = _seat_in(held.bank, [*blends, *also], len(blends))
            held.bank_names[_name_of(selection)] = None
            if seat is not None:
                held.slots = None
                return [seat], True
        else:
            held.bank = None
            held.bank_names.clear()
        if held.slots is None:
            gc.collect()
            context.say("loading the models")
            held.slots = Slots(sft, device=self._device, dtype=dtype, shared=held.shared)
        held.slots_name = _name_of(selection)
        return held.slots.seats(blends)


def _seat_in(bank: AdapterBank, blends: Sequence[Blend], count: int) -> Seat | None:
    """One seat for the first `count` blends; None where they cannot be computed side by side."""
    bank.load(list({one.id: one for blend in blends for one in blend.checkpoints}.values()))
    mixes = [
        None if blend.coefficients is None else bank.mix(blend.coefficients, blend.checkpoints)
        for blend in blends[:count]
    ]
    if not all(bank.supports(mix) for mix in mixes):
        return None
    table = bank.table(mixes)
    return Seat(
        panes=tuple(range(count)),
        policy=bank.policy,
        begin=lambda: None,
        within=partial(bank.at, table),
        alone=lambda number: partial(bank.at, bank.table([mixes[number]])),
        anchor=partial(bank.at, None),
    )


def _name_of(selection: Selection) -> str:
    return selection.run or f"{selection.init} with {_counted(len(selection.policies), 'policy', 'policies')}"


def _counted(number: int, one: str, many: str | None = None) -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"
