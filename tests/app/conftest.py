"""A page, run by Streamlit's test runner, and the made-up engine it talks to.

    def test_it(open_page, fake):
        page = open_page("export", view=View(run="demo-run"))
        assert not page.exception
        page.button(key="go").click().run()

Nothing moves in `fake` between runs but what `fake.advance(n)` moves, and one step whenever the page asks for jobs or
runs. `session_state` values can be set in the call; component results are injected as Streamlit documents it.
"""

import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from app.engine import use_engine
from app.view import View
from warp_core.service.fake import FakeEngine

OpenPage = Callable[..., AppTest]


@pytest.fixture(autouse=True)
def the_main_module(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put `__main__` back: Streamlit leaves its script there, and processes that later tests start would run it."""
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])


@pytest.fixture
def fake() -> Iterator[FakeEngine]:
    """The engine of the app for one test."""
    engine = FakeEngine()
    use_engine(engine)
    yield engine
    use_engine(None)


@pytest.fixture
def open_page(fake: FakeEngine) -> OpenPage:
    """Run a page of `app.pages` by its name, with a view and any session state; returns its `AppTest`."""

    def open_it(name: str, *, view: View | None = None, timeout_s: float = 20, **state: Any) -> AppTest:
        page = AppTest.from_string(f"from app.pages.{name} import render\n\nrender()\n", default_timeout=timeout_s)
        page.session_state["view"] = view or View(run="demo-run")
        for key, value in state.items():
            page.session_state[key] = value
        return page.run()

    return open_it
