"""The front as a small SVG picture for a README: no dependency, no script, readable on light and dark pages.

The page (`page.py`) is the full account; the picture has no hover and no hypervolume, and names RL runs together.
"""

import math
from collections.abc import Sequence
from html import escape
from pathlib import Path

from warp_core.evaluation.points import Point
from warp_core.evaluation.series import Front, Series, how_measured, kl_range, make_front, plain
from warp_core.workspace.publish import write_text_atomic

__all__ = ["write_front_svg"]

_WIDTH, _HEIGHT = 820, 470
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 620, 54, 396  # the frame of the plot, in pixels
_DASHES = {"lerp": "6 4", "slerp-weights": "2 3"}
_STYLE = """
text { font: 12px system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif; fill: #1f2328 }
.title { font-size: 16px; font-weight: 600 } .head { font-weight: 600 } .mild { fill: #59636e }
.ink { fill: #1f2328 } .grid { stroke: #59636e; stroke-opacity: .18 } .front { stroke: #59636e; fill: none }
.hollow { fill: #fff }
@media (prefers-color-scheme: dark) {
text, .ink { fill: #e6edf3 } .mild { fill: #9198a1 } .grid, .front { stroke: #9198a1 } .hollow { fill: #0d1117 } }
"""


def write_front_svg(
    path: Path, points: Sequence[Point], *, title: str = "Reward against KL", reward_label: str = "Reward"
) -> None:
    """Write the picture, 820 x 470: SFT star, policies, LITI curves, RL runs, error bars, Pareto front, legend.

    Raises ValueError if there is no measured point, WorkspaceError if the file cannot be written.
    """
    front, title = make_front(points), plain(title)
    plane = _Plane(front)
    frame = f"M{_LEFT} {_TOP - 10}H{_RIGHT}V{_BOTTOM + 10}H{_LEFT}z"
    body = [*_axes(plane, plain(reward_label)), f'<clipPath id="frame"><path d="{frame}"/></clipPath>']
    body += ['<g clip-path="url(#frame)">', _staircase(front, plane)]
    for kind in ("training", "merge", "policy", "sft"):
        body += [_series(series, front, plane) for series in front.series if series.kind == kind]
    legend, end = _legend(front)
    foot = max(_HEIGHT, end + 16)
    how = escape(f"{how_measured(front)}; bars: one standard error.")
    write_text_atomic(
        path,
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {foot}" role="img">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style>\n"
        f'<text class="title" x="{_LEFT}" y="28">{escape(title)}</text>\n'
        + "\n".join([*body, "</g>", *legend])
        + f'\n<text class="mild" x="{_LEFT}" y="{_HEIGHT - 10}" style="font-size:11px">{how}</text>\n</svg>\n',
    )


class _Plane:
    """From (KL, reward) to pixels, with round ticks on both axes."""

    def __init__(self, front: Front) -> None:
        left, right = kl_range(front)
        rewards = [p.reward for s in front.series for p in s.path if p.kl <= right]
        rewards += [p.reward + sign * (p.reward_se or 0) for p in front.points for sign in (-1, 1)]
        self.kl_ticks, self.kl_range = _ticks(left, right)
        self.reward_ticks, self.reward_range = _ticks(min(rewards), max(rewards))

    def x(self, kl: float) -> float:
        low, high = self.kl_range
        return round(_LEFT + 12 + (kl - low) / (high - low) * (_RIGHT - _LEFT - 12), 1)

    def y(self, reward: float) -> float:
        low, high = self.reward_range
        return round(_BOTTOM - (reward - low) / (high - low) * (_BOTTOM - _TOP), 1)


def _ticks(low: float, high: float) -> tuple[list[float], tuple[float, float]]:
    """Round ticks inside [low, high] (at most 8), and the range to draw."""
    span = (high - low) or 1.0
    power = 10.0 ** math.floor(math.log10(span / 4))
    step = next(power * m for m in (1, 2, 5, 10) if span / (power * m) <= 7)
    ticks = [round(i * step, 10) for i in range(math.ceil(low / step), math.floor((low + span) / step) + 1)]
    return ticks, (low, low + span)


def _axes(plane: _Plane, reward_label: str) -> list[str]:
    lines = []
    for kl in plane.kl_ticks:
        x = plane.x(kl)
        lines.append(f'<path class="grid" d="M{x} {_TOP}V{_BOTTOM}"/>')
        lines.append(f'<text class="mild" x="{x}" y="{_BOTTOM + 18}" text-anchor="middle">{kl:g}</text>')
    for reward in plane.reward_ticks:
        y = plane.y(reward)
        lines.append(f'<path class="grid" d="M{_LEFT} {y}H{_RIGHT}"/>')
        lines.append(f'<text class="mild" x="{_LEFT - 8}" y="{y + 4}" text-anchor="end">{reward:g}</text>')
    middle = (_LEFT + _RIGHT) / 2
    lines.append(
        f'<text x="{middle}" y="{_BOTTOM + 40}" text-anchor="middle">KL to the SFT policy (nats per completion)</text>'
    )
    up = (_TOP + _BOTTOM) / 2
    lines.append(f'<text transform="translate(18 {up}) rotate(-90)" text-anchor="middle">{escape(reward_label)}</text>')
    return lines


def _staircase(front: Front, plane: _Plane) -> str:
    steps = [f"H{plane.x(p.kl)}V{plane.y(p.reward)}" for p in front.pareto[1:]]
    first = front.pareto[0]
    return f'<path class="front" d="M{plane.x(first.kl)} {plane.y(first.reward)}{"".join(steps)}" stroke-opacity=".7"/>'


def _series(series: Series, front: Front, plane: _Plane) -> str:
    quiet = series.kind == "training"
    parts = []
    if len(series.path) > 1:
        corners = " ".join(f"{plane.x(p.kl)},{plane.y(p.reward)}" for p in series.path)
        parts.append(f'<polyline points="{corners}" {_stroke(series)}/>')
    for p in series.members:
        x, y = plane.x(p.kl), plane.y(p.reward)
        if not quiet:
            wide, high = plane.x(p.kl + (p.kl_se or 0)) - x, y - plane.y(p.reward + (p.reward_se or 0))
            bars = f"M{x - wide:.1f} {y}h{2 * wide:.1f}M{x} {y - high:.1f}v{2 * high:.1f}"
            parts.append(f'<path d="{bars}" stroke="{series.color}" class="bar" stroke-opacity=".4"/>')
        parts.append(_mark(series, x, y, 0.4 if quiet or front.is_dominated(p) else 1.0))
    return "".join(parts)


def _stroke(series: Series) -> str:
    if series.kind == "training":
        return f'fill="none" stroke="{series.color}" stroke-opacity=".4"'
    dash = _DASHES.get(series.method or "")
    return f'fill="none" stroke="{series.color}" stroke-width="1.8"' + (f' stroke-dasharray="{dash}"' if dash else "")


def _mark(series: Series, x: float, y: float, opacity: float) -> str:
    if series.kind == "sft":
        corners = [
            (r * math.sin(i * math.pi / 5), -r * math.cos(i * math.pi / 5))
            for i in range(10)
            for r in [9 - 5.2 * (i % 2)]
        ]
        return f'<polygon class="ink" points="{" ".join(f"{x + a:.1f},{y + b:.1f}" for a, b in corners)}"/>'
    fill = f'fill="{series.color}" fill-opacity="{opacity}"'
    if series.kind == "policy":
        return f'<path d="M{x} {y - 5.5}l5.5 5.5l-5.5 5.5l-5.5 -5.5z" {fill}/>'
    if series.kind == "training":
        return f'<circle cx="{x}" cy="{y}" r="1.6" {fill}/>'
    if series.method in _DASHES:
        stroke = f'stroke="{series.color}" stroke-width="1.6" stroke-opacity="{opacity}"'
        return f'<circle class="hollow" cx="{x}" cy="{y}" r="3.6" {stroke}/>'
    if (series.members[0].recipe or {}).get("towards"):
        return f'<rect x="{x - 3.6}" y="{y - 3.6}" width="7.2" height="7.2" {fill}/>'
    return f'<circle cx="{x}" cy="{y}" r="4" {fill}/>'


def _legend(front: Front) -> tuple[list[str], int]:
    """Headings and entries, and where they end; the RL runs of an iteration share one entry."""
    x, y, lines = _RIGHT + 24, _TOP + 8, list[str]()
    seen: set[tuple[str, str]] = set()
    group = ""
    for series in front.series:
        name = "RL runs" if series.kind == "training" else series.name
        if (series.group, name) in seen:
            continue
        seen.add((series.group, name))
        if series.group != group:
            y += 8 if group else 0
            lines.append(f'<text class="head" x="{x}" y="{y}">{escape(series.group)}</text>')
            group, y = series.group, y + 19
        if len(series.path) > 1:
            lines.append(f'<path d="M{x} {y - 4}h26" {_stroke(series)}/>')
        lines.append(_mark(series, x + 13, y - 4, 1.0) + f'<text x="{x + 34}" y="{y}">{escape(name[:22])}</text>')
        y += 18
        if series.kind == "sft":
            lines.append(f'<path class="front" d="M{x} {y - 4}h26"/><text x="{x + 34}" y="{y}">Pareto front</text>')
            y += 18
    return lines, y
