"""Panels of a study as one interactive page that opens offline: plotly.js is inside, and no request leaves it.

All text is escaped, both for HTML and for the small markup language of plotly's labels.
"""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from warp_core.evaluation.offline import offline_page
from warp_core.evaluation.series import plain
from warp_core.studies.figures import Panel
from warp_core.workspace.publish import write_text_atomic

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["study_figure", "write_study_html"]

_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
_STYLE = f"""
body {{ margin: 0; background: #fff; color: #1f2328; font: 15px/1.5 {_FONT}; }}
main {{ max-width: 1180px; margin: 0 auto; padding: 28px 24px 48px; }}
h1 {{ font-size: 22px; font-weight: 600; margin: 0 0 4px; }}
.mild {{ color: #59636e; font-size: 13px; }}
.table {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }}
th, td {{ padding: 5px 10px; text-align: left; border-bottom: 1px solid #eceff2; }}
.held {{ color: #1a7f37; }} .failed {{ color: #cf222e; }} .undecided {{ color: #59636e; }}
"""


def write_study_html(
    path: Path,
    panels: Sequence[Panel],
    *,
    title: str,
    observation: str,
    verdict: str,
    sentence: str,
    claims: Sequence[tuple[str, str]],
    about: str,
) -> None:
    """Write the page: observation, verdict, panels, a row per claim (verdict, sentence), how it was measured. 5 MB.

    Raises WorkspaceError if the file cannot be written.
    """
    plot = study_figure(panels).to_html(
        full_html=False,
        include_plotlyjs=True,
        div_id="study",
        config={"displaylogo": False, "responsive": True},
    )
    rows = "\n".join(
        f'<tr><td class="{escape(kind)}">{escape(kind)}</td><td>{escape(text)}</td></tr>' for kind, text in claims
    )
    write_text_atomic(
        path,
        offline_page(
            plain(title),
            style=_STYLE,
            main=f"""<p>{escape(observation)}.</p>
<p class="{escape(verdict)}">{escape(sentence)}</p>
{plot}
<div class="table"><table><tbody>
{rows}
</tbody></table></div>
<p class="mild">{escape(about)}</p>""",
        ),
    )


def study_figure(panels: Sequence[Panel]) -> "go.Figure":
    """The panels under each other, one legend; a name is switched on and off in all of them together."""
    from plotly.subplots import make_subplots  # here, because it takes long and most commands do without

    figure = make_subplots(rows=max(1, len(panels)), cols=1, vertical_spacing=0.28 / max(2, len(panels)))
    seen: set[str] = set()
    for row, panel in enumerate(panels, start=1):
        for line in panel.lines:
            bars = {"array": list(line.y_se), "thickness": 1, "width": 0} if line.y_se else None
            figure.add_scatter(
                x=list(line.x),
                y=list(line.y),
                error_y=bars,
                mode="lines+markers",
                line={"color": line.color, "width": 1.8, "dash": line.dash},
                marker={"size": 6},
                name=_markup(line.name),
                legendgroup=_markup(line.name),
                showlegend=line.in_legend and line.name not in seen,
                hovertext=[_markup(note) for note in line.notes] or None,
                row=row,
                col=1,
            )
            seen.add(line.name)
        figure.update_xaxes(title={"text": _markup(panel.x_label)}, gridcolor="#eceff2", row=row, col=1)
        figure.update_yaxes(title={"text": _markup(panel.y_label)}, gridcolor="#eceff2", row=row, col=1)
    figure.update_layout(
        template=None,
        height=420 * max(1, len(panels)),
        font={"family": _FONT, "size": 13, "color": "#1f2328"},
        plot_bgcolor="#fff",
        margin={"l": 64, "r": 16, "t": 24, "b": 48},
    )
    return figure


def _markup(text: str) -> str:
    """Text for plotly, whose labels know a few tags and &lt; &gt; &amp; but not &quot;."""
    return escape(plain(text), quote=False)
