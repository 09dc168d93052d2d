"""The head of the page: which models, how they were measured, and measuring those that were not."""

from collections.abc import Sequence

import pandas as pd
import streamlit as st

from app import ui
from app.compare.comparison import errors_kept
from app.compare.models import CompareModel, compared, default_evaluation, measured_places, unlike
from app.engine import engine, session_id
from app.view import MAX_PINS, Pin, View, current_view, set_view
from warp_core.errors import UnknownJobError
from warp_core.service.documents import FrontDocument
from warp_core.service.places import place_label, place_text, same_place
from warp_core.service.protocol import Job, MeasureRequest, Place

__all__ = ["choose_evaluation", "choose_models", "measure_missing", "model_table"]

_CHOICE, _JOBS, _FAILURES = "compare_models", "compare_jobs", "compare_failures"
POLL_S = 0.5
ICON = ":material/straighten:"


def choose_evaluation(front: FrontDocument) -> str | None:
    """Return the evaluation whose points are compared; asked for only where there are several."""
    reachable = {point.evaluation for point in front.points if point.place is not None}
    default = default_evaluation(front)
    notes = {note.id: note.label for note in front.evaluations if note.id in reachable or note.id == default}
    if len(notes) < 2:
        return default
    ids = list(notes)
    return st.selectbox(
        "Measured with",
        ids,
        index=ids.index(default) if default in ids else 0,
        format_func=lambda one: notes[one],
        key="compare_evaluation",
        persist_state="session",
        help="Only points that were measured alike can be compared.",
    )


def choose_models(view: View, front: FrontDocument, evaluation: str | None) -> tuple[CompareModel, ...]:
    """Draw the choice of models, which are the pins of the view, and return what is compared."""
    pins = {place_text(pin.place): pin for pin in view.pins}
    for place in measured_places(front, evaluation):
        if not any(same_place(place, pin.place) for pin in view.pins):
            pins[place_text(place)] = Pin(place=place)
    names = dict(zip(pins, unlike([pin.name for pin in pins.values()]), strict=True))
    st.session_state[_CHOICE] = list(dict.fromkeys(place_text(pin.place) for pin in view.pins))
    st.multiselect(
        "Models beside the SFT policy",
        list(pins),
        format_func=lambda text: names[text],
        key=_CHOICE,
        max_selections=MAX_PINS,
        on_change=_take_choice,
        args=(pins,),
        placeholder="Pins of Explore, or any measured point",
        help="The same pins as in Explore. Pin a position there, or add a measured point here.",
    )
    return compared(front, view.pins, evaluation)


def _take_choice(pins: dict[str, Pin]) -> None:
    """Make the chosen models the pins of the view; what refers to a pin by its number follows it."""
    view = current_view()
    wanted = tuple(pins[text] for text in st.session_state[_CHOICE])
    moved = {old: wanted.index(pin) for old, pin in enumerate(view.pins) if pin in wanted}
    sides = {
        side: str(moved[int(now)]) if int(now) in moved else default
        for side, now, default in (("left", view.left, "sft"), ("right", view.right, "end"))
        if now.isdecimal()
    }
    reference = None if view.reference is None else moved.get(view.reference)
    set_view(pins=wanted, reference=reference, **sides)


def model_table(models: Sequence[CompareModel]) -> None:
    """Draw the models with what was measured."""
    columns: dict[str, list[object]] = {"Model": [_full_name(model) for model in models]}
    for title, name in (("Reward", "reward"), ("KL to SFT", "kl"), ("Length", "length"), ("Diversity", "diversity")):
        columns[title] = [ui.measured(m.point.metrics.get(name)) if m.point else "" for m in models]
    columns["Completions"] = [f"{model.point.n}" if model.point else "not measured yet" for model in models]
    st.dataframe(
        pd.DataFrame(columns),
        hide_index=True,
        key="compare_model_table",
        alt="Models that are compared",
        column_config={
            "Model": st.column_config.TextColumn(width="large"),
            "Reward": st.column_config.TextColumn(help="Mean and standard error over prompts", alignment="right"),
            "KL to SFT": st.column_config.TextColumn(help="Nats per completion", alignment="right"),
            "Length": st.column_config.TextColumn(help="Tokens", alignment="right"),
            "Diversity": st.column_config.TextColumn(alignment="right"),
            "Completions": st.column_config.TextColumn(alignment="right"),
        },
    )


def _full_name(model: CompareModel) -> str:
    """The name, and what the model is where its label does not say so."""
    recipe = place_label(model.place)
    return model.name if model.label == recipe else f"{model.name} ({recipe})"


def measure_missing(models: Sequence[CompareModel], *, as_usual: bool) -> None:
    """Draw a row for every model without a point: a button to measure it, or how far that is.

    as_usual: the points that are compared were measured as a new one would be.
    """
    jobs = _jobs()
    missing = [model for model in models if model.point is None]
    for text in jobs.keys() - {place_text(model.place) for model in missing}:
        del jobs[text]
    if not as_usual:
        for model in missing:
            st.text(f"{model.name} was not measured so, and can only be measured anew as the run is configured.")
        return
    idle = [model.place for model in missing if place_text(model.place) not in jobs]
    if len(idle) > 1:
        st.button(f"Measure all {len(idle)}", key="compare_measure_all", icon=ICON, on_click=_measure, args=(idle,))
    if missing:
        st.fragment(run_every=POLL_S if jobs else None)(_missing_rows)(missing, known=dict(jobs))


def _missing_rows(missing: Sequence[CompareModel], *, known: dict[str, str]) -> None:
    """The rows, and a run of the whole page as soon as other jobs are under way than when it last ran."""
    with ui.errors_shown():
        for model in missing:
            _missing_row(model, _job_of(place_text(model.place)))
    if _jobs() != known:
        st.rerun()


def _missing_row(model: CompareModel, job: Job | None) -> None:
    if job is not None:
        ui.job_progress(job, key="compare-measure")
        return
    with st.container(border=True, key=f"compare-missing-{model.letter}"):
        name, action = st.columns([5, 1], vertical_alignment="center")
        name.text(f"{model.name} has not been measured with these prompts yet.")
        key = f"compare_measure_{model.letter}"
        action.button("Measure", key=key, icon=ICON, width="stretch", on_click=_measure, args=([model.place],))
        if failure := _failures().get(place_text(model.place)):
            st.text(failure)


def _jobs() -> dict[str, str]:
    """Ids of the measurements that are under way, by the text of the place."""
    found: dict[str, str] = st.session_state.setdefault(_JOBS, {})
    return found


def _failures() -> dict[str, str]:
    """Why a place could not be measured."""
    found: dict[str, str] = st.session_state.setdefault(_FAILURES, {})
    return found


def _job_of(text: str) -> Job | None:
    """The job that measures a place; None without one, when it has ended, or when the engine has forgotten it."""
    job_id = _jobs().get(text)
    if job_id is None:
        return None
    try:
        job = engine().job(job_id)
    except UnknownJobError:
        del _jobs()[text]
        return None
    if not job.state.is_final:
        return job
    if job.error:
        _failures()[text] = job.error
    del _jobs()[text]
    return None


def _measure(places: Sequence[Place]) -> None:
    """Submit one job per place, so that each model appears as soon as it is measured."""
    with errors_kept():
        for place in places:
            request = MeasureRequest(session=session_id(), selection=current_view().selection, places=(place,))
            _failures().pop(place_text(place), None)
            _jobs()[place_text(place)] = engine().submit(request).id
