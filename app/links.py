"""From one page to another, taking the view along."""

import streamlit as st

from app.view import View, current_view, set_view
from warp_core.service.documents import RunSummary
from warp_core.service.protocol import Place

__all__ = ["open_page", "open_run"]


def open_page(name: str) -> None:
    """Go to a page of the app by the name of its module; the view stays and so does the address."""
    # Streamlit finds pages by the path of their address; what this one would draw is never asked for.
    st.switch_page(st.Page(_nothing, title=name, url_path=name), query_params=current_view().to_query())


def open_run(run: RunSummary) -> None:
    """Go to Explore with this run; where it is open already, position and pins stay as they are."""
    if current_view().run != run.name:
        fresh = View(run=run.name)
        iteration = max(1, run.finished_iterations)
        set_view(
            run=run.name,
            init=None,
            policies=(),
            base=None,
            place=Place(iteration=iteration, eta=fresh.place.eta),
            extrapolate=False,
            budget=None,
            pins=(),
            reference=None,
            prompt="",
            left=fresh.left,
            right=fresh.right,
        )
    open_page("explore")


def _nothing() -> None:
    """Stand for a page."""
