"""Line charts over the steps of training, one beside the other, that stay in place while their data grow.

A Streamlit component of our own: `st.plotly_chart` and `st.line_chart` are mounted anew, or lose their zoom, whenever
their data change. Drag to zoom, double-click to see all steps again, arrow keys move the crosshair.

    lines(key="watch", label="Training curves", charts=[Chart(id="reward", title="Reward", lines=(...))])
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from app.components.ordered import ordered

__all__ = ["MAX_POINTS", "Chart", "Line", "lines", "moving_mean", "thinned"]

MAX_POINTS = 600
"""Points of a line that are sent to the browser: more than it has pixels for."""

_HERE = Path(__file__).parent
_component = ordered(
    "warp_lines",
    html='<div class="lines"></div>',
    css=(_HERE / "lines.css").read_text(encoding="utf-8"),
    js="\n".join((_HERE / name).read_text(encoding="utf-8") for name in ("axes.js", "lines.js")),
)


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line: S values, None where there is none."""

    name: str
    number: int
    """From 1 on: which of the theme's colours."""
    x_S: tuple[int, ...]
    y_S: tuple[float | None, ...]


@dataclass(frozen=True, kw_only=True)
class Chart:
    """One metric."""

    id: str
    """Stays the same while the data change."""
    title: str
    lines: tuple[Line, ...]


def lines(
    charts: Sequence[Chart], *, key: str, label: str, x_max: int, smooth: int = 1, x_label: str = "step", of: str = ""
) -> None:
    """Draw the charts on a common x axis from 1 to `x_max`.

    Args:
        charts: in the order they are drawn.
        key: stays the same while the data change.
        label: what the charts show together, for a screen reader.
        x_max: end of the axis, such as the planned number of steps.
        smooth: steps of the moving mean that is drawn over the faint values themselves; 1 for the values alone.
        x_label: unit of the x axis.
        of: what the data belong to; where it changes, zoom and switched-off lines are forgotten. Another `key` would do
            that, too, but the page would jump.
    """
    numbers = {line.name: line.number for chart in charts for line in chart.lines}
    _component(
        key=key,
        data={
            "label": label,
            "of": of,
            "x_label": x_label,
            "x_min": 1,
            "x_max": max(2, x_max),
            "names": [{"name": name, "number": number} for name, number in numbers.items()],
            "charts": [
                {"id": chart.id, "title": chart.title, "series": [_series(line, smooth) for line in chart.lines]}
                for chart in charts
            ],
        },
    )


def _series(line: Line, smooth: int) -> dict[str, object]:
    x_S, raw_S = thinned(line.x_S, line.y_S)
    smoothed_S = thinned(line.x_S, moving_mean(line.y_S, smooth))[1] if smooth > 1 else raw_S
    series: dict[str, object] = {"name": line.name, "number": line.number, "x": x_S, "y": smoothed_S}
    return series | {"raw": raw_S} if smooth > 1 else series


def moving_mean(values_S: Sequence[float | None], window: int) -> list[float | None]:
    """Return the mean of each value and the `window` - 1 before it; None stays None and counts for nothing."""
    means: list[float | None] = []
    for place, value in enumerate(values_S):
        recent = [one for one in values_S[max(0, place - window + 1) : place + 1] if one is not None]
        means.append(None if value is None else sum(recent) / len(recent))
    return means


def thinned(
    x_S: Sequence[int], y_S: Sequence[float | None], *, limit: int = MAX_POINTS
) -> tuple[list[int], list[float | None]]:
    """Return at most `limit` points: where there are more, the last step and the mean value of each group of steps."""
    size = -(-len(x_S) // limit)
    if size <= 1:
        return list(x_S), list(y_S)
    groups = [slice(start, start + size) for start in range(0, len(x_S), size)]
    means: list[float | None] = []
    for group in groups:
        known = [value for value in y_S[group] if value is not None]
        means.append(sum(known) / len(known) if known else None)
    return [x_S[group][-1] for group in groups], means
