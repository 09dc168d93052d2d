"""To another page of the app, with the view."""

import streamlit as st

from app.view import current_view

__all__ = ["open_page"]


def open_page(name: str) -> None:
    """Go to a page by the path of its address, e.g. "export"; the view goes along."""
    page = st.Page(_nothing, url_path=name, title=name)
    st.switch_page(page, query_params=current_view().to_query())


def _nothing() -> None:
    """Streamlit finds the page by its path; what is drawn there is the app's own."""
