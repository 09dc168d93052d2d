"""Small pieces that the pages share: numbers with errors, empty states, progress of a job, errors in plain words.

Text that a model or a user wrote is shown with `st.text`, `st.code(language=None)` or a component; `markdown_escaped`
is for the few labels that Streamlit always reads as Markdown (buttons, tabs, radio options).
"""

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager

import streamlit as st

from app.engine import engine
from warp_core.errors import EngineUnreachableError, WarpError
from warp_core.service.documents import Metric
from warp_core.service.protocol import Job, JobState

__all__ = [
    "PLUS_MINUS",
    "cancel_button",
    "difference",
    "duration",
    "empty_state",
    "error_box",
    "errors_shown",
    "job_progress",
    "markdown_escaped",
    "measured",
    "number",
    "size",
]

PLUS_MINUS = "\u00b1"
MINUS = "\u2212"
BACK_EVERY_S = 1.5
"""How often a page looks whether the engine is back."""
_MARKDOWN = re.compile(r"([\\`*_{}\[\]()<>#+\-.!|~$:&^=])")


def number(value: float | None, *, digits: int = 2) -> str:
    """Return a number with so many decimals, fewer where it is large: 0.12, 12.3, 123; a dash for None."""
    if value is None:
        return "\u2013"
    size_ = abs(value)
    decimals = max(0, digits - max(0, math.floor(math.log10(size_)))) if size_ >= 1 else digits
    text = f"{value:.{decimals}f}"
    return text.lstrip("-") if float(text) == 0 else text.replace("-", MINUS)


def measured(metric: Metric | None) -> str:
    """Return a mean with its standard error, both with the decimals that the error allows: `2.12 +- 0.15`."""
    if metric is None:
        return number(None)
    if not metric.se:
        return number(metric.mean)
    decimals = min(4, max(0, 1 - math.floor(math.log10(metric.se))))
    mean = f"{metric.mean:.{decimals}f}"
    mean = mean.lstrip("-") if float(mean) == 0 else mean.replace("-", MINUS)
    return f"{mean} {PLUS_MINUS} {metric.se:.{decimals}f}"


def difference(metric: Metric | None, reference: Metric | None) -> str:
    """Return how far the mean is from that of the reference, with its sign; empty where one is not known."""
    if metric is None or reference is None:
        return ""
    gap = metric.mean - reference.mean
    text = number(abs(gap))
    if float(text) == 0:
        return f"{PLUS_MINUS}0"
    return f"{'+' if gap > 0 else MINUS}{text}"


def duration(seconds: float | None) -> str:
    """Return a time for people: 0.4 s, 12 s, 3 min 20 s, 2 h 5 min; a dash for None."""
    if seconds is None:
        return number(None)
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s" if whole % 60 else f"{whole // 60} min"
    minutes = round(whole / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes % 60 else f"{minutes // 60} h"


def size(num_bytes: int) -> str:
    """Return a size for people, in powers of 1000: 340 MB, 1.2 GB."""
    value, unit = float(num_bytes), "B"
    for bigger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, bigger
    return f"{value:.1f} {unit}" if value < 10 and unit != "B" else f"{value:.0f} {unit}"


def markdown_escaped(text: str) -> str:
    """Return the text so that Markdown shows it as it is, on one line."""
    return _MARKDOWN.sub(r"\\\1", " ".join(text.split()))


def empty_state(title: str, what_to_do: str) -> None:
    """Say that there is nothing here yet, and what to do about it."""
    with st.container(border=True):
        st.markdown(f"**{markdown_escaped(title)}**")
        st.text(what_to_do)


def error_box(error: Exception) -> None:
    """Show what went wrong in the error's own words; a fault of ours is named as one.

    Where the engine does not answer, the page runs again as soon as it does.
    """
    if isinstance(error, EngineUnreachableError):
        st.warning("The engine does not answer. It is being restarted; this page goes on by itself.")
        st.fragment(run_every=BACK_EVERY_S)(_go_on_when_it_is_back)()
    elif isinstance(error, WarpError):
        with st.container(border=True):
            st.markdown(":red[**That did not work**]")
            st.text(str(error))
    else:
        with st.container(border=True):
            st.markdown(":red[**A fault of this app**]")
            st.text(f"{type(error).__name__}: the log of the web server says more. What was measured is safe.")


def _go_on_when_it_is_back() -> None:
    try:
        engine().status()
    except EngineUnreachableError:
        return
    st.rerun()


@contextmanager
def errors_shown() -> Iterator[None]:
    """Show a WarpError of the block in place of what it would have drawn."""
    try:
        yield
    except WarpError as error:
        error_box(error)


def job_progress(job: Job, *, key: str) -> None:
    """Draw a job: what it is, how far, how long still, a button to cancel it; its error where it failed."""
    with st.container(border=True, key=f"{key}-{job.id}"):
        left, right = st.columns([5, 1], vertical_alignment="center")
        left.text(job.title)
        if not job.state.is_final:
            with right:
                cancel_button(job, key=key)
        if job.state is JobState.FAILED:
            st.text(job.error or "It failed without saying why.")
            return
        if job.state in (JobState.QUEUED, JobState.RUNNING):
            st.progress(job.progress or 0.0)
        st.caption(markdown_escaped(job_state_text(job)))


def cancel_button(job: Job, *, key: str) -> None:
    """A button that takes the job from the queue or asks it to end."""
    if st.button("Cancel", key=f"{key}-cancel-{job.id}", type="tertiary"):
        with errors_shown():
            engine().cancel(job.id)


def job_state_text(job: Job) -> str:
    """Return where a job is, in words: `2 jobs before it`, `40 %, point 2 of 5, 12 s left`, `done in 3.2 s`."""
    if job.state is JobState.QUEUED:
        return "next in the queue" if job.position == 0 else f"{job.position} before it in the queue"
    if job.state is JobState.RUNNING:
        share = [] if job.progress is None else [f"{job.progress:.0%}"]
        rest = [] if job.seconds_left is None else [f"{duration(job.seconds_left)} left"]
        return ", ".join([*share, *([job.message] if job.message else []), *rest]) or "running"
    took = "" if job.started_at is None or job.ended_at is None else duration(job.ended_at - job.started_at)
    return {
        JobState.DONE: f"done in {took}" if took else "done",
        JobState.CANCELLED: "cancelled; what was measured is kept",
        JobState.FAILED: job.error or "failed",
    }[job.state]
