"""What the Train page remembers in the browser session: which half is shown, which run is watched, a message."""

from typing import cast

import streamlit as st

__all__ = ["MESSAGE", "NEW", "RUNS", "TAB", "show_new", "show_runs", "tab_switch", "watch", "watched"]

TAB = "train-tab"
RUNS, NEW = "Runs", "New run"
MESSAGE = "train-message"
_WATCHED, _TURNS = "train-watched", "train-turns"


def tab_switch(*, default: str) -> str:
    """Draw the switch between list and form; return which is shown."""
    # A switch from the program is another widget: a value set from outside would get lost in a hurry.
    key = f"{TAB}.{st.session_state.get(_TURNS, 0)}"
    now = st.session_state.get(TAB, default)
    chosen = st.segmented_control(
        "Show", [RUNS, NEW], default=now, required=True, key=key, label_visibility="collapsed"
    )
    st.session_state[TAB] = chosen or now
    return cast(str, st.session_state[TAB])


def show_runs() -> None:
    """Show the list of runs; for callbacks."""
    _show(RUNS)


def show_new() -> None:
    """Show the form; for callbacks."""
    _show(NEW)


def _show(which: str) -> None:
    st.session_state[TAB] = which
    st.session_state[_TURNS] = st.session_state.get(_TURNS, 0) + 1


def watch(run: str) -> None:
    """Show the curves of a run; for callbacks."""
    st.session_state[_WATCHED] = run


def watched() -> str | None:
    """Return the run whose curves were asked for."""
    return cast("str | None", st.session_state.get(_WATCHED))
