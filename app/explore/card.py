"""The position card: recipe, metrics measured or predicted, differences to the reference, and what to do next."""

from typing import Any

import streamlit as st

from app import ui
from app.components.panes import card
from app.engine import engine
from app.explore import actions
from app.explore.differences import (
    Difference,
    default_evaluation,
    difference,
    metric_label,
    paired,
    point_at,
    verdict,
)
from app.explore.formula import formula, shares, shares_note
from app.explore.mixing import mix, predict
from app.explore.state import Desk, kept, selection_key
from app.links import open_page
from app.view import MAX_PINS
from warp_core.errors import GeometryError, RecipeError, WarpError
from warp_core.service.documents import FrontPoint, Metric
from warp_core.service.places import place_label, same_place
from warp_core.service.protocol import SFT, JobState, Place

__all__ = ["PALETTE", "draw_card", "metrics_at", "metrics_data", "recipe_data", "reference_of"]

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#AA4499", "#56B4E9", "#E69F00")
_SLOT = 48
_UNITS = {"kl": "nats per completion", "length": "tokens", "diversity": "0 to 1"}
_ORDER = ("reward", "kl", "length", "diversity")


def reference_of(desk: Desk) -> tuple[Place, str]:
    """Return what differences are to: the place and its name."""
    view = desk.view
    if view.reference is not None and view.reference < len(view.pins):
        return view.pins[view.reference].place, view.pins[view.reference].name
    return SFT, "SFT policy"


def recipe_data(desk: Desk) -> dict[str, Any]:
    """Return what the card says of the model: name, formula, how much of each policy."""
    place = desk.view.place
    coef_LK, why = _coefficients(desk, place)
    found = [] if coef_LK is None or desk.geometry is None else shares(place, desk.geometry, coef_LK)
    is_measured = point_at(desk.front, place) is not None
    return {
        "title": place_label(place, policy_names=desk.policy_names),
        "is_measured": is_measured,
        "badge": "measured" if is_measured else "predicted" if metrics_at(desk, place) else "not measured",
        "formula": formula(place, desk.num_policies),
        "shares": [{"name": share.name, "text": ui.number(share.mean)} for share in found],
        "note": why or shares_note(found, len(desk.geometry.layers) if desk.geometry else 0),
    }


def metrics_data(desk: Desk) -> dict[str, Any]:
    """Return what the card says of its worth: metrics, and their differences to the reference."""
    place, (reference, name) = desk.view.place, reference_of(desk)
    point = point_at(desk.front, place)
    rows = _rows(desk, place, reference)
    return {
        "title": place_label(place, policy_names=desk.policy_names),
        "badge": "measured" if point else "predicted",
        "reference": name,
        "rows": rows,
        "note": _note(desk, point, bool(rows)),
    }


def draw_card(desk: Desk) -> None:
    """Draw the card with its buttons, and the measurements that are on their way."""
    with st.container(border=True, key="position"):
        left, right = st.columns([6, 7], gap="large")
        with left:
            card({"recipe": recipe_data(desk)}, key="position-recipe")
            _buttons(desk)
        with right:
            card({"metrics": metrics_data(desk)}, key="position-metrics")
            _measuring(desk)
        _per_layer(desk)


def _buttons(desk: Desk) -> None:
    view, busy = desk.view, desk.active("measure")
    default = default_evaluation(desk.front)
    is_measured = point_at(desk.front, view.place, evaluation=default) is not None
    to_sweep = [one for one in actions.curve(view.place) if point_at(desk.front, one, evaluation=default) is None]
    pinned = [index for index, pin in enumerate(view.pins) if same_place(pin.place, view.place)]
    is_full = len(view.pins) >= MAX_PINS
    etas = ", ".join(ui.number(one.eta, digits=1) for one in to_sweep)
    with st.container(horizontal=True, vertical_alignment="center", key="position-buttons"):
        st.button(
            "Measure",
            key="measure",
            type="primary",
            disabled=is_measured or bool(busy),
            help="Measured already, in the same way." if is_measured else f"Samples {_effort(desk)} and scores them.",
            on_click=actions.rerun_page(actions.measure),
            args=([view.place],),
        )
        st.button(
            "Sweep this curve",
            key="sweep",
            disabled=not to_sweep or bool(busy),
            help=f"Measures eta {etas} with these weights." if etas else "All points of this curve are measured.",
            on_click=actions.rerun_page(actions.measure),
            args=(to_sweep,),
        )
        st.button(
            "Pinned" if pinned else "Pin",
            key="pin",
            disabled=bool(pinned) or is_full,
            help=f"There is room for {MAX_PINS} pins: remove one." if is_full else None,
            on_click=actions.rerun_page(actions.pin),
            args=(view.place,),
        )
        st.button(
            "Make reference",
            key="make-reference",
            disabled=same_place(reference_of(desk)[0], view.place) or (is_full and not pinned),
            help="Differences are then to this point.",
            on_click=actions.rerun_page(actions.make_reference),
            args=(view.place,),
        )
        st.button("Export this", key="export", on_click=open_page, args=("export",))


def _measuring(desk: Desk) -> None:
    """What measuring takes, or how far it is, or why it failed: always as high, so that nothing below moves."""
    latest = next((job for job in desk.jobs if job.kind == "measure"), None)
    with st.container(height=_SLOT, border=False, horizontal=True, vertical_alignment="center", key="measuring"):
        if latest is not None and not latest.state.is_final:
            words = f"Measuring: {ui.job_state_text(latest)}"
            st.progress(latest.progress or 0.0, text=ui.markdown_escaped(words))
            ui.cancel_button(latest, key="measure")
        elif latest is not None and latest.state is JobState.FAILED:
            st.text(f"{latest.title}: {latest.error}")
        else:
            st.caption(_idle_words(desk))


def _idle_words(desk: Desk) -> str:
    if desk.active("geometry"):
        return "Computing the angles between the task vectors; predictions follow."
    if desk.active("prepare"):
        return "Loading the models, so that texts come quickly."
    return f"Measuring a point takes {_effort(desk)}."


def _per_layer(desk: Desk) -> None:
    found = st.expander("How much of each policy, layer by layer", key="per-layer", type="compact", on_change="rerun")
    if not found.open:
        return
    coef_LK, why = _coefficients(desk, desk.view.place)
    if coef_LK is None or desk.geometry is None:
        found.text(why)
        return
    names = desk.policy_names
    series = [
        {"name": name, "color": PALETTE[m % len(PALETTE)], "values": coef_LK[:, m].tolist()}
        for m, name in enumerate(names)
    ]
    label = "Factor of each task vector, layer by layer"
    with found:
        chart, table = st.columns(2, gap="large")
        with chart:
            card({"layers": {"label": label, "names": desk.geometry.layers, "series": series}}, key="position-layers")
        columns = {name: coef_LK[:, m].round(4) for m, name in enumerate(names)}
        table.dataframe({"layer": list(desk.geometry.layers)} | columns, hide_index=True, height=240, key="layer-table")


def _coefficients(desk: Desk, place: Place) -> tuple[Any, str]:
    """The coefficients of a place in this iteration, or None and why not."""
    if desk.geometry is None:
        return None, "The geometry of the task vectors is being computed."
    try:
        coef_LK = mix(place, desk.geometry)
    except (GeometryError, RecipeError) as error:
        return None, str(error)
    return coef_LK, "" if coef_LK is not None else "Per layer, SLERP of weights is known to the engine only."


def metrics_at(desk: Desk, place: Place) -> dict[str, Metric]:
    """Return what the surface predicts at a place; empty where it cannot."""
    same_iteration = place.iteration == desk.view.iteration
    if desk.prediction is None or desk.geometry is None or not (same_iteration or place == SFT):
        return {}
    coef_LK, _ = _coefficients(desk, place)
    if coef_LK is None:
        return {}
    errors = {name: surface.loo_rmse for name, surface in desk.prediction.surfaces.items()}
    found = predict(desk.prediction, coef_LK, desk.geometry)
    return {name: Metric(mean=mean, se=errors[name]) for name, mean in found.items()}


def _rows(desk: Desk, place: Place, reference: Place) -> list[dict[str, Any]]:
    point = point_at(desk.front, place)
    evaluation = point.evaluation if point else default_evaluation(desk.front)
    base = point_at(desk.front, reference, evaluation=evaluation)
    mine = dict(point.metrics) if point else metrics_at(desk, place)
    theirs = dict(base.metrics) if base else metrics_at(desk, reference)
    pairs = _pairs(desk, point, base)
    parts = sorted(name for name in mine if name.startswith("reward:"))
    names = ["reward", *(parts if len(parts) > 1 else []), *_ORDER[1:]]
    rows = []
    for name in names:
        if name not in mine:
            continue
        gap = difference(mine[name], theirs[name], pairs.get(name)) if name in theirs else None
        unit = "part of the reward" if name.startswith("reward:") else _UNITS.get(name, "")
        row = {"label": metric_label(name), "unit": unit, "is_predicted": point is None}
        value = ui.measured(mine[name]) if point else f"\u2248 {ui.measured(mine[name])}"
        rows.append(row | {"value": value} | _delta_json(name, gap, same_place(place, reference)))
    return rows


def _pairs(desk: Desk, point: FrontPoint | None, base: FrontPoint | None) -> dict[str, Difference]:
    if point is None or base is None or point.key == base.key:
        return {}
    key = f"pairs {point.key} {point.n} {base.key} {base.n} {selection_key(desk.selection)}"
    ask = engine().samples
    try:
        found = kept(key, lambda: paired(ask(desk.selection, point.key), ask(desk.selection, base.key)))
    except WarpError:
        return {}  # without the completions the errors are those of independent samples
    return found or {}


def _delta_json(name: str, gap: Difference | None, is_reference: bool) -> dict[str, str]:
    if is_reference:
        return {"delta": "", "direction": "same", "tone": "flat", "words": "is the reference"}
    if gap is None:
        return {"delta": ui.number(None), "direction": "same", "tone": "flat", "words": "reference not measured"}
    size = ui.measured(Metric(mean=abs(gap.mean), se=gap.se))
    is_zero = float(size.split()[0]) == 0
    sign = "" if is_zero else "+" if gap.mean > 0 else ui.MINUS
    tone, words = ("flat", "no clear difference") if is_zero else verdict(name, gap)
    direction = "same" if words == "no clear difference" else "up" if gap.mean > 0 else "down"
    return {"delta": f"{sign}{size}", "direction": direction, "tone": tone, "words": words}


def _effort(desk: Desk) -> str:
    """What measuring one point takes, in words."""
    settings = desk.config.get("evaluation", {})
    prompts, samples = settings.get("prompts", 32), settings.get("samples_per_prompt", 2)
    return f"{prompts} prompts with {samples} completions each"


def _note(desk: Desk, point: FrontPoint | None, has_rows: bool) -> str:
    if point is not None:
        label = next((note.label for note in desk.front.evaluations if note.id == point.evaluation), point.evaluation)
        return f"{label}. Differences are paired over prompts where both were measured."
    if has_rows and desk.prediction is not None:
        count = len(desk.prediction.keys)
        return f"Predicted from {count} measured points; the error is that of predicting each of them from the others."
    return "Not measured, and too few points to predict from: measure this one, or sweep the curve."
