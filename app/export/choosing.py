"""Which model to export: the position in Explore, a pin, or one that is set here."""

from dataclasses import dataclass
from typing import Any, cast

import streamlit as st

from app.components.panes import card
from app.engine import engine, session_id
from app.explore.differences import point_at
from app.explore.formula import formula
from app.export.recipes import place_problem
from app.jobs import find_job, follow
from app.ui import markdown_escaped, measured
from app.view import View
from warp_core.errors import WarpError
from warp_core.service.documents import CheckReport, FrontPoint
from warp_core.service.places import METHOD_NAMES, full_weights, place_label
from warp_core.service.protocol import CheckRequest, JobState, Method, Place

__all__ = ["Models", "choose_place", "look_at_models"]

HERE, OWN = "position", "own"
_CHECKS = "export-checks"


@dataclass(frozen=True, kw_only=True)
class Models:
    """The checkpoints that an export merges."""

    num_policies: int
    iterations: int
    """That are finished."""
    kinds: set[str]
    """Of the policies: full, adapter."""
    config: dict[str, Any] | None = None
    """Of the run."""
    path: str | None = None
    """Of the run."""


def look_at_models(view: View) -> Models | None:
    """Return what is known of the selection; None while it is being looked at, or if it cannot be merged."""
    if view.run is not None:
        detail = engine().run(view.run)
        kind = "adapter" if detail.config["adapter"]["kind"] == "lora" else "full"
        return Models(
            num_policies=detail.summary.policies,
            iterations=detail.summary.finished_iterations,
            kinds={kind},
            config=detail.config,
            path=detail.path,
        )
    report = _checked(view)
    if report is None:
        return None
    for problem in report.problems:
        st.text(problem)
    kinds = {model.kind for model in report.models if model.role == "policy"}
    return Models(num_policies=len(view.policies), iterations=1, kinds={*kinds}) if report.ok else None


def _checked(view: View) -> CheckReport | None:
    """Have checkpoints that are of no run looked at, once a session."""
    jobs: dict[str, str] = st.session_state.setdefault(_CHECKS, {})
    key = view.selection.model_dump_json()
    job = find_job(jobs.get(key))
    if job is None:
        job = engine().submit(CheckRequest(session=session_id(), selection=view.selection))
        jobs[key] = job.id
    if job.state is JobState.DONE and job.result is not None:
        return CheckReport.model_validate(job.result)
    follow(job, key="export-check")
    return None


def choose_place(view: View, models: Models) -> Place | None:
    """Draw the choice; return the place, None where what is set makes no sense."""
    options = [HERE, *map(str, range(len(view.pins))), OWN]
    if st.session_state.get("export-source") not in options:
        st.session_state["export-source"] = HERE
    chosen = st.selectbox("Model", options, key="export-source", format_func=lambda one: _source_name(view, one))
    known = {HERE: view.place} | {str(index): pin.place for index, pin in enumerate(view.pins)}
    place = known[chosen] if chosen in known else _own(view, models)
    problem = place_problem(place, models.num_policies)
    if problem is None and place.iteration > models.iterations:
        problem = f"Iteration {place.iteration} is not finished yet: choose an earlier one."
    if problem is not None:
        st.markdown(f":red[:small[{markdown_escaped(problem)}]]")
        return None
    _describe(view, place, models)
    return place


def _source_name(view: View, option: str) -> str:
    if option == HERE:
        return f"The position in Explore: {place_label(view.place)}"
    if option == OWN:
        return "Set it here"
    pin = view.pins[int(option)]
    label = f" ({place_label(pin.place)})" if pin.label else ""
    return f"Pin {int(option) + 1}: {pin.name}{label}"


def _own(view: View, models: Models) -> Place:
    """Fields for a place of one's own; they begin with the position in Explore."""
    start = view.place
    first, second, third = st.columns(3)
    iteration = start.iteration
    if models.iterations > 1:
        iteration = int(first.number_input("Iteration", 1, models.iterations, min(start.iteration, models.iterations)))
    methods = list(METHOD_NAMES)
    method = second.selectbox("Method", methods, methods.index(start.method), format_func=lambda m: METHOD_NAMES[m])
    eta = third.number_input("LITI eta", 0.0, 2.0, start.eta, 0.05, format="%g", key="export-eta")
    weights: tuple[float, ...] = ()
    if models.num_policies > 1:
        begin = full_weights(start, models.num_policies)
        columns = st.columns(min(models.num_policies, 4))
        weights = tuple(
            columns[m % len(columns)].number_input(
                f"Share of policy {m + 1}", 0.0, 1.0, round(begin[m], 4), 0.05, format="%g", key=f"export-weight-{m}"
            )
            for m in range(models.num_policies)
        )
        # Equal shares are written as none, so that thirds add up to 1.
        weights = () if len({round(weight, 4) for weight in weights}) == 1 else weights
    towards = start.towards
    if iteration > 1:
        ends = {"sft": "the SFT policy", "init": "the iteration's init"}
        towards = st.selectbox("From", list(ends), list(ends).index(towards), format_func=lambda end: ends[end])
    return Place(iteration=iteration, method=cast(Method, method), weights=weights, eta=eta, towards=towards)


def _describe(view: View, place: Place, models: Models) -> None:
    """Say what the model is, and what it was measured to be worth."""
    point = _point(view, place)
    note = "Not measured: Measure on the Explore page says what it is worth."
    if point is not None:
        reward, kl = measured(point.metrics.get("reward")), measured(point.metrics.get("kl"))
        note = f"reward {reward}, KL {kl} nats per completion"
    recipe = {
        "title": place_label(place),
        "badge": "measured" if point else "not measured",
        "is_measured": point is not None,
        "formula": formula(place, models.num_policies),
        "shares": [],
        "note": note,
    }
    with st.container(border=True):
        card({"recipe": recipe}, key="export-recipe")


def _point(view: View, place: Place) -> FrontPoint | None:
    try:
        return point_at(engine().front(view.selection), place)
    except WarpError:
        return None
