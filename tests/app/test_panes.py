"""What the panes and the card send to the browser; what it does with it is tested there (tests/browser)."""

from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

import app.components.panes as module
from app.components.panes import CompletionView, PaneView, lines_for
from tests.app.explore_tools import data_of

FOLDER = Path(module.__file__).parent / "panes"
SCRIPT = """
from app.components.panes import CompletionView, PaneView, card, panes

done = CompletionView(text="<b>one</b>", done=True, facts=(("reward", "1.20"),))
panes(
    [
        PaneView(id="left", title="SFT policy", state="done", share=0.0, completions=(done,)),
        PaneView(id="current", title="Merge", state="sampling", status="3 of 24 tokens", share=0.5, is_current=True,
                 stale_recipe="SLERP, eta 0.3", completions=(CompletionView(text="two", done=False),)),
    ],
    key="panes",
    show_differences=True,
    lines=4,
    num_completions=2,
    position=0.5,
    position_label="half way",
    end_color="#D55E00",
)
card({"recipe": {"title": "x", "badge": "measured"}}, key="card")
"""


@pytest.fixture(scope="module")
def page() -> AppTest:
    return AppTest.from_string(SCRIPT, default_timeout=20).run()


def test_texts_travel_as_data(page: AppTest):
    assert not page.exception
    data = data_of(page, "panes")
    left, current = data["panes"]
    assert left["completions"] == [{"text": "<b>one</b>", "done": True, "facts": [["reward", "1.20"]]}]
    assert (left["stale"], current["stale"], current["stale_recipe"]) == (False, True, "SLERP, eta 0.3")
    assert (current["state"], current["status"], current["is_current"]) == ("sampling", "3 of 24 tokens", True)
    assert (data["lines"], data["num_completions"], data["position"], data["end_color"]) == (4, 2, 0.5, "#D55E00")
    assert data_of(page, "card")["recipe"] == {"title": "x", "badge": "measured"}


def test_room_grows_with_the_number_of_tokens_and_has_an_end():
    rooms = [lines_for(tokens) for tokens in (1, 8, 24, 64, 128, 256, 1024)]
    assert rooms == sorted(rooms)
    assert rooms[0] == 3
    assert rooms[-1] == 12
    assert lines_for(24) * 48 > 24 * 4.5


@pytest.mark.parametrize("name", ["panes.js", "card.js"])
def test_no_text_becomes_markup(name: str):
    code = (FOLDER / name).read_text(encoding="utf-8")
    assert "textContent" in code
    for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "createContextualFragment", "document.write", "eval("):
        assert word not in code
    assert "http" not in code.replace("http://www.w3.org/2000/svg", "")


@pytest.mark.parametrize("name", ["panes.css", "card.css"])
def test_styles_fetch_nothing_and_follow_the_theme(name: str):
    code = (FOLDER / name).read_text(encoding="utf-8")
    assert "url(" not in code
    assert "@import" not in code
    assert "#" not in code.replace("#{", "")
    assert "var(--st-text-color)" in code


@pytest.mark.parametrize("path", sorted(FOLDER.iterdir()), ids=lambda path: path.name)
def test_sources_are_ascii(path: Path):
    assert path.read_text(encoding="utf-8").isascii()


def test_views_are_frozen():
    view = PaneView(id="x", title="x", state="empty")
    with pytest.raises(AttributeError):
        view.title = "y"
    assert CompletionView(text="", done=False).facts == ()
