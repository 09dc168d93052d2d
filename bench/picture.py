"""The growth of times as a small SVG picture and as an interactive page: one pane per thing that grows."""

import math
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bench.scale import Series

__all__ = ["write_page", "write_picture"]

COLORS = {"merge": "#3b7dd8", "sampling": "#c2541d", "training": "#2f8f5b", "front": "#8a4fb3"}
PANES = (("parameters", "parameters"), ("policies", "policies M"), ("batch", "completions in a batch"))
_PANE, _GAP, _LEFT, _TOP, _HEIGHT = 230, 62, 62, 44, 250  # pixels
_STYLE = """
text { font: 12px system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif; fill: #1f2328 }
.mild { fill: #59636e } .grid { stroke: #59636e; stroke-opacity: .2 }
@media (prefers-color-scheme: dark) { text { fill: #e6edf3 } .mild { fill: #9198a1 } .grid { stroke: #9198a1 } }
"""


def write_picture(path: Path, found: "Sequence[Series]") -> None:
    """Write the SVG: seconds against what grows, both axes logarithmic, so that a line of slope 1 is linear growth."""
    width = _LEFT + 3 * _PANE + 2 * _GAP + 20
    body: list[str] = []
    for number, (along, title) in enumerate(PANES):
        some = [series for series in found if series.along == along and series.spots]
        if some:
            body += _pane(some, title, _LEFT + number * (_PANE + _GAP))
    parts = list(dict.fromkeys(series.part for series in found))
    for number, part in enumerate(parts):
        x = _LEFT + number * 110
        body.append(f'<circle cx="{x}" cy="16" r="4" fill="{COLORS[part]}"/><text x="{x + 10}" y="20">{part}</text>')
    hint = "dotted: linear growth; both axes logarithmic"
    body.append(f'<text class="mild" x="{_LEFT + len(parts) * 110}" y="20">{hint}</text>')
    text = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {_TOP + _HEIGHT + 50}"><style>{_STYLE}</style>'
    )
    path.write_text("\n".join([text, "<title>Time against size</title>", *body, "</svg>", ""]), encoding="ascii")


def _pane(some: "Sequence[Series]", title: str, left: float) -> Iterator[str]:
    """One pane: grid lines at powers of ten, a dotted line of slope 1, the series."""
    xs = [math.log10(spot.x) for series in some for spot in series.spots]
    ys = [math.log10(spot.seconds) for series in some for spot in series.spots]
    x_low, x_high = min(xs) - 0.05, max(xs) + 0.05
    y_low = math.floor(min(ys))
    y_high = max(math.ceil(max(ys)), y_low + 1)

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_low) / (x_high - x_low)
        up = (y - y_low) / (y_high - y_low)
        return left + _PANE * across, _TOP + _HEIGHT * (1 - up)

    for power in range(y_low, y_high + 1):
        _, y = place(x_low, power)
        yield f'<path class="grid" d="M{left} {y:.1f}h{_PANE}"/>'
        yield f'<text class="mild" x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{_seconds(power)}</text>'
    for label, x_log in {spot.label: math.log10(spot.x) for series in some for spot in series.spots}.items():
        x, _ = place(x_log, y_low)
        yield f'<text class="mild" x="{x:.1f}" y="{_TOP + _HEIGHT + 16}" text-anchor="middle">{escape(label)}</text>'
    middle = left + _PANE / 2
    yield f'<text x="{middle:.1f}" y="{_TOP + _HEIGHT + 36}" text-anchor="middle">{title}</text>'
    for series in some:
        color = COLORS[series.part]
        places = [place(math.log10(spot.x), math.log10(spot.seconds)) for spot in series.spots]
        line = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
        yield f'<path d="M{line}" fill="none" stroke="{color}" stroke-width="1.6"/>'
        yield from (f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.2" fill="{color}"/>' for x, y in places)
        anchor = series.spots[len(series.spots) - series.fitted] if series.fitted else series.spots[0]
        rise = math.log10(series.spots[-1].x / anchor.x)
        start, end = math.log10(anchor.seconds), min(math.log10(anchor.seconds) + rise, y_high)
        (x_0, y_0), (x_1, y_1) = place(math.log10(anchor.x), start), place(math.log10(anchor.x) + end - start, end)
        yield (
            f'<path d="M{x_0:.1f} {y_0:.1f}L{x_1:.1f} {y_1:.1f}" stroke="{color}" stroke-opacity=".6" '
            'stroke-dasharray="2 4"/>'
        )


def _seconds(power: int) -> str:
    """10^power seconds in words."""
    return f"{10**power} s" if power >= 0 else f"{10 ** (power + 3)} ms" if power >= -3 else f"{10 ** (power + 6)} us"


def write_page(path: Path, found: "Sequence[Series]") -> None:
    """Write the same as one HTML file with plotly.js inside; hover shows every measurement."""
    from plotly.subplots import make_subplots

    figure = make_subplots(rows=1, cols=len(PANES), subplot_titles=[title for _, title in PANES])
    for number, (along, _) in enumerate(PANES, start=1):
        for series in (one for one in found if one.along == along):
            figure.add_scatter(
                x=[spot.x for spot in series.spots],
                y=[spot.seconds for spot in series.spots],
                text=[spot.label for spot in series.spots],
                hovertemplate="%{text}: %{y:.4g} s",
                name=f"{series.part}: {series.case}",
                mode="lines+markers",
                line={"color": COLORS[series.part]},
                row=1,
                col=number,
            )
    figure.update_xaxes(type="log")
    figure.update_yaxes(type="log", title={"text": "seconds"}, col=1)
    figure.update_layout(title={"text": "Time against size: a slope of 1 is linear growth"}, template="plotly_white")
    figure.write_html(path, include_plotlyjs=True)
