"""From one page to another, taking the view along."""

import streamlit as st

from app.view import current_view

__all__ = ["open_page"]


def open_page(name: str) -> None:
    """Go to a page of the app by the name of its module; the view stays and so does the address."""
    # Streamlit finds pages by the path of their address; what this one would draw is never asked for.
    st.switch_page(st.Page(_nothing, title=name, url_path=name), query_params=current_view().to_query())


def _nothing() -> None:
    """Stand for a page."""
