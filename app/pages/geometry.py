"""The Geometry page: angles and norms of task vectors, per layer and pair, and what they mean for the merge."""

import math
from typing import Any, cast

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from app.charts import CONFIG, SEQUENTIAL, figure, plain
from app.engine import engine, session_id
from app.geometry_facts import angles_LP, facts_of, full_angles_LP, pairs_of, short_names, table, what_it_means
from app.jobs import find_job, follow
from app.ui import empty_state, error_box, markdown_escaped
from app.view import View, current_view
from warp_core.errors import WarpError
from warp_core.service.documents import GeometryDocument
from warp_core.service.protocol import GeometryRequest, Granularity, JobState

__all__ = ["render"]

UNITS: dict[Granularity, str] = {"layer": "layer", "tensor": "tensor", "model": "model"}
MAX_SEPARATE = 6
"""Pairs that get a colour each in the histogram; more are pooled."""
MAX_HEATMAP = 400
"""Columns that a heat map can show."""
_RESULTS, _JOBS, _PROBLEM = "geometry-results", "geometry-jobs", "geometry-problem"


def render() -> None:
    """Draw the page."""
    st.title("Geometry", anchor=False)
    view = current_view()
    if not view.has_selection:
        empty_state("Nothing is selected", "Choose a run, or an init and its policies, on the Explore page.")
        return
    last = 1 if view.run is None else engine().run(view.run).summary.finished_iterations
    if last == 0:
        empty_state(
            "No finished iteration yet", "The task vectors are there as soon as all policies of an iteration are."
        )
        return
    iteration, granularity = _controls(view, last)
    document = _known(view, iteration, granularity)
    if document is None:
        _compute(view, iteration, granularity)
    else:
        _show(document)


def _controls(view: View, iterations: int) -> tuple[int, Granularity]:
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
        iteration: int | None = 1
        if iterations > 1:
            iteration = st.segmented_control(
                "Iteration",
                list(range(1, iterations + 1)),
                default=min(view.iteration, iterations),
                required=True,
                key=f"geometry-iteration-{view.run}",
            )
        granularity = st.segmented_control(
            "One angle per",
            list(UNITS),
            default="layer",
            required=True,
            key="geometry-granularity",
            help="The unit that SLERP takes an angle of; layer is what the paper does.",
        )
        with st.container(width="stretch", vertical_alignment="bottom"):
            name = view.run or ", ".join(view.policies)
            st.caption(markdown_escaped(name[:200]))
    return iteration or 1, cast(Granularity, granularity or "layer")


def _key(view: View, iteration: int, granularity: str) -> str:
    return f"{view.selection.model_dump_json()} {iteration} {granularity}"


def _known(view: View, iteration: int, granularity: Granularity) -> GeometryDocument | None:
    """Return the geometry if the engine has it, or this session has had it computed."""
    results: dict[str, GeometryDocument] = st.session_state.setdefault(_RESULTS, {})
    key = _key(view, iteration, granularity)
    job = find_job(st.session_state.get(_JOBS, {}).get(key)) if key not in results else None
    if job is not None and job.state is JobState.DONE and job.result is not None:
        results[key] = GeometryDocument.model_validate(job.result)
    elif key not in results and granularity == "layer":
        found = engine().geometry(view.selection, iteration)
        if found is not None:
            results[key] = found
    return results.get(key)


def _compute(view: View, iteration: int, granularity: Granularity) -> None:
    """Offer the computation, or follow the one that was asked for."""
    jobs: dict[str, str] = st.session_state.setdefault(_JOBS, {})
    key = _key(view, iteration, granularity)
    job = find_job(jobs.get(key))
    for problem in st.session_state.pop(_PROBLEM, []):
        error_box(problem)
    if job is None:
        empty_state(
            "Not computed yet",
            "It takes one pass over the checkpoints on disk: seconds for adapters, minutes for large full models.",
        )
    else:
        follow(job, key="geometry")
    if job is None or job.state.is_final:
        arguments = (view, iteration, granularity)
        st.button("Compute", key="geometry-compute", type="primary", on_click=_submit, args=arguments)


def _submit(view: View, iteration: int, granularity: Granularity) -> None:
    request = GeometryRequest(
        session=session_id(), selection=view.selection, iteration=iteration, granularity=granularity
    )
    try:
        job = engine().submit(request)
    except WarpError as error:
        st.session_state[_PROBLEM] = [error]
        return
    st.session_state[_JOBS][_key(view, iteration, granularity)] = job.id


def _show(document: GeometryDocument) -> None:
    unit = UNITS[document.granularity]
    facts = facts_of(document)
    if facts is not None:
        st.text(what_it_means(facts, unit=unit))
        left, right = st.columns(2)
        with left:
            _histogram(document, unit)
        with right:
            _both(document, unit)
        if len(document.layers) > 1:
            _heatmaps(document, unit)
    elif len(document.policies) == 1:
        st.text("There is a single policy, so there is no angle: only how far it moved in each layer.")
    else:
        st.text("No layer was moved by two policies, so there is no angle.")
    if len(document.layers) > 1:
        _norms(document, unit)
    _table(document)


def _pair_name(document: GeometryDocument, pair: tuple[int, int]) -> str:
    first, second = (plain(document.policies[one]) for one in pair)
    return f"{first} and {second}" if len(first) + len(second) < 40 else f"{pair[0] + 1} and {pair[1] + 1}"


def _chart(made: go.Figure, *, key: str, title: str, note: str = "") -> None:
    st.markdown(f"**{title}**", help=note or None)
    st.plotly_chart(made, key=key, config=CONFIG, theme="streamlit")


def _histogram(document: GeometryDocument, unit: str) -> None:
    angles, pairs = angles_LP(document), pairs_of(len(document.policies))
    known = angles[np.isfinite(angles)]
    bins = _bins(float(known.min()), float(known.max()))
    if len(pairs) <= MAX_SEPARATE:
        traces = [
            go.Histogram(x=angles[:, place], xbins=bins, name=_pair_name(document, pair))
            for place, pair in enumerate(pairs)
        ]
    else:
        traces = [go.Histogram(x=known, xbins=bins, name=f"all {len(pairs)} pairs")]
    made = figure(*traces, height=300, x="angle between task vectors, degrees", y=f"{unit}s", barmode="stack")
    made.add_vline(x=90, line={"dash": "dot", "width": 1.5, "color": "#808890"})
    _chart(made, key="geometry-histogram", title="Angles between task vectors", note="The paper's figure 11")


def _bins(low: float, high: float) -> dict[str, float]:
    """About 16 bins of a round width, so that the axis is easy to read."""
    width = max((high - low) / 16, 1e-6)
    power = 10.0 ** math.floor(math.log10(width))
    size = next(power * m for m in (1, 2, 5, 10) if power * m >= width)
    return {"start": math.floor(low / size) * size, "end": math.ceil(high / size) * size + size, "size": size}


def _both(document: GeometryDocument, unit: str) -> None:
    angles, full = angles_LP(document), full_angles_LP(document)
    bins = {"start": 0.0, "end": 180.0, "size": 2.5}
    traces = [go.Histogram(x=angles[np.isfinite(angles)], xbins=bins, name="task vectors")]
    if full is not None:
        traces.append(go.Histogram(x=full.ravel(), xbins=bins, name="full weights"))
    made = figure(*traces, height=300, x="angle, degrees", y=f"{unit}s x pairs", barmode="overlay")
    made.update_xaxes(range=[0, max(100.0, float(np.nanmax(angles)) + 5)])
    note = "Near 90 degrees for task vectors, near 0 for full weights: SLERP makes a difference only for the former"
    _chart(made, key="geometry-both", title="Task vectors and full weights", note=note)


def _heatmaps(document: GeometryDocument, unit: str) -> None:
    if len(document.layers) * len(pairs_of(len(document.policies))) > MAX_HEATMAP * 60:
        return
    full = full_angles_LP(document)
    _heatmap(document, angles_LP(document), unit, key="geometry-heat", title="Angles of task vectors by layer, degrees")
    if full is not None:
        _heatmap(document, full, unit, key="geometry-heat-full", title="Angles of full weights by layer, degrees")


def _heatmap(document: GeometryDocument, values_LP: Any, unit: str, *, key: str, title: str) -> None:
    pairs = [_pair_name(document, pair) for pair in pairs_of(len(document.policies))]
    layers = [plain(name) for name in document.layers]
    made = figure(
        go.Heatmap(
            z=values_LP.T,
            x=list(range(len(layers))),
            y=pairs,
            customdata=[layers] * len(pairs),
            colorscale=SEQUENTIAL,
            colorbar={"thickness": 10, "len": 1.0},
            hovertemplate="%{customdata}<br>%{y}: %{z:.2f} degrees<extra></extra>",
        ),
        height=110 + 26 * len(pairs),
        x=unit,
        y="",
        legend=False,
    )
    _layer_axis(made, document)
    made.update_yaxes(autorange="reversed")
    _chart(made, key=key, title=title)


def _layer_axis(made: go.Figure, document: GeometryDocument) -> None:
    """Write every so many layers' short names under the axis."""
    names = [plain(name) for name in short_names(document.layers)]
    stride = max(1, -(-len(names) // (30 if max(map(len, names)) < 4 else 10)))
    shown = list(range(0, len(names), stride))
    made.update_xaxes(tickvals=shown, ticktext=[names[place][:24] for place in shown])


def _norms(document: GeometryDocument, unit: str) -> None:
    norms_LM = np.asarray(document.norms_LM)
    layers = [plain(name) for name in document.layers]
    traces = [
        go.Scatter(
            x=list(range(len(layers))),
            y=norms_LM[:, m],
            name=plain(name)[:60],
            mode="lines+markers" if len(layers) <= 60 else "lines",
            marker={"size": 5},
            customdata=layers,
            hovertemplate="%{customdata}: %{y:.4g}<extra>%{fullData.name}</extra>",
        )
        for m, name in enumerate(document.policies)
    ]
    made = figure(*traces, height=280, x=unit, y="norm of the task vector")
    made.update_yaxes(rangemode="tozero")
    _layer_axis(made, document)
    _chart(made, key="geometry-norms", title="How far each policy moved")


def _table(document: GeometryDocument) -> None:
    rows = table(document)
    name = f"geometry-iteration-{document.iteration}-{document.granularity}.csv"
    with st.container(horizontal=True, vertical_alignment="bottom", horizontal_alignment="distribute"):
        st.markdown("**All numbers**")
        st.download_button(
            "Download CSV",
            rows.to_csv(index=False),
            file_name=name,
            mime="text/csv",
            icon=":material/download:",
            key="geometry-csv",
            on_click="ignore",
        )
    columns = {
        "parameters": st.column_config.NumberColumn(format="localized"),
        "angle_deg": st.column_config.NumberColumn("angle, degrees", format="%.2f"),
        "cosine": st.column_config.NumberColumn(format="%.4f"),
        "norm_first": st.column_config.NumberColumn("norm of first", format="%.4f"),
        "norm_second": st.column_config.NumberColumn("norm of second", format="%.4f"),
        "full_angle_deg": st.column_config.NumberColumn("full weights, degrees", format="%.4f"),
    }
    st.dataframe(pd.DataFrame(rows), hide_index=True, column_config=columns, height=320, key="geometry-table")
