"""Help."""

import streamlit as st


def render() -> None:
    """Draw the page."""
    st.title("Help")
    st.button("Test")
    st.latex("x^2")
