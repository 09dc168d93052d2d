"""The curves of one training run, while it is going on and afterwards."""

from collections.abc import Sequence

import streamlit as st

from app.components.lines import Chart, Line, lines
from app.engine import engine
from app.ui import empty_state, markdown_escaped, number
from warp_core.errors import WarpError
from warp_core.service.documents import Curve, FrontDocument, RunState, RunSummary
from warp_core.service.protocol import Selection

__all__ = ["axis_end", "charts_of", "front_so_far", "watch_panel"]

MAIN = {
    "reward": "Reward",
    "kl_anchor": "KL to the anchor, nats",
    "length": "Length, tokens",
    "entropy": "Entropy, nats per token",
    "tokens_per_s": "Throughput, tokens/s",
}
MORE = {
    "grad_norm": "Gradient norm",
    "learning_rate": "Learning rate",
    "sampling_gap": "Sampling gap, nats",
}
PART = "reward:"
SMOOTH = {"none": 1, "5 steps": 5, "20 steps": 20}
LATEST = "latest"
SHORT_AXIS = 50
"""Steps that the axis of a running run shows at least, unless fewer were planned."""


def watch_panel(run: RunSummary) -> None:
    """Draw the curves of a run."""
    st.subheader(f"Training curves of {markdown_escaped(run.name)}", anchor=False)
    try:
        curves = engine().curves(run.name)
    except WarpError:
        curves = ()  # it has no folder yet, or is damaged, and then the list says so
    if not curves:
        going = run.state is RunState.RUNNING
        empty_state(
            "No step yet",
            "The first step comes when model, prompts and rewards are open."
            if going
            else "It ended before its first step.",
        )
        return
    iteration, smooth, with_more = _controls(run, curves)
    shown = [curve for curve in curves if curve.iteration == iteration]
    lines(
        charts_of(shown, with_more=with_more),
        key="train-curves",
        of=f"{run.name} {iteration}",
        label=f"Training curves of {run.name}, iteration {iteration}",
        x_max=_axis(run, iteration, shown),
        smooth=smooth,
    )
    _front(run)
    _examples(shown)


def _controls(run: RunSummary, curves: Sequence[Curve]) -> tuple[int, int, bool]:
    """Which iteration, how smooth, and whether the less common metrics are drawn."""
    iterations = sorted({curve.iteration for curve in curves})
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
        chosen: str | int | None = LATEST
        if len(iterations) > 1:
            chosen = st.segmented_control(
                "Iteration", [LATEST, *iterations], default=LATEST, required=True, key=f"train-iteration-{run.name}"
            )
        smooth = st.segmented_control("Moving mean", list(SMOOTH), default="5 steps", required=True, key="train-smooth")
        with_more = st.toggle(
            "More metrics", key="train-more", help="Gradient norm, learning rate, parts of the reward"
        )
    iteration = iterations[-1] if chosen in (LATEST, None) else int(chosen)  # type: ignore[arg-type]
    return iteration, SMOOTH[smooth or "none"], with_more


def charts_of(curves: Sequence[Curve], *, with_more: bool) -> list[Chart]:
    """Return a chart per metric with a line per policy, for the curves of one iteration."""
    titles = dict(MAIN)
    if with_more:
        parts = sorted({name for curve in curves for name in curve.metrics if name.startswith(PART)})
        titles |= {name: f"Reward part {name.removeprefix(PART)}" for name in parts} | MORE
    return [
        Chart(
            id=name,
            title=title,
            lines=tuple(
                Line(
                    name=f"policy {curve.policy}",
                    number=curve.policy,
                    x_S=curve.step_S,
                    y_S=curve.metrics[name],
                )
                for curve in curves
                if name in curve.metrics
            ),
        )
        for name, title in titles.items()
    ]


def _axis(run: RunSummary, iteration: int, curves: Sequence[Curve]) -> int:
    """Where the axis ends: it stands still while steps come."""
    known: dict[str, list[int]] = st.session_state.setdefault("train-planned", {})
    if run.name not in known:
        try:
            known[run.name] = list(engine().run(run.name).config["training"]["steps"])
        except WarpError:
            known[run.name] = [1]
    steps = known[run.name]
    last = max((curve.step_S[-1] for curve in curves if curve.step_S), default=1)
    return last if run.state is RunState.FINISHED else axis_end(last, steps[min(iteration, len(steps)) - 1])


def axis_end(last: int, planned: int) -> int:
    """Return where the axis ends: at the planned end, but early in a long run nearer, and then it doubles at times."""
    end = SHORT_AXIS
    while end < last:
        end *= 2
    return max(last, min(end, planned))


def _front(run: RunSummary) -> None:
    try:
        document = engine().front(Selection(run=run.name))
    except WarpError:
        return
    st.caption(markdown_escaped(front_so_far(document)))


def front_so_far(document: FrontDocument) -> str:
    """Return in a sentence what has been measured of a run."""
    points = [point for point in document.points if {"reward", "kl"} <= point.metrics.keys()]
    if not points:
        return "No point of the front has been measured yet."
    best = max(points, key=lambda point: point.metrics["reward"].mean)
    merges = sum(point.kind == "merge" for point in points)
    reward, kl = best.metrics["reward"].mean, best.metrics["kl"].mean
    return (
        f"Measured so far: {len(points)} points, {merges} of them merges. The highest reward is {number(reward)} "
        f"at a KL of {number(kl)} nats. Press Explore for the whole front."
    )


def _examples(curves: Sequence[Curve]) -> None:
    found = [(curve.policy, curve.example) for curve in curves if curve.example is not None]
    if not found:
        return
    st.markdown("**A completion of the latest step**")
    for (policy, example), column in zip(
        found, st.columns(len(found)) if len(found) < 4 else [st] * len(found), strict=True
    ):
        with column.container(border=True):
            scored = "" if example.reward is None else f", reward {number(example.reward)}"
            st.caption(f"Policy {policy}, step {example.step}{scored}")
            st.text(example.prompt)
            st.code(example.completion, language=None, wrap_lines=True)
