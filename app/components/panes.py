"""Panes of streamed text, side by side, and the card of a position: components that draw with `textContent` only.

A model may write anything, and `st.markdown` would fetch the images that it names: these components make no node out
of a text. They take data and report nothing; `panes/*.js` holds what runs in the browser.

    panes(panes=[PaneView(id="left", title="SFT policy", ...)], key="panes")
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from app.components.ordered import ordered

__all__ = ["CompletionView", "PaneView", "card", "lines_for", "panes"]

PaneState = Literal["empty", "waiting", "merging", "sampling", "scoring", "done", "stopped", "error"]
_FOLDER = Path(__file__).parent / "panes"
_CHARS_PER_TOKEN = 4.5
_CHARS_PER_LINE = 48  # of a third of a 1440 pixel window
_LINES = (3, 12)

_panes = ordered(
    "warp_panes",
    css=(_FOLDER / "panes.css").read_text(encoding="utf-8"),
    js=(_FOLDER / "panes.js").read_text(encoding="utf-8"),
)
_card = ordered(
    "warp_card",
    css=(_FOLDER / "card.css").read_text(encoding="utf-8"),
    js=(_FOLDER / "card.js").read_text(encoding="utf-8"),
)


@dataclass(frozen=True, kw_only=True)
class CompletionView:
    """A completion as it is drawn."""

    text: str
    done: bool
    """Differences are marked between texts that are done."""
    facts: tuple[tuple[str, str], ...] = ()
    """(label, value) under the text: reward, KL, tokens."""


@dataclass(frozen=True, kw_only=True)
class PaneView:
    """One pane."""

    id: str
    title: str
    role: str = ""
    """Its place in the comparison, e.g. `left end`."""
    recipe: str = ""
    """What the model is, under the title."""
    state: PaneState
    status: str = ""
    """Words instead of those of `state`, e.g. `12 of 24 tokens`."""
    share: float | None = None
    """Where it is between the ends, 0 to 1: the colour of its edge; None: no colour, as while voting blind."""
    is_current: bool = False
    """The merge that the sliders are at."""
    stale_recipe: str | None = None
    """The recipe that the text is of, where that is another one than the pane's; then it is greyed."""
    hint: str = ""
    """Shown while there is no text."""
    completions: tuple[CompletionView, ...] = ()


def lines_for(max_new_tokens: int) -> int:
    """Return how many lines to keep free for a completion, so that nothing moves while it is written."""
    lines = math.ceil(max_new_tokens * _CHARS_PER_TOKEN / _CHARS_PER_LINE) + 1
    return min(max(lines, _LINES[0]), _LINES[1])


def panes(
    views: Sequence[PaneView],
    *,
    key: str,
    show_differences: bool,
    lines: int,
    num_completions: int = 1,
    position: float | None = None,
    position_label: str = "",
    end_color: str = "#0072B2",
) -> None:
    """Draw panes side by side, of equal and constant height.

    Args:
        views: from left to right. Differences are marked against the first one.
        key: stays the same while the data change.
        show_differences: mark the words that the first pane does not have.
        lines: of one completion, see `lines_for`; a longer text scrolls.
        num_completions: boxes to keep free in each pane.
        position: of the current merge between the ends, 0 to 1, on the line above the panes; None: no line.
        position_label: the same in words, for a screen reader.
        end_color: of the right end; the left end is grey, and what lies between is mixed.
    """
    _panes(
        key=key,
        data={
            "panes": [asdict(view) | {"stale": view.stale_recipe is not None} for view in views],
            "show_differences": show_differences,
            "lines": lines,
            "num_completions": num_completions,
            "position": position,
            "position_label": position_label,
            "end_color": end_color,
        },
    )


def card(data: dict[str, Any], *, key: str) -> None:
    """Draw the card of a position.

    data: any of
        recipe: title, badge, is_measured; formula, lines of (text, kind); shares, each with name and text; note
        metrics: title, badge, reference, the name of what differences are to; note; rows, each with label, unit, value,
            is_predicted, delta, direction (up, down, same), tone (good, bad, flat) and words
        layers: label; names of the layers; series, each with name, color and one value per layer
    """
    _card(key=key, data=data)
