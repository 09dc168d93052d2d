"""What to explore: a run and its iteration, or checkpoints on disk, which are checked before anything is loaded."""

from collections.abc import Sequence

import streamlit as st
from pydantic import ValidationError

from app import ui
from app.engine import engine
from app.explore import actions
from app.explore.fields import field_key
from app.explore.state import selection_key
from app.view import View, current_view, set_view
from warp_core.errors import UnknownJobError
from warp_core.service.documents import CheckReport, RunState, RunSummary
from warp_core.service.protocol import Job, JobState, Place, Selection

__all__ = ["draw_selection", "is_explored", "open_run"]

DISK = "\0disk"
_FORM, _ALLOWED, _VIEWS = "explore_disk_form", "explore_allowed", "explore_views"
_CHECK_TICK_S = 0.5


def draw_selection(view: View, runs: Sequence[RunSummary]) -> None:
    """Draw the row, and the form for checkpoints where those are chosen."""
    on_disk = _wants_disk(view)
    options = [run.name for run in runs] + [DISK]
    shown = DISK if on_disk or view.run not in options else view.run
    key = field_key("explore_run", shown)
    summary = next((run for run in runs if run.name == view.run), None)
    with st.container(horizontal=True, vertical_alignment="center", key="selection"):
        st.selectbox(
            "Run",
            options,
            format_func=lambda name: "Checkpoints on disk" if name == DISK else name,
            index=options.index(shown),
            key=key,
            on_change=_choose,
            args=(key,),
            label_visibility="collapsed",
            width=260,
        )
        st.text(_about(view, summary, on_disk=on_disk))
    if on_disk:
        _draw_form(view)


def is_explored(view: View) -> bool:
    """Whether the selection may be loaded: a run, or checkpoints that passed their check in this session."""
    if _wants_disk(view):
        return bool(view.policies) and selection_key(view.selection) in st.session_state.get(_ALLOWED, ())
    return view.run is not None


def _wants_disk(view: View) -> bool:
    return bool(st.session_state.get(_FORM, view.run is None and bool(view.policies)))


def _about(view: View, summary: RunSummary | None, *, on_disk: bool) -> str:
    if on_disk or summary is None:
        count = len(view.policies)
        return f"{count} policies, not of a run" if is_explored(view) else "Name an init and its policies below."
    state = {
        RunState.RUNNING: f"training: {summary.message or f'{summary.progress:.0%}'}",
        RunState.FINISHED: "finished",
        RunState.STOPPED: "stopped, can be resumed",
        RunState.FAILED: "failed",
    }[summary.state]
    return f"{summary.model}, {summary.policies} policies, {state}"


def _choose(key: str) -> None:
    """Open another run as it was left in this session, or the form for checkpoints."""
    chosen = str(st.session_state[key])
    if chosen == DISK:
        st.session_state[_FORM] = True
        return
    with actions.errors_kept():
        open_run(chosen)


def open_run(run: str) -> None:
    """Open a run as it was left in this session; nothing changes where it is open.

    Raises:
        WorkspaceError: there is no run of that name.
    """
    st.session_state[_FORM] = False
    if run != current_view().run:
        _open(_fresh_view(run))


def _fresh_view(run: str) -> View:
    """A run as it opens for the first time: its latest iteration, prompts as it was trained with."""
    detail = engine().run(run)
    iteration = max(1, detail.summary.finished_iterations)
    return View(
        run=run,
        place=Place(iteration=iteration, eta=0.5),
        chat=bool(detail.config.get("model", {}).get("chat_template")),
    )


def _open(fresh: View) -> None:
    """Change to another selection; what belongs to the old one is kept for when it is opened again."""
    view = current_view()
    views = st.session_state.setdefault(_VIEWS, {})
    if view.has_selection:
        views[selection_key(view.selection)] = view
    again = views.get(selection_key(fresh.selection), fresh)
    set_view(**{name: value for name, value in vars(again).items() if name != "notes"}, notes=())


def _draw_form(view: View) -> None:
    explored = is_explored(view)
    with st.expander("Checkpoints", expanded=not explored, key=f"disk-form-{explored}"):
        left, right = st.columns([2, 3])
        init = left.text_input(
            "Init",
            value=view.init or "",
            key="disk-init",
            placeholder="folder, Hub id or smollm2-135m",
            persist_state="session",
        )
        base = left.text_input(
            "Base model of adapters, if it is another one",
            value=view.base or "",
            key="disk-base",
            placeholder="as above",
            persist_state="session",
        )
        policies = right.text_area(
            "Policies, one a line",
            value="\n".join(view.policies),
            key="disk-policies",
            placeholder="folders or Hub ids of full checkpoints or LoRA adapters",
            height=122,
            persist_state="session",
        )
        selection, problem = _selection(init, base, policies)
        with st.container(horizontal=True, vertical_alignment="center"):
            st.button(
                "Check",
                key="disk-check",
                disabled=selection is None,
                type="primary",
                on_click=actions.check,
                args=(selection,),
            )
            st.text(problem or "Reads headers and sizes only; nothing is loaded.")
        if selection is not None:
            _draw_check(selection)


def _selection(init: str, base: str, policies: str) -> tuple[Selection | None, str]:
    names = tuple(line.strip() for line in policies.splitlines() if line.strip())
    if not init.strip():
        return None, "Name the init: the checkpoint that all policies were trained from."
    if not names:
        return None, "Name at least one policy."
    try:
        return Selection(init=init.strip(), policies=names, base=base.strip() or None), ""
    except ValidationError:
        return None, "At most 16 policies, each name at most 400 characters."


def _draw_check(selection: Selection) -> None:
    asked = st.session_state.get("explore_check")
    if asked is None or asked[0] != selection:
        return
    job = _job(asked[1])
    every = _CHECK_TICK_S if job is not None and not job.state.is_final else None
    st.fragment(run_every=every, key="explore-check")(_check_tick)(selection, asked[1], every)


def _job(job_id: str) -> Job | None:
    try:
        return engine().job(job_id)
    except UnknownJobError:
        return None


def _check_tick(selection: Selection, job_id: str, every: float | None) -> None:
    with ui.errors_shown():
        job = _job(job_id)
        if job is None:
            st.text("The engine was restarted: check again.")
        elif job.state is JobState.DONE and job.result is not None:
            if every is not None:
                st.rerun()
            _draw_report(selection, CheckReport.model_validate(job.result))
        else:
            ui.job_progress(job, key="check")


def _draw_report(selection: Selection, report: CheckReport) -> None:
    if report.models:
        rows = [
            (
                model.role,
                model.name,
                model.kind,
                f"{model.num_params / 1e6:.1f} M",
                ui.size(model.size_bytes),
                model.dtype,
            )
            for model in report.models
        ]
        heads = ("Role", "Name", "Kind", "Parameters", "Size", "Type")
        st.dataframe(dict(zip(heads, zip(*rows, strict=True), strict=True)), hide_index=True, key="check-models")
    fits = report.needed_bytes <= report.available_bytes
    needed, there = ui.size(report.needed_bytes), ui.size(report.available_bytes)
    st.text(f"Memory: about {needed} needed, {there} free on {report.device}{'' if fits else ': more than there is'}.")
    for problem in report.problems:
        st.text(f"Problem: {problem}")
    with st.container(horizontal=True, vertical_alignment="center"):
        st.button(
            "Explore these",
            key="disk-explore",
            type="primary",
            disabled=not report.ok,
            on_click=actions.rerun_page(_explore),
            args=(selection,),
        )
        st.text("These can be mixed." if report.ok else "These cannot be explored together.")


def _explore(selection: Selection) -> None:
    st.session_state[_ALLOWED] = {*st.session_state.get(_ALLOWED, ()), selection_key(selection)}
    st.session_state[_FORM] = True
    if selection != current_view().selection:
        fresh = View(init=selection.init, policies=selection.policies, base=selection.base, place=Place(eta=0.5))
        _open(fresh)
