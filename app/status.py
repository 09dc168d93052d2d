"""The status strip in the sidebar: engine, memory, running jobs and runs. It ticks only while something goes on."""

from collections.abc import Sequence
from itertools import count

import streamlit as st

from app import ui
from app.engine import engine, session_id
from warp_core.errors import EngineUnreachableError, WarpError
from warp_core.service.documents import EngineStatus, RunState, RunSummary
from warp_core.service.protocol import Job

__all__ = ["strip"]

JOBS_EVERY_S = 1.0
RUNS_EVERY_S = 5.0


def strip() -> None:
    """Draw the strip; it draws itself again while jobs or training runs go on, and while the engine does not answer.

    What was going on ends with a run of the whole page, which then has the latest points.
    """
    try:
        every = _tick_of(*_look())
    except WarpError as error:
        every = _tick_after(error)
    ticks = count()

    def draw() -> None:
        is_tick = next(ticks) > 0
        if _draw() != every and is_tick:
            st.rerun()

    st.fragment(run_every=every)(draw)()


def _look() -> tuple[Sequence[Job], Sequence[RunSummary]]:
    """What goes on. Previews come and go with every move of a slider, and their page shows them itself."""
    jobs = [job for job in engine().jobs() if not job.state.is_final and job.kind != "preview"]
    return jobs, [run for run in engine().runs() if run.state is RunState.RUNNING]


def _tick_of(jobs: Sequence[Job], runs: Sequence[RunSummary]) -> float | None:
    return JOBS_EVERY_S if jobs else RUNS_EVERY_S if runs else None


def _tick_after(error: WarpError) -> float | None:
    """Look again where the engine may come back; what is set up wrong stays so."""
    return ui.BACK_EVERY_S if isinstance(error, EngineUnreachableError) else None


def _draw() -> float | None:
    """Draw everything; return how often that is due again."""
    with st.container(key="status", gap="xxsmall"):
        try:
            status, (jobs, runs) = engine().status(), _look()
        except WarpError as error:
            st.caption("Engine: no answer")
            return _tick_after(error)
        _engine_line(status, jobs)
        for job in jobs:
            if job.session == session_id():
                _job(job)
        for run in runs:
            _run(run)
    return _tick_of(jobs, runs)


def _engine_line(status: EngineStatus, jobs: Sequence[Job]) -> None:
    state = "ready" if not jobs else "at work on 1 job" if len(jobs) == 1 else f"at work on {len(jobs)} jobs"
    device = status.devices[0].name if status.devices else "no device"
    st.caption(f"Engine {state}  \n{ui.size(status.memory_bytes)} \u00b7 {ui.markdown_escaped(device)}")


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
