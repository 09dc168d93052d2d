"""The Studies page: the experiments of the paper that were run here, each with its verdict, figures and numbers."""

from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from app.charts import CONFIG, figure, plain
from app.engine import engine
from app.ui import empty_state, markdown_escaped
from warp_core.service.documents import StudyClaim, StudyDocument, StudyLine, StudyPanel, StudySummary

__all__ = ["render"]

COLORS = {"held": "green", "failed": "red", "undecided": "gray"}
PLOT_PX = 400
HOW_TO_RUN = "warp-core study all --budget-minutes 60"


def render() -> None:
    """Draw the page."""
    st.title("Studies", anchor=False)
    studies = engine().studies()
    if not studies:
        empty_state(
            "No study was run yet",
            "Each tests an observation of the WARP paper on this machine; a run that is stopped goes on later. In a "
            "terminal:",
        )
        st.code(HOW_TO_RUN, language=None)
        return
    left, right = st.columns([3, 8], gap="large")
    with left:
        chosen = _choose(studies)
    with right:
        _show(engine().study(chosen.name, chosen.scale))


def _choose(studies: Sequence[StudySummary]) -> StudySummary:
    number: int = st.radio(
        "Study",
        range(len(studies)),
        format_func=lambda index: (
            f"{markdown_escaped(studies[index].title)} ({markdown_escaped(studies[index].scale)})"
        ),
        captions=[_caption(study) for study in studies],
        key="study",
        label_visibility="collapsed",
    )
    return studies[number]


def _caption(study: StudySummary) -> str:
    state = "" if study.is_complete else ", not finished"
    return f":{COLORS[study.verdict]}[{study.verdict}]{state} \u00b7 {markdown_escaped(study.figure)}"


def _show(study: StudyDocument) -> None:
    about = study.summary
    st.subheader(markdown_escaped(f"{about.title} ({about.figure})"), anchor=False)
    st.text(f"Tested: {about.observation}.")
    with st.container(border=True):
        st.text(about.sentence)
    for index, panel in enumerate(study.panels):
        st.plotly_chart(_plot(panel), theme="streamlit", config=CONFIG, key=f"study-{about.name}-{about.scale}-{index}")
    _claims("Claims", study.claims)
    _claims("Is the reward that was gained real? A second judge", study.judge)
    st.caption(markdown_escaped(study.made))
    if study.files:
        st.caption("Files, on the engine's machine")
        st.code("\n".join(f"{study.folder}/{name}" for name in study.files), language=None, wrap_lines=True)


def _claims(title: str, claims: tuple[StudyClaim, ...]) -> None:
    if claims:
        st.markdown(f"**{title}**")
        rows = pd.DataFrame({"verdict": [c.verdict for c in claims], "claim": [c.sentence for c in claims]})
        st.dataframe(
            rows, hide_index=True, width="stretch", column_config={"verdict": st.column_config.Column(width=80)}
        )


def _plot(panel: StudyPanel) -> go.Figure:
    seen: set[str] = set()
    traces = []
    for line in panel.lines:
        traces.append(_trace(line, in_legend=line.in_legend and line.name not in seen))
        seen.add(line.name)
    return figure(*traces, height=PLOT_PX, x=plain(panel.x_label), y=plain(panel.y_label))


def _trace(line: StudyLine, *, in_legend: bool) -> go.Scatter:
    return go.Scatter(
        x=line.x_P,
        y=line.y_P,
        error_y={"array": line.y_se_P, "thickness": 1, "width": 0} if line.y_se_P else None,
        mode="lines+markers",
        line={"color": line.color, "width": 1.8, "dash": line.dash},
        marker={"size": 6},
        name=plain(line.name),
        legendgroup=plain(line.name),
        showlegend=in_legend,
        hovertext=[plain(note) for note in line.notes_P] or None,
    )
