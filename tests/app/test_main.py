"""The app around the pages: what is opened, what is kept, what is said when something is wrong."""

import re
from pathlib import Path
from typing import Any

import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

import app.main
from app.main import PAGES
from app.server import SCRIPT
from app.view import Pin, View
from warp_core.errors import WorkspaceError
from warp_core.service.fake import FakeEngine
from warp_core.service.protocol import (
    JobState,
    MeasureRequest,
    PaneRequest,
    Place,
    PreviewRequest,
    Selection,
    TrainRequest,
)

DEMO = Selection(run="demo-run")
ME = "me"
BANNER = "The engine does not answer. It is being restarted; this page goes on by itself."


class StubPages:
    """Pages that say their name, and whatever a test lets them do."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.acts: list[Any] = []
        monkeypatch.setattr(app.main, "_runner", self._runner)

    def _runner(self, name: str) -> Any:
        def render() -> None:
            st.text(f"page {name}")
            for act in self.acts:
                act()

        render.__name__ = name
        return render


@pytest.fixture
def pages(monkeypatch: pytest.MonkeyPatch, fake: FakeEngine) -> StubPages:
    monkeypatch.delenv("WARP_APP_RUN", raising=False)
    return StubPages(monkeypatch)


def open_app(**query: Any) -> AppTest:
    page = AppTest.from_file(str(SCRIPT), default_timeout=20)
    page.session_state["session_id"] = ME
    for name, value in query.items():
        page.query_params[name] = value
    return page.run()


def view_of(page: AppTest) -> View:
    assert not page.exception
    return page.session_state["view"]


def words(page: AppTest) -> list[str]:
    return [one.value for kind in ("text", "warning", "markdown") for one in getattr(page.main, kind)]


def strip_of(page: AppTest) -> str:
    return "\n".join(re.sub(r"\\(.)", r"\1", one.value) for one in page.sidebar.caption)


def test_it_opens_explore_on_the_bundled_run(pages: StubPages):
    page = open_app()
    assert "page explore" in words(page)
    assert view_of(page).run == "demo-run"
    assert view_of(page).place == Place(iteration=2, eta=0.5)
    assert set(page.query_params) == {"run", "at"}


def test_all_pages_are_there():
    assert list(PAGES) == ["explore", "train", "geometry", "compare", "export", "studies", "help"]


def test_the_run_asked_for_at_the_start_is_opened(pages: StubPages, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WARP_APP_RUN", "training-now")
    page = open_app()
    assert view_of(page).run == "training-now"
    assert view_of(page).place.iteration == 1


def test_a_link_is_followed(pages: StubPages):
    page = open_app(run="demo-run", at="i1.lerp.e0.8.init", pin=["i2.slerp.e0.3.sft~mine"], budget="12")
    view = view_of(page)
    assert view.place == Place(iteration=1, method="lerp", eta=0.8, towards="init")
    assert view.pins == (Pin(place=Place(iteration=2, eta=0.3), label="mine"),)
    assert view.budget == 12
    assert page.main.button.len == 0, "nothing to note"


def test_what_a_link_names_in_vain_is_said_and_can_be_dismissed(pages: StubPages):
    page = open_app(run="gone<b>", at="i1.slerp.e9.sft", seed="3")
    assert view_of(page).run == "demo-run"
    assert view_of(page).seed == 3
    notes = page.main.text[0].value
    assert "There is no run 'gone<b>' here." in notes
    assert "less than or equal to 2" in notes
    page.main.button(key="dismiss-notes").click().run()
    assert page.main.text[0].value == "page explore"


def test_places_of_another_run_are_left_out(pages: StubPages):
    page = open_app(run="demo-run", at="i7.slerp.e0.4.sft", pin=["i1.slerp.w0.5-0.5.e1.sft", "i1.slerp.e1.sft"])
    view = view_of(page)
    assert view.place == Place(iteration=2, eta=0.4)
    assert [pin.place for pin in view.pins] == [Place(eta=1)]
    assert "Pin 1 is left out: 2 weights for 3 policies" in page.main.text[0].value


def test_loose_models_are_a_selection(pages: StubPages):
    page = open_app(init="base", policy=["a", "b"])
    assert view_of(page).selection == Selection(init="base", policies=("a", "b"))
    assert "page explore" in words(page)


def test_an_engine_that_is_down_is_one_banner_that_goes_away(pages: StubPages, fake: FakeEngine):
    fake.down = True
    page = open_app(run="demo-run", seed="5")
    assert words(page) == [BANNER]
    assert strip_of(page) == "Engine: no answer"
    fake.down = False
    page.run()
    assert BANNER not in words(page)
    assert "page explore" in words(page)
    assert view_of(page).seed == 5


def test_an_engine_that_dies_under_a_page_is_the_same_banner(pages: StubPages, fake: FakeEngine):
    page = open_app()

    def die() -> None:
        fake.down = True
        fake.status()

    pages.acts.append(die)
    page.run()
    assert words(page) == ["page explore", BANNER]


def test_users_errors_and_faults_have_no_trace(pages: StubPages, caplog: pytest.LogCaptureFixture):
    def mistake() -> None:
        raise WorkspaceError("there is no such thing: choose another")

    def fault() -> None:
        raise KeyError("/home/somebody/secret")

    pages.acts.append(mistake)
    page = open_app()
    assert not page.exception
    assert "there is no such thing: choose another" in words(page)
    pages.acts[:] = [fault]
    page.run()
    assert not page.exception
    assert "secret" not in "\n".join(words(page))
    assert any("A fault of this app" in word for word in words(page))
    assert "/home/somebody/secret" in caplog.text, "the log has it"


def test_a_missing_token_is_said_in_a_line(monkeypatch: pytest.MonkeyPatch):
    from app.engine import use_engine

    monkeypatch.setenv("WARP_ENGINE_URL", "http://127.0.0.1:9")
    monkeypatch.delenv("WARP_ENGINE_TOKEN", raising=False)
    use_engine(None)
    page = open_app()
    assert not page.exception
    assert any("WARP_ENGINE_TOKEN" in word for word in words(page))


def test_no_engine_at_all_is_waited_for(monkeypatch: pytest.MonkeyPatch):
    from app.engine import use_engine

    monkeypatch.delenv("WARP_ENGINE_URL", raising=False)
    use_engine(None)
    page = open_app()
    assert not page.exception
    assert BANNER in words(page)


def test_the_strip_is_quiet_when_nothing_goes_on(pages: StubPages, fake: FakeEngine):
    fake.stop("training-now")
    assert strip_of(open_app()) == "Engine ready  \n310 MB \u00b7 cpu"


def test_the_strip_shows_training(pages: StubPages):
    assert "Training training-now\niteration 1, policy 2, step" in strip_of(open_app())


def test_the_strip_shows_my_jobs_and_cancels_them(pages: StubPages, fake: FakeEngine):
    fake.stop("training-now")
    page = open_app()
    request = MeasureRequest(session=ME, selection=DEMO, places=(Place(eta=0.42), Place(eta=0.44)))
    mine = fake.submit(request)
    other = fake.submit(request.model_copy(update={"session": "somebody"}))
    page.run()
    strip = strip_of(page)
    assert strip.startswith("Engine at work on 2 jobs")
    assert strip.count("Measure 2 points") == 1, "those of others are counted only"
    assert "of 2, " in strip
    assert "left" in strip
    (button,) = page.sidebar.button
    button.click().run()
    assert fake.job(mine.id).state is JobState.CANCELLED
    assert fake.job(other.id).state is not JobState.CANCELLED


def test_the_strip_leaves_previews_to_their_page(pages: StubPages, fake: FakeEngine):
    fake.stop("training-now")
    page = open_app()
    panes = (PaneRequest(id="a", place=Place()),)
    fake.submit(PreviewRequest(session=ME, selection=DEMO, prompt="x", panes=panes))
    page.run()
    assert strip_of(page).startswith("Engine ready")
    assert page.sidebar.button.len == 0


def test_names_of_others_are_text(pages: StubPages, fake: FakeEngine):
    fake.stop("training-now")
    fake.train(TrainRequest(name="![x](http:evil) :red[a] **b**", config={}))
    page = open_app()
    raw = [one.value for one in page.sidebar.caption if "Training" in one.value]
    assert raw == [r"Training \!\[x\]\(http\:evil\) \:red\[a\] \*\*b\*\*"]


def test_the_strip_ticks_only_while_something_goes_on(pages: StubPages, fake: FakeEngine, monkeypatch: Any):
    ticks: list[float | None] = []
    real = st.fragment

    def spy(*args: Any, **options: Any) -> Any:
        ticks.append(options.get("run_every"))
        return real(*args, **options)

    monkeypatch.setattr(st, "fragment", spy)
    fake.stop("training-now")
    page = open_app()
    assert ticks == [None]
    fake.submit(MeasureRequest(session=ME, selection=DEMO, places=(Place(eta=0.42),)))
    page.run()
    assert ticks[1:] == [1.0]
    fake.advance(30)
    page.run()
    assert ticks[2:] == [None]
    fake.down = True
    page.run()
    assert set(ticks[3:]) == {1.5}


def test_icons_are_files_of_ours_or_of_streamlits_font():
    source = Path(app.main.__file__).read_text(encoding="utf-8")
    assert "http" not in source
    assert 'page_icon=str(APP / "static" / "icon.png")' in source
    assert all(icon.startswith(":material/") for _, icon in PAGES.values())
    for name in ("icon.png", "logo.svg", "style.css"):
        assert (Path(app.main.__file__).parent / "static" / name).is_file()
