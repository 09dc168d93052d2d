"""The status strip in the sidebar: engine, memory, running jobs and runs. It ticks only while something goes on."""

from collections.abc import Sequence
from itertools import count

import streamlit as st

from app import ui
from app.engine import engine, session_id
from warp_core.errors import EngineUnreachableError
from warp_core.service.documents import EngineStatus, RunState, RunSummary
from warp_core.service.protocol import Job

__all__ = ["strip", "wait_for_engine"]

JOBS_EVERY_S = 1.0
RUNS_EVERY_S = 5.0
BACK_EVERY_S = 1.5
"""How often a page looks whether the engine is back."""


def strip() -> None:
    """Draw the strip; it draws itself again while jobs or training runs go on."""
    try:
        every = _tick_of(*_look())
    except EngineUnreachableError:
        every = None  # the page itself waits for the engine
    ticks = count()

    def draw() -> None:
        is_tick = next(ticks) > 0
        if _draw() != every and is_tick:
            st.rerun()

    st.fragment(run_every=every)(draw)()


def wait_for_engine() -> None:
    """Say that the engine does not answer, and run the page again as soon as it does."""
    ui.error_box(EngineUnreachableError("the engine does not answer"))
    st.fragment(run_every=BACK_EVERY_S)(_look_whether_it_is_back)()


def _look_whether_it_is_back() -> None:
    try:
        engine().status()
    except EngineUnreachableError:
        return
    st.rerun()


def _look() -> tuple[Sequence[Job], Sequence[RunSummary]]:
    jobs = [job for job in engine().jobs() if not job.state.is_final]
    return jobs, [run for run in engine().runs() if run.state is RunState.RUNNING]


def _tick_of(jobs: Sequence[Job], runs: Sequence[RunSummary]) -> float | None:
    return JOBS_EVERY_S if jobs else RUNS_EVERY_S if runs else None


def _draw() -> float | None:
    """Draw everything; return how often that is due again."""
    with st.container(key="status", gap="xxsmall"):
        try:
            status, (jobs, runs) = engine().status(), _look()
        except EngineUnreachableError:
            st.caption("Engine: no answer")
            return None
        _engine_line(status, jobs)
        mine = [job for job in jobs if job.session == session_id()]
        for job in mine:
            _job(job)
        for run in runs:
            _run(run)
    return _tick_of(jobs, runs)


def _engine_line(status: EngineStatus, jobs: Sequence[Job]) -> None:
    state = "ready" if not jobs else "1 job" if len(jobs) == 1 else f"{len(jobs)} jobs"
    device = status.devices[0].name if status.devices else "no device"
    st.caption(f"Engine {state} \u00b7 {ui.markdown_escaped(device)} \u00b7 {ui.size(status.memory_bytes)}")


def _job(job: Job) -> None:
    st.caption(ui.markdown_escaped(job.title))
    st.progress(job.progress or 0.0)
    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
        st.caption(ui.markdown_escaped(ui.job_state_text(job)))
        ui.cancel_button(job, key="status")


def _run(run: RunSummary) -> None:
    st.caption(f"Training {ui.markdown_escaped(run.name)}")
    st.progress(run.progress)
    st.caption(ui.markdown_escaped(", ".join(filter(None, [run.message, f"{ui.duration(run.seconds_left)} left"]))))
