"""Explore: drag through merges of a run or of checkpoints on disk, see what they are worth, read what they write."""

import streamlit as st

from app import ui
from app.engine import engine
from app.explore import actions
from app.explore.pins import draw_downloads, draw_pins
from app.explore.plot import draw_plot
from app.explore.selection import draw_selection, is_explored
from app.explore.side_by_side import draw_side_by_side
from app.explore.state import Desk, kept, open_desk, selection_key
from app.explore.votes import draw_summary
from app.view import choose_run, current_view, set_view

__all__ = ["render"]


def render() -> None:
    """Draw the page."""
    asked = engine()
    runs = asked.runs()
    if not current_view().has_selection and runs:
        set_view(run=choose_run(runs))
    view = current_view()
    draw_selection(view, runs)
    error = actions.last_error()
    if error is not None:
        ui.error_box(error)
    if not is_explored(view):
        if not runs:
            ui.empty_state("Nothing to explore yet", "Name checkpoints above, or train a run on the page Train.")
        return
    desk = open_desk(view, runs)
    if desk.view is not view:
        set_view(**vars(desk.view))
    _first_texts(desk)
    draw_plot(desk)
    if desk.can_merge:
        _draw_rest(desk)
    else:
        ui.empty_state(
            "Nothing to merge yet",
            "No iteration of this run is finished yet. Its points appear above as they are measured; sliders and texts "
            "work as soon as its policies are there.",
        )
    draw_downloads(desk)


def _draw_rest(desk: Desk) -> None:
    st.subheader("Side by side", anchor=False)
    draw_side_by_side(desk)
    st.subheader("Preference scores", anchor=False)
    draw_summary(desk)
    st.subheader("Pins", anchor=False)
    draw_pins(desk)


def _first_texts(desk: Desk) -> None:
    """Set the prompt that is used where the view names none, and sample once when a selection is opened."""
    key = selection_key(desk.selection)
    prompts = kept(f"prompts {key}", lambda: tuple(engine().prompts(desk.selection))) or ()
    st.session_state["explore_first_prompt"] = prompts[0] if prompts else ""
    st.session_state["explore_temperature"] = desk.config.get("training", {}).get("temperature", 0.9)
    if desk.can_merge and f"started {key}" not in st.session_state:
        st.session_state[f"started {key}"] = True
        if actions.auto_preview():
            actions.preview()
