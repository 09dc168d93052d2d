"""The exports of this session: progress while one is written, then what was written and whether it is what was seen."""

from dataclasses import dataclass

import streamlit as st

from app.jobs import find_job, follow
from app.ui import empty_state, error_box, markdown_escaped, size
from warp_core.errors import UnknownJobError
from warp_core.service.documents import ExportReport
from warp_core.service.protocol import Job, JobState

__all__ = ["Export", "draw_exports", "exports", "verdict"]

_EXPORTS = "export-list"


@dataclass
class Export:
    """An export that was asked for in this session."""

    job_id: str
    name: str
    model: str
    """In words."""
    command: str
    """That does the same."""
    last: Job | None = None
    """As it ended, so that it stays when the engine is restarted."""
    is_lost: bool = False
    """The engine was restarted while it was written."""

    @property
    def is_going_on(self) -> bool:
        """Whether it has not ended, as far as is known."""
        return self.last is None and not self.is_lost

    @property
    def is_done(self) -> bool:
        """Whether a folder was written."""
        return self.last is not None and self.last.state is JobState.DONE


def exports() -> list[Export]:
    """Return the exports of this session, the latest first, each as it ended if it has."""
    found: list[Export] = st.session_state.setdefault(_EXPORTS, [])
    for one in found:
        if one.is_going_on:
            job = find_job(one.job_id)
            one.last = job if job is not None and job.state.is_final else None
            one.is_lost = job is None
    return found


def draw_exports() -> None:
    """Draw the latest export in full and the earlier ones folded."""
    listed = exports()
    if not listed:
        empty_state(
            "No export yet", "Choose the model on the left. What is written is read back and compared, and shown here."
        )
        return
    for place, one in enumerate(listed):
        job = one.last or find_job(one.job_id)
        if place == 0:
            _draw(one, job)
            continue
        with st.expander(f"{markdown_escaped(one.name)}: {_outcome(job)}", key=f"export-earlier-{one.job_id}"):
            _draw(one, job)


def _outcome(job: Job | None) -> str:
    return "lost with the engine" if job is None else job.state.value


def _draw(one: Export, job: Job | None) -> None:
    if job is None:
        error_box(UnknownJobError(f"the engine was restarted while {one.name} was written: export it again"))
    elif job.state is JobState.DONE and job.result is not None:
        _report(one, ExportReport.model_validate(job.result))
    else:
        follow(job, key="export")
        st.caption(markdown_escaped(one.model))


def _report(one: Export, report: ExportReport) -> None:
    with st.container(border=True, key=f"export-report-{one.job_id}"):
        is_good, words = verdict(report)
        color, icon = ("green", ":material/check:") if is_good else ("orange", ":material/warning:")
        with st.container(horizontal=True, vertical_alignment="center"):
            st.markdown(f"**{markdown_escaped(one.name)}**")
            st.badge("verified" if is_good else "look at this", color=color, icon=icon)  # type: ignore[arg-type]
        st.caption(markdown_escaped(one.model))
        st.text(words)
        if report.rounded is not None:
            seen, written = report.rounded
            st.caption(
                f"Previews compute in {seen}; the folder holds {written}, so completions may differ from those that you"
                f" saw. Dtype {seen} keeps every digit."
            )
        st.code(report.out, language=None, wrap_lines=True)
        st.caption(
            f"{report.num_params / 1e6:.1f} M parameters, {size(report.size_bytes)}, written in {report.wall_s:.1f} s"
        )
        _completions(report)
        python, vllm, shell = st.tabs(["transformers", "vLLM", "Command line"])
        python.code(report.snippet_transformers, language="python", wrap_lines=True)
        vllm.code(report.snippet_vllm, language="python", wrap_lines=True)
        shell.code(one.command, language="shell", wrap_lines=True)
        with st.expander(f"{len(report.files)} files"):
            st.text("\n".join(report.files))


def verdict(report: ExportReport) -> tuple[bool, str]:
    """Return whether the folder is what was seen, and that in words."""
    if report.verified is None:
        return False, "It was written, but not read back: you asked for no check."
    same = [seen == reloaded for _, seen, reloaded in report.completions]
    talk = f"{sum(same)} of {len(same)} greedy completions are the same, word for word" if same else ""
    if report.max_difference is None:
        return False, "Read back, it does not have the same parameters as the model in memory. Do not use it."
    gap = "exactly equal" if report.max_difference == 0 else f"equal up to {report.max_difference:.1e}"
    found = f"Read back from the folder: all parameters are {gap}" + (f", and {talk}." if talk else ".")
    if report.verified:
        return True, found
    return False, f"{found} That is more than rounding explains: do not use it."


def _completions(report: ExportReport) -> None:
    if not report.completions:
        return
    with st.expander("Greedy completions side by side"):
        for prompt, seen, reloaded in report.completions:
            st.text(prompt)
            left, right = st.columns(2)
            left.caption("in memory")
            left.code(seen, language=None, wrap_lines=True)
            right.caption("reloaded" if seen == reloaded else "reloaded: differs")
            right.code(reloaded, language=None, wrap_lines=True)
