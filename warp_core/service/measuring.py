"""Measure places: each is a point of the front, under the id and with the numbers that `warp-core front` gives it."""

import gc
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from warp_core.evaluation.points import Point
from warp_core.evaluation.sweep import Ask, Hooks, Spot, Sweep
from warp_core.service.jobs import Context
from warp_core.service.library import Library
from warp_core.service.places import is_sft, place_label, same_place, single
from warp_core.service.protocol import MeasureRequest, Place
from warp_core.service.slots import SharedSources
from warp_core.training.warp import Sources
from warp_core.weights import Recipe
from warp_core.workspace.results import Results

__all__ = ["Sweeps", "measure_places"]


class Sweeps:
    """Keeps the model of the latest sweep, so that a second measurement of the same checkpoints starts at once.

    Args:
        device: where it lives.
        shared: where the sources of merges are held.
    """

    def __init__(self, device: torch.device, *, shared: SharedSources | None = None) -> None:
        self._device = device
        self._shared = shared or SharedSources()
        self._latest: tuple[tuple[str, ...], Sweep] | None = None

    @property
    def has_model(self) -> bool:
        """Whether a sweep is kept."""
        return self._latest is not None

    def get(self, sources: Sources, *, ask: Ask, store: Results, iteration: int | None) -> Sweep:
        """Return a sweep over these checkpoints; the model of others is let go of first."""
        ids = (sources.sft.id, sources.init.id, *(policy.id for policy in sources.policies))
        key = (*ids, str(sources.sft.path), ask.evaluation.dtype, str(iteration))
        if self._latest is not None and self._latest[0] == key:
            sweep = self._latest[1].sharing(ask=ask, store=store)
        else:
            self._latest = None
            gc.collect()
            sweep = Sweep(
                sft=sources.sft,
                init=sources.init,
                policies=sources.policies,
                ask=ask,
                store=store,
                iteration=iteration,
                device=self._device,
                merge_on=partial(self._shared.merge_on, sources=sources),
            )
        self._latest = key, sweep
        return sweep


@dataclass(frozen=True, kw_only=True, eq=False)
class _Task:
    """A place to measure: the SFT policy (neither is given), a policy (1-based) or a merge."""

    place: Place
    iteration: int
    sources: Sources
    policy: int | None = None
    recipe: Recipe | None = None

    @property
    def subject(self) -> str:
        """What the store calls it."""
        if self.recipe is not None:
            return self.recipe.id
        return self.sources.policies[self.policy - 1].id if self.policy else self.sources.sft.id

    @property
    def spot(self) -> Spot:
        """What a sweep calls it."""
        return Spot(recipe=self.recipe, policy=self.policy)


@dataclass(kw_only=True, eq=False)
class _Report:
    """Says how far all points of a job are, from how far those are that are measured together."""

    context: Context
    completions: int
    """Of each point."""
    points: int
    measured: int = 0
    label: str = ""

    def begin(self, labels: Sequence[str]) -> None:
        """Note which points are measured next."""
        first, last = self.measured + 1, self.measured + len(labels)
        which = f"point {first}" if first == last else f"points {first} to {last}"
        name = labels[0] if len(labels) == 1 else f"{labels[0]} to {labels[-1]}"
        self.label = f"{name} ({which} of {self.points})" if self.points > 1 else name
        self.context.say(f"{self.label}: loading and merging")

    def say(self, done: int, total: int) -> None:
        """Note that `done` completions of the present points are there."""
        before, everything = self.measured * self.completions, self.points * self.completions
        self.context.progress(before + done, everything, f"{self.label}: {done} of {total} completions")

    def end(self, number: int, point: Point) -> None:
        """Note that a point is measured."""
        self.measured += 1


def measure_places(
    request: MeasureRequest, context: Context, *, library: Library, sweeps: Sweeps
) -> dict[str, list[str]]:
    """Return the key of every place's point; each is in the store as soon as it is measured.

    Raises:
        DivergedError: a KL is not finite.
        RecipeError: the weights of a place do not fit; otherwise as `Library.ask`.
    """
    context.say("opening the checkpoints")
    tasks = _tasks_of(library, request)
    asks = {iteration: _ask_of(library, request, iteration) for iteration in {task.iteration for task in tasks}}
    keys = [f"{task.subject}:{asks[task.iteration].evaluation.id}" for task in tasks]
    has_run = library.run_of(request.selection) is not None
    with closing(Results(library.store_path(request.selection))) as store:
        missing = {key: task for key, task in zip(keys, tasks, strict=True) if store.get_point(key) is None}
        first = next(iter(asks.values()))
        per_point = len(first.prompts) * first.evaluation.samples_per_prompt
        report = _Report(context=context, completions=per_point, points=len(missing))
        # One iteration after the other: each has checkpoints of its own in memory.
        for iteration in sorted({task.iteration for task in missing.values()}):
            context.checkpoint()
            group = [task for task in missing.values() if task.iteration == iteration]
            _measure_group(
                group,
                report,
                sweeps.get(
                    group[0].sources,
                    ask=asks[iteration],
                    store=store,
                    iteration=iteration if has_run else None,
                ),
            )
    return {"keys": keys}


def _measure_group(tasks: Sequence[_Task], report: _Report, sweep: Sweep) -> None:
    """Measure and store the points of some tasks of one iteration."""
    hooks = Hooks(
        started=lambda numbers: report.begin([place_label(tasks[number].place) for number in numbers]),
        progress=report.say,
        found=report.end,
        between=report.context.checkpoint,
    )
    sweep.points([task.spot for task in tasks], hooks=hooks)


def _tasks_of(library: Library, request: MeasureRequest) -> list[_Task]:
    # The SFT policy belongs to every iteration: it is measured with the checkpoints that are needed anyway.
    home = next((place.iteration for place in request.places if not is_sft(place)), 1)
    return [_task_of(library, request, place, home if is_sft(place) else place.iteration) for place in request.places]


def _task_of(library: Library, request: MeasureRequest, place: Place, iteration: int) -> _Task:
    sources = library.sources(request.selection, iteration)
    about: dict[str, Any] = {"place": place, "iteration": iteration, "sources": sources}
    if is_sft(place):
        return _Task(**about)
    count = len(sources.policies)
    for policy in range(1, count + 1):
        if same_place(place, single(policy, count, iteration=iteration)):
            return _Task(**about, policy=policy)
    return _Task(**about, recipe=library.recipe(request.selection, place))


def _ask_of(library: Library, request: MeasureRequest, iteration: int) -> Ask:
    return library.ask(
        request.selection,
        iteration=iteration,
        num_prompts=request.num_prompts,
        samples_per_prompt=request.samples_per_prompt,
        reward=request.reward,
    )
