"""The list of runs: state, progress, time left, what to do next; and the run that is watched, below."""

from collections.abc import Sequence
from itertools import count
from typing import Any

import streamlit as st

from app.engine import engine
from app.explore.selection import open_run
from app.links import open_page
from app.train.form import use_config
from app.train.state import MESSAGE, show_new, watch, watched
from app.train.watching import watch_panel
from app.ui import duration, empty_state, error_box, errors_shown, markdown_escaped
from warp_core.errors import EngineUnreachableError, WarpError
from warp_core.service.documents import RunState, RunSummary
from warp_core.service.protocol import TrainRequest

__all__ = ["runs_list"]

LIVE_S, IDLE_S = 2.0, 10.0
"""Seconds between two looks while a run is going on, and while none is (one may be started elsewhere)."""
SHOWN_AT_FIRST = 8
BADGES = {
    RunState.RUNNING: ("running", "blue", ":material/play_arrow:"),
    RunState.FINISHED: ("finished", "green", ":material/check:"),
    RunState.STOPPED: ("stopped", "orange", ":material/pause:"),
    RunState.FAILED: ("failed", "red", ":material/error:"),
}
_PROBLEM = "train-list-problem"


def runs_list(runs: Sequence[RunSummary]) -> None:
    """Draw the list, and again every few seconds."""
    ticks = count()
    every = _pace(runs)

    def draw() -> None:
        is_tick = next(ticks) > 0
        now = _look() if is_tick else runs
        if now is None or _pace(now) != every:
            st.rerun()  # the page itself waits for the engine, and decides how often to look
        else:
            _draw(now)

    st.fragment(run_every=every)(draw)()


def _look() -> Sequence[RunSummary] | None:
    try:
        return engine().runs()
    except EngineUnreachableError:
        return None


def _pace(runs: Sequence[RunSummary]) -> float:
    return LIVE_S if any(run.state is RunState.RUNNING for run in runs) else IDLE_S


def _draw(runs: Sequence[RunSummary]) -> None:
    for problem in st.session_state.pop(_PROBLEM, []):
        error_box(problem)
    if MESSAGE in st.session_state:
        st.toast(markdown_escaped(st.session_state.pop(MESSAGE)), icon=":material/info:")
    if not runs:
        empty_state("No run yet", "Choose New run above, start from the demo's configuration, and press Start.")
        return
    everything = len(runs) <= SHOWN_AT_FIRST or st.session_state.get("train-all-runs", False)
    for run in runs if everything else runs[:SHOWN_AT_FIRST]:
        _row(run, is_watched=run.name == _chosen(runs))
    if len(runs) > SHOWN_AT_FIRST:
        st.toggle(f"Show all {len(runs)} runs", key="train-all-runs")
    chosen = next(run for run in runs if run.name == _chosen(runs))
    watch_panel(chosen)
    _configuration(chosen, [run.name for run in runs])


def _chosen(runs: Sequence[RunSummary]) -> str:
    """The run that was asked for, or the first of the list: a running one, or the latest."""
    asked = watched()
    return asked if asked in {run.name for run in runs} else runs[0].name


def _row(run: RunSummary, *, is_watched: bool) -> None:
    with st.container(border=True, key=f"train-run-{run.name}"):
        what, how_far, actions = st.columns([3, 4, 4], vertical_alignment="center")
        with what, st.container(gap=None):
            _name(run)
        with how_far, st.container(gap="xsmall"):
            _state(run)
        with actions, st.container(horizontal=True, horizontal_alignment="right"):
            _actions(run, is_watched=is_watched)
        if run.error:
            st.text(run.error)


def _name(run: RunSummary) -> None:
    st.markdown(f"**{markdown_escaped(run.name)}**")
    bundled = ["bundled"] if run.is_bundled else []
    size = [f"M = {run.policies}, I = {run.iterations}"] if run.policies else []
    st.caption(markdown_escaped(" \u00b7 ".join([*([run.model] if run.model else []), *size, *bundled])))


def _state(run: RunSummary) -> None:
    label, color, icon = BADGES[run.state]
    with st.container(horizontal=True, vertical_alignment="center"):
        st.badge(label, color=color, icon=icon)  # type: ignore[arg-type]
        rest = [f"{duration(run.seconds_left)} left"] if run.seconds_left is not None else []
        words = ", ".join([*([run.message] if run.message else []), *rest])
        if words:
            st.caption(markdown_escaped(words))
    if run.state is not RunState.FINISHED and run.policies:
        st.progress(run.progress)


def _actions(run: RunSummary, *, is_watched: bool) -> None:
    key = f"train-{{}}-{run.name}"
    st.button(
        "Watch",
        key=key.format("watch"),
        help="Its training curves, below",
        disabled=is_watched or not run.policies,
        on_click=watch,
        args=(run.name,),
    )
    nothing_yet = run.progress == 0 and run.finished_iterations == 0
    if st.button("Explore", key=key.format("explore"), help="Its front, in Explore", disabled=nothing_yet):
        with errors_shown():
            open_run(run.name)
            open_page("explore")
    if run.state is RunState.RUNNING:
        help_text = "Ends after the present step; what is done is kept, and the run can be resumed"
        st.button("Stop", key=key.format("stop"), help=help_text, on_click=_stop, args=(run.name,))
    elif run.state in (RunState.STOPPED, RunState.FAILED) and run.policies:
        help_text = "Goes on after the last step that was saved"
        st.button("Resume", key=key.format("resume"), help=help_text, on_click=_resume, args=(run.name,))


def _stop(name: str) -> None:
    try:
        run = engine().stop(name)
    except WarpError as error:
        st.session_state[_PROBLEM] = [error]
        return
    ends = "stops after this step" if run.state is RunState.RUNNING else "has been stopped"
    st.session_state[MESSAGE] = f"{name} {ends}"


def _resume(name: str) -> None:
    try:
        engine().train(TrainRequest(name=name, config=None))
    except WarpError as error:
        st.session_state[_PROBLEM] = [error]
        return
    st.session_state[MESSAGE] = f"{name} goes on"
    watch(name)


def _use(config: dict[str, Any], name: str, taken: Sequence[str]) -> None:
    use_config(config, name=name, taken=taken)
    show_new()


def _configuration(run: RunSummary, taken: Sequence[str]) -> None:
    try:
        detail = engine().run(run.name)
    except WarpError:
        return  # it is being prepared; the list says so
    with st.expander(f"Configuration of {markdown_escaped(run.name)}", key="train-configuration"):
        copy = (detail.config, run.name, taken)
        if st.button("Use it for a new run", key="train-use-config", icon=":material/edit:", on_click=_use, args=copy):
            st.rerun()  # the whole page: this one is a fragment
        st.code(detail.toml, language="toml", height=300)
        st.caption(markdown_escaped(detail.path))
