"""Blind voting: the panes under letters in a random order, until the votes are in."""

import random

import streamlit as st

from app.explore.actions import Shown, shown

__all__ = ["LETTERS", "hidden_order", "order_of", "reveal"]

LETTERS = "ABC"
_REVEALED = "explore_revealed"


def order_of(preview: Shown) -> tuple[int, ...]:
    """Return which pane (0 left, 1 current, 2 right) stands where; a blind preview is shuffled, always the same way."""
    order = list(range(len(preview.places)))
    if preview.blind:
        random.Random(preview.job_id).shuffle(order)
    return tuple(order)


def hidden_order(preview: Shown | None) -> tuple[int, ...] | None:
    """Return the order while the panes of a preview are hidden; None when everybody may know."""
    if preview is None or not preview.blind or preview.job_id in st.session_state.get(_REVEALED, ()):
        return None
    return order_of(preview)


def reveal() -> None:
    """Show which model wrote which text of the latest preview."""
    latest = shown()
    if latest is not None:
        st.session_state[_REVEALED] = {*st.session_state.get(_REVEALED, ()), latest.job_id}
