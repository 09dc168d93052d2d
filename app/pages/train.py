"""The Train page: configure Algorithm 1, start it, watch it, stop and resume it."""

import streamlit as st

from app.engine import engine
from app.train.form import form
from app.train.runs_list import runs_list
from app.train.state import NEW, RUNS, tab_switch

__all__ = ["render"]


def render() -> None:
    """Draw the page."""
    st.title("Train", anchor=False)
    runs = engine().runs()
    if tab_switch(default=RUNS if runs else NEW) == NEW:
        form(runs)
    else:
        runs_list(runs)
