"""What the Train page remembers in the browser session: which half is shown, which run is watched, a message."""

from typing import cast

import streamlit as st

__all__ = ["MESSAGE", "NEW", "RUNS", "TAB", "show_new", "show_runs", "watch", "watched"]

TAB = "train-tab"
RUNS, NEW = "Runs", "New run"
MESSAGE = "train-message"
_WATCHED = "train-watched"


def show_runs() -> None:
    """Show the list of runs; for callbacks."""
    st.session_state[TAB] = RUNS


def show_new() -> None:
    """Show the form; for callbacks."""
    st.session_state[TAB] = NEW


def watch(run: str) -> None:
    """Show the curves of a run; for callbacks."""
    st.session_state[_WATCHED] = run


def watched() -> str | None:
    """Return the run whose curves were asked for."""
    return cast("str | None", st.session_state.get(_WATCHED))
