"""Following a job of the engine on a page: its progress moves by itself, and the page runs again when it has ended."""

import streamlit as st

from app.engine import engine
from app.ui import job_progress
from warp_core.errors import EngineUnreachableError, UnknownJobError
from warp_core.service.protocol import Job

__all__ = ["find_job", "follow"]

EVERY_S = 0.5


def find_job(job_id: str | None) -> Job | None:
    """Return the job; None for None, and for one that the engine does not know (any more)."""
    if job_id is None:
        return None
    try:
        return engine().job(job_id)
    except UnknownJobError:
        return None


def follow(job: Job, *, key: str) -> None:
    """Draw a job with its progress and a button to cancel it, and run the page again when it has ended."""
    if job.state.is_final:
        job_progress(job, key=key)
        return

    def draw() -> None:
        try:
            now = find_job(job.id)
        except EngineUnreachableError:
            now = None  # the page itself waits for the engine
        if now is None or now.state.is_final:
            st.rerun()
        else:
            job_progress(now, key=key)

    st.fragment(run_every=EVERY_S)(draw)()
