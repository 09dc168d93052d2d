"""Panels of a study as one small SVG picture: no script, readable on light and dark pages."""

import math
from collections.abc import Sequence
from html import escape
from pathlib import Path

from warp_core.evaluation.series import plain
from warp_core.studies.figures import Line, Panel
from warp_core.workspace.publish import write_text_atomic

__all__ = ["write_study_svg"]

_WIDE, _HIGH, _LEFT, _BOTTOM, _TOP = 430, 330, 64, 52, 16
_ROW = 18
_DASHES = {"dash": "6 4", "dot": "2 3"}
_STYLE = """
text { font: 12px system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif; fill: #1f2328 }
.title { font-size: 16px; font-weight: 600 } .mild { fill: #59636e } .grid { stroke: #59636e; stroke-opacity: .18 }
@media (prefers-color-scheme: dark) { text { fill: #e6edf3 } .mild { fill: #9198a1 } .grid { stroke: #9198a1 } }
"""


def write_study_svg(path: Path, panels: Sequence[Panel], *, title: str, caption: str) -> None:
    """Write the panels side by side, two in a row, with one legend below.

    Raises WorkspaceError if the file cannot be written.
    """
    columns = min(2, max(1, len(panels)))
    rows = math.ceil(len(panels) / columns)
    body = [
        _panel(panel, left=(place % columns) * _WIDE, top=44 + (place // columns) * _HIGH)
        for place, panel in enumerate(panels)
    ]
    width = max(1, columns) * _WIDE + 10
    legend, foot = _legend(panels, top=60 + rows * _HIGH, width=width)
    lines = [plain(line) for line in _wrapped(caption, min(width // 6, 120))]
    said = [
        f'<text class="mild" x="16" y="{foot + _ROW * i}" style="font-size:11px">{escape(line)}</text>'
        for i, line in enumerate(lines)
    ]
    height = foot + _ROW * len(lines)
    write_text_atomic(
        path,
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">'
        f"<title>{escape(plain(title))}</title><style>{_STYLE}</style>\n"
        f'<text class="title" x="16" y="26">{escape(plain(title))}</text>\n'
        + "\n".join([*body, *legend, *said])
        + "\n</svg>\n",
    )


def _panel(panel: Panel, *, left: int, top: int) -> str:
    x0, x1, y0, y1 = left + _LEFT, left + _WIDE - 12, top + _HIGH - _BOTTOM, top + _TOP
    x_ticks, x_low, x_high = _ticks([x for line in panel.lines for x in line.x])
    y_ticks, y_low, y_high = _ticks([end for line in panel.lines for y, se in _bars(line) for end in (y - se, y + se)])

    def at(x: float, y: float) -> tuple[float, float]:
        across, up = (x - x_low) / (x_high - x_low), (y - y_low) / (y_high - y_low)
        return round(x0 + across * (x1 - x0), 1), round(y0 - up * (y0 - y1), 1)

    parts = []
    for tick in x_ticks:
        x, _ = at(tick, y_low)
        parts.append(f'<path class="grid" d="M{x} {y1}V{y0}"/>')
        parts.append(f'<text class="mild" x="{x}" y="{y0 + 16}" text-anchor="middle">{tick:g}</text>')
    for tick in y_ticks:
        _, y = at(x_low, tick)
        parts.append(f'<path class="grid" d="M{x0} {y}H{x1}"/>')
        parts.append(f'<text class="mild" x="{x0 - 6}" y="{y + 4}" text-anchor="end">{tick:g}</text>')
    middle, up = (x0 + x1) / 2, (y0 + y1) / 2
    parts.append(f'<text x="{middle}" y="{y0 + 36}" text-anchor="middle">{escape(plain(panel.x_label))}</text>')
    turned = f"translate({left + 14} {up}) rotate(-90)"
    parts.append(f'<text transform="{turned}" text-anchor="middle">{escape(plain(panel.y_label))}</text>')
    for line in panel.lines:
        spots = [at(x, y) for x, y in zip(line.x, line.y, strict=True)]
        corners = " ".join(f"{x},{y}" for x, y in spots)
        parts.append(f'<polyline points="{corners}" fill="none" {_stroke(line)}/>')
        parts += [f'<circle cx="{x}" cy="{y}" r="2.6" fill="{line.color}"/>' for x, y in spots]
        for x, (y, se) in zip(line.x, _bars(line), strict=True):
            (across, low), (_, high) = at(x, y - se), at(x, y + se)
            if low != high:
                parts.append(f'<path d="M{across} {low}V{high}" stroke="{line.color}" stroke-opacity=".5"/>')
    return "".join(parts)


def _bars(line: Line) -> list[tuple[float, float]]:
    """The values of a line and their standard errors, 0 where there is none."""
    return list(zip(line.y, line.y_se or [0.0] * len(line.y), strict=True))


def _stroke(line: Line) -> str:
    dash = f' stroke-dasharray="{_DASHES[line.dash]}"' if line.dash in _DASHES else ""
    return f'stroke="{line.color}" stroke-width="1.6"{dash}'


def _legend(panels: Sequence[Panel], *, top: int, width: int) -> tuple[list[str], int]:
    entries = {line.name: line for panel in panels for line in panel.lines if line.in_legend}
    across = max(1, width // 215)
    found = []
    for place, line in enumerate(entries.values()):
        x, y = 16 + (place % across) * 215, top + (place // across) * _ROW
        found.append(f'<path d="M{x} {y - 4}h26" {_stroke(line)}/>')
        found.append(f'<text x="{x + 34}" y="{y}">{escape(plain(line.name)[:28])}</text>')
    return found, top + math.ceil(len(entries) / across) * _ROW + 10


def _ticks(values: Sequence[float]) -> tuple[list[float], float, float]:
    """Round ticks, and the range to draw with a little room."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    room = 0.04 * (high - low) or 0.5
    low, high = low - room, high + room
    power = 10.0 ** math.floor(math.log10((high - low) / 4))
    step = next(power * m for m in (1, 2, 5, 10) if (high - low) / (power * m) <= 7)
    return [round(i * step, 10) for i in range(math.ceil(low / step), math.floor(high / step) + 1)], low, high


def _wrapped(text: str, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + len(word) >= width:
            lines.append("")
        lines[-1] += f" {word}" if lines[-1] else word
    return lines
