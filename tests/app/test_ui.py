"""The pieces that pages share: numbers, states, errors, in the words that people read."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from streamlit.testing.v1 import AppTest

from app import ui
from app.engine import use_engine
from tests.app.conftest import OpenPage
from warp_core.errors import EngineUnreachableError, WorkspaceError
from warp_core.service.documents import Metric
from warp_core.service.fake import FakeEngine
from warp_core.service.fake_text import HOSTILE
from warp_core.service.protocol import Job, JobState, MeasureRequest, Place, Selection

PM, MINUS, DASH = "\u00b1", "\u2212", "\u2013"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, DASH),
        (0, "0.00"),
        (-0.001, "0.00"),
        (0.126, "0.13"),
        (-0.146, f"{MINUS}0.15"),
        (9.876, "9.88"),
        (12.34, "12.3"),
        (123.4, "123"),
        (98765.4, "98765"),
    ],
)
def test_numbers(value: float | None, text: str):
    assert ui.number(value) == text


@pytest.mark.parametrize(
    ("mean", "se", "text"),
    [
        (2.1152, 0.1458, f"2.12 {PM} 0.15"),
        (24.1046, 0.5964, f"24.10 {PM} 0.60"),
        (19.875, 0.0938, f"19.875 {PM} 0.094"),
        (-0.1457, 0.1458, f"{MINUS}0.15 {PM} 0.15"),
        (-0.001, 0.2, f"0.00 {PM} 0.20"),
        (1234.5, 56.0, f"1234 {PM} 56"),
        (0.5, 0.00000123, f"0.5000 {PM} 0.0000"),
        (0.0, 0.0, "0.00"),
        (3.14159, None, "3.14"),
    ],
)
def test_means_with_errors(mean: float, se: float | None, text: str):
    assert ui.measured(Metric(mean=mean, se=se)) == text


def test_what_was_not_measured_is_a_dash():
    assert ui.measured(None) == DASH
    assert ui.difference(None, Metric(mean=1)) == ""
    assert ui.difference(Metric(mean=1), None) == ""


@pytest.mark.parametrize(("mean", "text"), [(1.5, "+0.50"), (0.25, f"{MINUS}0.75"), (1.0, f"{PM}0"), (21.0, "+20.0")])
def test_differences(mean: float, text: str):
    assert ui.difference(Metric(mean=mean), Metric(mean=1.0)) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, DASH),
        (0.04, "0.0 s"),
        (3.21, "3.2 s"),
        (12.4, "12 s"),
        (59.7, "1 min"),
        (60, "1 min"),
        (200, "3 min 20 s"),
        (3600, "1 h"),
        (7500, "2 h 5 min"),
        (90000, "25 h"),
    ],
)
def test_durations(seconds: float | None, text: str):
    assert ui.duration(seconds) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1500, "1.5 kB"),
        (340_000_000, "340 MB"),
        (1_240_000_000, "1.2 GB"),
        (10**13, "10 TB"),
    ],
)
def test_sizes(size: int, text: str):
    assert ui.size(size) == text


@given(st.text(max_size=80))
def test_escaped_text_is_on_one_line_and_says_the_same(text: str):
    escaped = ui.markdown_escaped(text)
    assert "\n" not in escaped
    assert "".join(escaped.split("\\")).split() == "".join(text.split("\\")).split()


def test_no_markdown_survives_escaping():
    escaped = ui.markdown_escaped(HOSTILE)
    for sign in ("<", "[", "!", "$", "|", "*", "_", "`", ":", "#"):
        assert all(escaped[i - 1] == "\\" for i, one in enumerate(escaped) if one == sign), sign


def job(state: JobState, **other: object) -> Job:
    fields = {"id": "j", "kind": "measure", "session": "s", "title": "Measure", "created_at": 0.0} | other
    return Job(state=state, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("one", "text"),
    [
        (job(JobState.QUEUED), "next in the queue"),
        (job(JobState.QUEUED, position=2), "2 before it in the queue"),
        (job(JobState.RUNNING), "running"),
        (
            job(JobState.RUNNING, progress=0.4, message="point 2 of 5", seconds_left=12.0),
            "40%, point 2 of 5, 12 s left",
        ),
        (job(JobState.DONE, started_at=1.0, ended_at=4.2), "done in 3.2 s"),
        (job(JobState.DONE), "done"),
        (job(JobState.CANCELLED), "cancelled; what was measured is kept"),
        (job(JobState.FAILED, error="no memory"), "no memory"),
        (job(JobState.FAILED), "failed"),
    ],
)
def test_states_of_jobs_in_words(one: Job, text: str):
    assert ui.job_state_text(one) == text


def run(script: str) -> AppTest:
    return AppTest.from_string(f"from app import ui\n{script}").run()


def all_text(page: AppTest) -> str:
    return "\n".join(one.value for kind in ("markdown", "text", "caption", "warning") for one in getattr(page, kind))


def test_an_empty_state_says_what_to_do():
    page = run("ui.empty_state('No *runs* yet', 'Train one.\\n![x](http://evil.example)')")
    assert page.markdown[0].value == "**No \\*runs\\* yet**"
    assert page.text[0].value == "Train one.\n![x](http://evil.example)"


def test_users_mistakes_are_shown_in_their_own_words_as_text(fake: FakeEngine):
    page = run(
        "from warp_core.errors import WorkspaceError\nui.error_box(WorkspaceError('no <b>run</b> here: choose'))"
    )
    assert [one.value for one in page.text] == ["no <b>run</b> here: choose"]
    assert ":red[**That did not work**]" in all_text(page)


def test_faults_of_ours_name_no_secret(fake: FakeEngine):
    page = run("ui.error_box(KeyError('/root/secret/path'))")
    assert "secret" not in all_text(page)
    assert "KeyError" in all_text(page)


def test_an_engine_that_does_not_answer_is_waited_for(fake: FakeEngine):
    fake.down = True
    script = """
import streamlit as st
from app.engine import engine
with ui.errors_shown():
    st.text(f"{engine().status().queued} queued")
"""
    page = run(script)
    assert [one.value for one in page.warning] == [
        "The engine does not answer. It is being restarted; this page goes on by itself."
    ]
    assert page.text.len == 0
    fake.down = False
    page.run()
    assert page.warning.len == 0
    assert page.text[0].value == "0 queued"


def test_other_errors_pass_through():
    with pytest.raises(ZeroDivisionError), ui.errors_shown():
        raise ZeroDivisionError
    assert issubclass(WorkspaceError, ValueError)
    assert not issubclass(EngineUnreachableError, ValueError)


PROGRESS = """
from app.engine import engine
for job in engine().jobs():
    ui.job_progress(job, key="jobs")
"""


def test_a_job_is_drawn_from_queue_to_end(fake: FakeEngine):
    asked = MeasureRequest(session="s", selection=Selection(run="demo-run"), places=(Place(eta=0.4), Place(eta=0.6)))
    made = fake.submit(asked)
    page = run(PROGRESS)
    assert page.text[0].value == "Measure 2 points"
    assert page.button[0].label == "Cancel"
    fake.advance(4)
    page.run()
    assert "point 1 of 2" in page.caption[0].value
    page.button[0].click().run()
    assert fake.job(made.id).state is JobState.CANCELLED
    page.run()
    assert page.button.len == 0
    assert "what was measured is kept" in page.caption[0].value


def test_a_failed_job_says_why(fake: FakeEngine):
    fake.submit(MeasureRequest(session="s", selection=Selection(run="demo-run"), places=(Place(eta=1.99),)))
    fake.advance(5)
    page = run(PROGRESS)
    assert "the task vectors are opposite" in page.text[1].value
    assert page.button.len == 0


def test_the_fixture_opens_pages(open_page: OpenPage):
    assert not open_page("help").exception
    use_engine(None)
