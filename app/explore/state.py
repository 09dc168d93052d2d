"""What one run of the explore page works with, fetched once, and what it keeps in the session between runs.

A `Desk` is a snapshot. What does not change for a selection (configuration, geometry, prompts) and what hangs on the
points alone (the prediction) is kept in the session, so that a rerun asks the engine for little.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, TypeVar, cast

import streamlit as st

from app.engine import engine, session_id
from app.view import View
from warp_core.service.documents import FrontDocument, GeometryDocument, Prediction, RunState, RunSummary
from warp_core.service.interface import Engine
from warp_core.service.protocol import GeometryRequest, Job, PrepareRequest, Selection

__all__ = ["Desk", "kept", "open_desk", "remember", "selection_key"]

T = TypeVar("T")
_KEPT = "explore_kept"
_MAX_KEPT = 60


@dataclass(frozen=True, kw_only=True)
class Desk:
    """A selection that can be explored, as the engine knows it right now."""

    view: View
    summary: RunSummary | None
    """None where init and policies were given."""
    config: dict[str, Any]
    """Of the run; empty without one."""
    num_policies: int
    iterations: int
    """That have policies to merge."""
    front: FrontDocument
    geometry: GeometryDocument | None
    prediction: Prediction | None
    jobs: tuple[Job, ...]
    """Of this browser session, newest first."""

    @property
    def selection(self) -> Selection:
        """The checkpoints."""
        return self.view.selection

    @property
    def policy_names(self) -> list[str]:
        """What the policies are called: their folder where they come from disk."""
        if self.view.run is not None:
            return [f"policy {m}" for m in range(1, self.num_policies + 1)]
        names = [PurePath(policy).name or policy for policy in self.view.policies]
        return names if len(set(names)) == len(names) else list(self.view.policies)

    @property
    def can_merge(self) -> bool:
        """Whether there are policies yet: a run in its first iteration has none."""
        return self.iterations > 0

    @property
    def is_training(self) -> bool:
        """Whether points may appear because the run is running."""
        return self.summary is not None and self.summary.state is RunState.RUNNING

    def active(self, *kinds: str) -> list[Job]:
        """Jobs of these kinds that wait or run, newest first."""
        return [job for job in self.jobs if job.kind in kinds and not job.state.is_final]


def selection_key(selection: Selection) -> str:
    """Return a text that is the same for the same checkpoints."""
    return selection.model_dump_json(exclude_none=True, exclude_defaults=True)


def remember(key: str, value: T) -> T:
    """Keep a value in the session under a key; the oldest ones go."""
    store = cast(dict[str, Any], st.session_state.setdefault(_KEPT, {}))
    store.pop(key, None)
    store[key] = value
    while len(store) > _MAX_KEPT:
        store.pop(next(iter(store)))
    return value


def kept(key: str, make: Callable[[], T | None]) -> T | None:
    """Return what the session keeps under a key, or make it; None is not kept."""
    store = st.session_state.get(_KEPT, {})
    if key in store:
        return cast(T, store[key])
    value = make()
    return None if value is None else remember(key, value)


def open_desk(view: View, runs: Sequence[RunSummary]) -> Desk:
    """Fetch what a view needs; its place and pins are fitted to the selection.

    The first time a selection is seen, its models are asked for (so that the first preview is quick), and its geometry
    where the engine does not know it.
    """
    asked = engine()
    summary = next((run for run in runs if run.name == view.run), None)
    config = {} if view.run is None else kept(f"config {view.run}", lambda: asked.run(cast(str, view.run)).config) or {}
    num_policies = len(view.policies) if summary is None else summary.policies
    iterations = 1 if summary is None else summary.finished_iterations
    view = view.fitted(num_policies=num_policies, iterations=max(1, iterations))
    front = asked.front(view.selection)
    geometry = _geometry(asked, view, front) if iterations else None
    desk = Desk(
        view=view,
        summary=summary,
        config=config,
        num_policies=num_policies,
        iterations=iterations,
        front=front,
        geometry=geometry,
        prediction=_prediction(asked, view, front) if geometry is not None else None,
        jobs=tuple(asked.jobs(session_id())),
    )
    if desk.can_merge:
        _warm_up(asked, desk)
    return desk


def _geometry(asked: Engine, view: View, front: FrontDocument) -> GeometryDocument | None:
    key = f"geometry {view.iteration} {selection_key(view.selection)}"
    found = kept(key, lambda: asked.geometry(view.selection, view.iteration))
    if found is None and f"asked {key}" not in st.session_state:
        st.session_state[f"asked {key}"] = True
        asked.submit(GeometryRequest(session=session_id(), selection=view.selection, iteration=view.iteration))
    return found


def _prediction(asked: Engine, view: View, front: FrontDocument) -> Prediction | None:
    key = f"prediction {view.iteration} {front.revision} {selection_key(view.selection)}"
    return kept(key, lambda: asked.prediction(view.selection, view.iteration))


def _warm_up(asked: Engine, desk: Desk) -> None:
    key = f"prepared {selection_key(desk.selection)}"
    if key not in st.session_state:
        st.session_state[key] = True
        asked.submit(PrepareRequest(session=session_id(), selection=desk.selection))
