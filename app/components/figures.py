"""Drawings of the method. They take their colours from the theme and change with it, which a picture file cannot."""

from functools import cache
from pathlib import Path
from typing import Any

import streamlit as st

__all__ = ["NAMES", "figure"]

FOLDER = Path(__file__).with_suffix("")
NAMES = ("ema", "slerp", "liti", "iterations", "front")


def figure(name: str) -> None:
    """Draw one of `NAMES`."""
    _component(name)(key=f"figure-{name}")


@cache
def _component(name: str) -> Any:
    return st.components.v2.component(
        f"warp_figure_{name}",
        html=(FOLDER / f"{name}.svg").read_text(encoding="utf-8"),
        css=(FOLDER / "figures.css").read_text(encoding="utf-8"),
    )
