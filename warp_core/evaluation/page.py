"""The front as one HTML page that opens offline: an interactive plot with plotly.js inside, and a table of the points.

Nothing in the page comes from anywhere else: a content security policy forbids every request. All text that a user or a
model wrote is escaped, both for HTML and for the small markup language of plotly's labels.
"""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from warp_core.evaluation.offline import offline_page
from warp_core.evaluation.paired import Comparison, difference_note, difference_rows
from warp_core.evaluation.points import Point
from warp_core.evaluation.series import (
    Front,
    Series,
    how_measured,
    hypervolume_note,
    kl_range,
    label,
    make_front,
    number,
    plain,
    with_error,
)
from warp_core.workspace.publish import write_text_atomic

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["front_figure", "write_front_html"]

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
INK, MUTED, GRID = "#1f2328", "#59636e", "#eceff2"
_DASHES = {"slerp": "solid", "lerp": "dash", "slerp-weights": "dot"}
_SYMBOLS = {"slerp": "circle", "lerp": "circle-open", "slerp-weights": "square-open"}
_FADED = 0.4
_PLUS_MINUS = "\u00b1"
_STYLE = f"""
:root {{ color-scheme: light; }}
body {{ margin: 0; background: #fff; color: {INK}; font: 15px/1.5 {FONT}; }}
main {{ max-width: 1080px; margin: 0 auto; padding: 28px 24px 48px; }}
h1 {{ font-size: 22px; font-weight: 600; margin: 0 0 4px; overflow-wrap: anywhere; }}
.caption {{ color: {MUTED}; font-size: 13px; margin: 0 0 12px; }}
.plot {{ height: 560px; }}
.table {{ overflow-x: auto; margin-top: 20px; }}
table {{ border-collapse: collapse; width: 100%; font-size: 13px; font-variant-numeric: tabular-nums; }}
th {{ text-align: right; font-weight: 600; color: {MUTED}; border-bottom: 1px solid #c8ced5; }}
th, td {{ padding: 6px 10px; white-space: nowrap; }}
td {{ text-align: right; border-bottom: 1px solid {GRID}; }}
th:first-child, td:first-child {{ text-align: left; padding-left: 2px; }}
td:first-child {{ max-width: 280px; overflow: hidden; text-overflow: ellipsis; }}
tr.dominated td {{ color: #7a838d; }}
.dot {{ display: inline-block; width: 9px; height: 9px; border-radius: 50%; margin-right: 8px; }}
.note {{ color: {MUTED}; font-size: 13px; margin: 24px 0 0; }}
@media print {{ main {{ padding: 0; }} .modebar {{ display: none; }} tr {{ break-inside: avoid; }} }}
"""


def write_front_html(
    path: Path,
    points: Sequence[Point],
    *,
    title: str = "Reward against KL",
    reference: tuple[float, float] | None = None,
    reward_label: str = "Reward",
    comparisons: Mapping[str, Comparison] | None = None,
) -> None:
    """Write the page: title, caption, plot (`front_figure`), table. About 5 MB, nearly all of it plotly.js.

    reference: (KL, reward) of the hypervolume, by default `fronts.default_reference`. reward_label: the reward axis.
    comparisons: a second table, of the differences between points (see `paired.compare_front`).
    Raises ValueError if there is no measured point, WorkspaceError if the file cannot be written.
    """
    front, title = make_front(points, reference=reference), plain(title)
    plot = _figure(front, reward_label).to_html(
        full_html=False,
        include_plotlyjs=True,
        div_id="front",
        config={
            "displaylogo": False,
            "responsive": True,
            "modeBarButtons": [["zoom2d", "pan2d", "resetScale2d", "toImage"]],
        },
    )
    caption = f"{how_measured(front)}; bars: one standard error. {hypervolume_note(front)}"
    write_text_atomic(
        path,
        offline_page(
            title,
            style=_STYLE,
            main=f"""<p class="caption">{escape(caption)}</p>
<div class="plot">{plot}</div>
{_table(front)}
{_differences(front, comparisons or {})}""",
        ),
    )


def front_figure(
    points: Sequence[Point], *, reference: tuple[float, float] | None = None, reward_label: str = "Reward"
) -> "go.Figure":
    """The plot alone: reward against KL with error bars, LITI curves, RL runs, the Pareto front and its hypervolume.

    Raises ValueError if there is no measured point.
    """
    return _figure(make_front(points, reference=reference), reward_label)


def _figure(front: Front, reward_label: str) -> "go.Figure":
    import plotly.graph_objects as go  # here, because it takes long and the terminal table does without

    figure = go.Figure()
    _add_pareto(figure, front)
    for kind in ("training", "merge", "policy", "sft"):
        for series in front.series:
            if series.kind == kind:
                _add_series(figure, front, series)
    headed: set[str] = set()
    for trace in figure.data:
        if trace.showlegend is not False and trace.legendgroup not in headed:
            headed.add(trace.legendgroup)
            trace.legendgrouptitle = {"text": f"<b>{_markup(trace.legendgroup)}</b>"}
    _lay_out(figure, front, reward_label)
    return figure


def _add_pareto(figure: "go.Figure", front: Front) -> None:
    """The staircase of the front, and the area that the hypervolume measures, shaded."""
    kl_ref, reward_ref = front.reference
    inside = [p for p in front.pareto if p.kl < kl_ref and p.reward > reward_ref]
    xs, ys = _staircase(inside, kl_ref, reward_ref)
    common = {"hoverinfo": "skip", "legendgroup": "Reference"}
    shade = {"fill": "toself", "fillcolor": "rgba(31,35,40,0.045)", "line": {"width": 0}, "mode": "lines"}
    if inside:
        figure.add_scatter(x=[*xs, kl_ref, xs[0]], y=[*ys, reward_ref, reward_ref], showlegend=False, **shade, **common)
    line_x, line_y = _staircase(front.pareto, None, None)
    line = {"color": "rgba(31,35,40,0.45)", "width": 1.2}
    figure.add_scatter(x=line_x, y=line_y, mode="lines", line=line, name="Pareto front", legendrank=11, **common)


def _staircase(
    pareto: Sequence[Point], kl_end: float | None, reward_start: float | None
) -> tuple[list[float], list[float]]:
    """Corners of the staircase: up at each point, then right to the next; optionally from below and to an end."""
    xs, ys = list[float](), list[float]()
    if pareto and reward_start is not None:
        xs, ys = [pareto[0].kl], [reward_start]
    for point in pareto:
        if xs:
            xs.append(point.kl)
            ys.append(ys[-1])
        xs.append(point.kl)
        ys.append(point.reward)
    if xs and kl_end is not None:
        xs.append(kl_end)
        ys.append(ys[-1])
    return xs, ys


def _add_series(figure: "go.Figure", front: Front, series: Series) -> None:
    """One trace: the line along `series.path`, and a marker with error bars on every member."""
    quiet = series.kind == "training"
    line, marker = _line(series), _marker(front, series)
    # The legend copies the look of the first place: an empty one, so that a faded first point does not fade it.
    spots = [None, *(series.path or series.members)]
    members = {id(p) for p in series.members}
    bars = {"color": _rgba(series.color, 0.32), "thickness": 1, "width": 0}
    figure.add_scatter(
        x=[p and p.kl for p in spots],
        y=[p and p.reward for p in spots],
        error_x=None if quiet else {"array": [p.kl_se or 0 if p and id(p) in members else 0 for p in spots], **bars},
        error_y=None
        if quiet
        else {"array": [p.reward_se or 0 if p and id(p) in members else 0 for p in spots], **bars},
        mode="lines+markers" if len(series.path) > 1 else "markers",
        line=line,
        marker=marker | {"color": [_marker_color(front, series, p) for p in spots]},
        hovertext=[_hover(p, dominated=front.is_dominated(p)) if p else "" for p in spots],
        hoverinfo="text",
        legendgroup=series.group,
        name=_markup(series.name[:28]),
        legendrank={"sft": 10, "merge": 20, "policy": 30}.get(series.kind, 40),
    )


def _line(series: Series) -> dict[str, object]:
    if series.kind == "training":
        return {"color": _rgba(series.color, 0.4), "width": 1}
    return {"color": series.color, "width": 1.8, "dash": _DASHES.get(series.method or "", "dot")}


def _marker(front: Front, series: Series) -> dict[str, object]:
    if series.kind == "training":
        return {"size": 3.5}
    by_kind = {"sft": ("star", 15), "policy": ("diamond", 10)}
    symbol, size = by_kind.get(series.kind, (_SYMBOLS.get(series.method or "", "square-open"), 8))
    if series.kind == "merge" and symbol == "circle" and (series.members[0].recipe or {}).get("towards"):
        symbol = "square"
    outline = {"width": 1.6, "color": series.color} if "open" in symbol else {"width": 1, "color": "#fff"}
    return {"symbol": symbol, "size": size, "line": outline, "opacity": 1}


def _marker_color(front: Front, series: Series, point: Point | None) -> str:
    if point is None or (series.kind != "training" and any(point is p for p in series.members)):
        faded = point is not None and front.is_dominated(point)
        return _rgba(series.color, _FADED) if faded else series.color
    return _rgba(series.color, 0.55 if series.kind == "training" else 0.0)


def _hover(point: Point, *, dominated: bool = False) -> str:
    """What the pointer shows, in plotly's markup: every text in it is escaped."""
    head = label(point)
    if point.eta is not None:
        head += f", eta {point.eta:.4g}"
    lines = [f"<b>{_markup(head)}</b>"]
    if point.iteration is not None:
        lines.append(f"iteration {point.iteration}")
    weights = (point.recipe or {}).get("weights") or []
    if weights:
        lines.append("weights " + _markup(" / ".join(f"{float(w):.3g}" for w in weights)))
    lines += [
        f"reward {with_error(point.reward, point.reward_se, sign=_PLUS_MINUS)}",
        f"KL {with_error(point.kl, point.kl_se, sign=_PLUS_MINUS)} nats",
        f"length {number(point.length)} tokens, n {point.n}",
    ]
    return "<br>".join(lines + (["dominated"] if dominated else []))


def _lay_out(figure: "go.Figure", front: Front, reward_label: str) -> None:
    left, right = kl_range(front)
    axis = {"gridcolor": GRID, "zeroline": False, "linecolor": "#c8ced5", "ticks": "outside", "ticklen": 4}
    axis |= {"tickcolor": "#c8ced5", "tickfont": {"color": MUTED}}
    title = {"standoff": 12, "font": {"size": 13}}
    figure.update_layout(
        template=None,
        font={"family": FONT, "size": 13, "color": INK},
        paper_bgcolor="#fff",
        plot_bgcolor="#fff",
        margin={"l": 64, "r": 16, "t": 34, "b": 56},
        hovermode="closest",
        hoverlabel={
            "bgcolor": "#fff",
            "bordercolor": "#c8ced5",
            "font": {"color": INK, "size": 12, "family": FONT},
            "align": "left",
        },
        legend={
            "groupclick": "toggleitem",
            "tracegroupgap": 14,
            "font": {"size": 12},
            "itemsizing": "trace",
            "x": 1.02,
        },
    )
    figure.update_xaxes(
        title={"text": "KL to the SFT policy (nats per completion)", **title},
        range=[left - 0.025 * right, right],
        **axis,
    )
    figure.update_yaxes(title={"text": _markup(plain(reward_label)[:60]), **title}, **axis)


def _table(front: Front) -> str:
    heads = ["Model", "Iteration", "eta", "Reward", "KL (nats)", "Tokens", "Diversity", "n", "Front"]
    rows = []
    for point, flag in zip(front.points, front.dominated, strict=True):
        cells = [
            with_error(point.reward, point.reward_se, sign=_PLUS_MINUS),
            with_error(point.kl, point.kl_se, sign=_PLUS_MINUS),
            number(point.length),
            number(point.diversity),
            str(point.n),
            "" if flag else "\u2713",
        ]
        rows.append(_row(front, point, cells, "dominated" if flag else "front"))
    return _as_table(heads, rows)


def _differences(front: Front, comparisons: Mapping[str, Comparison]) -> str:
    note = difference_note(comparisons)
    if not note:
        return ""
    heads = ["Model", "Iteration", "eta", "Reward", "KL (nats)", "Step: reward", "Step: KL"]
    rows = [
        _row(front, point, cells, "difference")
        for point, cells in difference_rows(front, comparisons, sign=_PLUS_MINUS)
    ]
    return f'<p class="note">{escape(note)}</p>\n{_as_table(heads, rows)}'


def _row(front: Front, point: Point, cells: Sequence[str], look: str) -> str:
    """A row that begins with what the point is: its colour and name, iteration, eta."""
    color = next(s.color for s in front.series if any(p is point for p in s.members))
    name = f'<td><span class="dot" style="background:{color}"></span>{escape(label(point))}</td>'
    place = ["-" if point.iteration is None else str(point.iteration), "-" if point.eta is None else f"{point.eta:.4g}"]
    cell_text = "".join(f"<td>{escape(cell)}</td>" for cell in [*place, *cells])
    return f'<tr class="{look}">{name}{cell_text}</tr>'


def _as_table(heads: Sequence[str], rows: Sequence[str]) -> str:
    header = "".join(f"<th>{head}</th>" for head in heads)
    return (
        f'<div class="table"><table><thead><tr>{header}</tr></thead><tbody>\n'
        + "\n".join(rows)
        + "\n</tbody></table></div>"
    )


def _markup(text: str) -> str:
    """Text for plotly, whose labels know a few tags and &lt; &gt; &amp; but not &quot;."""
    return escape(text, quote=False)


def _rgba(color: str, alpha: float) -> str:
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha})"
