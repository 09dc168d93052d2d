"""Input widgets that show a part of the view, which other things change, too.

Setting a widget's value through the session makes Streamlit send it with every run, over what the user is typing; sent
once, it is lost when the next run starts too soon. So such a widget only has a start value, and where the view has
been changed by something else it becomes another widget.
"""

import streamlit as st

__all__ = ["field_key"]

_NUMBERS = "explore_fields"


def field_key(name: str, value: object) -> str:
    """Return the key of the widget that shows `value`: a new key where the widget shows something else."""
    numbers = st.session_state.setdefault(_NUMBERS, {})
    key = f"{name}-{numbers.setdefault(name, 0)}"
    if key in st.session_state and st.session_state[key] != value:
        numbers[name] += 1
        key = f"{name}-{numbers[name]}"
    return key
