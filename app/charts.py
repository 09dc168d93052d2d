"""What the plotly charts of the pages share: a quiet layout that follows the theme, and labels that are text.

Colours come from the app's theme, so that traces take none of their own: the n-th trace has the n-th colour.
"""

from typing import Any

import plotly.graph_objects as go
import plotly.io

# Importing it makes the template of the app's theme known to plotly; otherwise the first figure misses it.
import streamlit.elements.plotly_chart  # noqa: F401

__all__ = ["CONFIG", "SEQUENTIAL", "figure", "plain"]

SEQUENTIAL = "Cividis"
THEME_COLORS = 6
"""Of `chartCategoricalColors` in app/.streamlit/config.toml."""
CONFIG = {"displaylogo": False, "modeBarButtonsToRemove": ["select2d", "lasso2d", "autoScale2d"]}
"""For `st.plotly_chart(config=...)`."""


def plain(text: str) -> str:
    """Make text that somebody else wrote safe as a label: plotly reads labels as HTML."""
    printable = "".join(character if character.isprintable() else " " for character in text)
    return printable.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def figure(*traces: Any, height: int, x: str, y: str, legend: bool = True, **layout: Any) -> go.Figure:
    """Return a figure with axes of these titles (text of ours), ready for `st.plotly_chart(theme="streamlit")`.

    Args:
        traces: of plotly.graph_objects.
        height: in pixels, so that nothing jumps while it loads.
        x: title of the x axis.
        y: title of the y axis.
        legend: whether there is one, above the plot.
        layout: further fields of plotly's layout.
    """
    made = go.Figure(list(traces))
    made.update_layout(
        template="streamlit",
        # Streamlit's template has ten places for colours of the theme and plotly refuses them all if one stays empty.
        colorway=plotly.io.templates["streamlit"].layout.colorway[:THEME_COLORS],
        height=height,
        margin={"l": 10, "r": 10, "t": 34 if legend else 10, "b": 10},
        showlegend=legend,
        legend={"orientation": "h", "yanchor": "bottom", "y": 1.0, "xanchor": "left", "x": 0.0, "traceorder": "normal"},
        hoverlabel={"namelength": -1},
        **layout,
    )
    made.update_xaxes(title={"text": x}, automargin=True)
    made.update_yaxes(title={"text": y}, automargin=True)
    return made
