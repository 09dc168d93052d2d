"""Compare: a prompt set x models. Completions in a table, blind votes over the set, preferences and judges."""

import streamlit as st

from app import ui
from app.compare.booth import is_voting, voting
from app.compare.comparison import load, show_kept_error
from app.compare.models import default_evaluation
from app.compare.picker import choose_evaluation, choose_models, measure_missing, model_table
from app.compare.table import completions
from app.compare.verdicts import verdicts
from app.engine import engine
from app.links import open_page
from app.view import current_view

__all__ = ["render"]

SECTION = "compare_section"
SECTIONS = ("Completions", "Vote", "Preferences")


def render() -> None:
    """Draw the page.

    Raises:
        WarpError: the engine does not answer, or cannot.
    """
    st.title("Compare", anchor=False)
    show_kept_error()
    view = current_view()
    if not view.has_selection:
        ui.empty_state("Nothing to compare yet", "Choose a run or checkpoints in Explore, or train a run.")
        return
    front = engine().front(view.selection)
    evaluation = choose_evaluation(front)
    models = choose_models(view, front, evaluation)
    comparison = load(engine(), view.selection, front, models)
    if not (is_voting() and st.session_state.get(SECTION) == "Vote"):  # the two texts need the room
        model_table(models)
    measure_missing(models, as_usual=evaluation == default_evaluation(front))
    if len(models) < 2:
        ui.empty_state(
            "Only the SFT policy so far",
            "Pin a position in Explore, or add a measured point above, to compare it with.",
        )
        if st.button("Open Explore", key="compare_explore"):
            open_page("explore")
        return
    tabs = st.tabs(SECTIONS, key=SECTION, on_change="rerun")
    open_ = next((name for name, tab in zip(SECTIONS, tabs, strict=True) if tab.open), SECTIONS[0])
    with tabs[SECTIONS.index(open_)]:
        if open_ == "Preferences":
            verdicts(comparison)
        elif len(comparison.measured) < 2 or not comparison.rows:
            ui.empty_state("Nothing measured to compare", "Measure at least two of the models above.")
        elif open_ == "Vote":
            voting(comparison)
        else:
            completions(comparison, view)
