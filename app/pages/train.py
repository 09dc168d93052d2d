"""The Train page: configure Algorithm 1, start it, watch it, stop and resume it."""

import streamlit as st

from app.engine import engine
from app.train.form import form
from app.train.runs_list import runs_list
from app.train.state import NEW, RUNS, TAB

__all__ = ["render"]


def render() -> None:
    """Draw the page."""
    st.title("Train", anchor=False)
    runs = engine().runs()
    shown = st.segmented_control(
        "Show",
        [RUNS, NEW],
        default=RUNS if runs else NEW,
        required=True,
        key=TAB,
        label_visibility="collapsed",
        persist_state="session",
    )
    if shown == NEW:
        form(runs)
    else:
        runs_list(runs)
