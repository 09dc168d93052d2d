"""Compare in a browser: voting by keyboard, hostile text, measuring, rows; votes reach engine and other sessions."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import uvicorn
from playwright.sync_api import Browser, Locator, Page, expect

from tests.browser.conftest import OpenTab, Tab, free_port, running_app, wait_for
from warp_core.service.documents import SampleRow
from warp_core.service.fake import FakeEngine
from warp_core.service.protocol import Selection, Vote
from warp_core.service.server import create_app

RUN = Selection(run="demo-run")
LINK = "compare?run=demo-run&pin=i1.slerp.e0.5.sft"
TOKEN = "compare-tests"


class ToldApart(FakeEngine):
    """Completions name their point, so that hostile ones of two models differ, too."""

    def samples(self, selection: Selection, key: str) -> list[SampleRow]:
        rows = super().samples(selection, key)
        if not self.hostile:
            return list(rows)
        return [row.model_copy(update={"completion": f"{row.completion} {key}"}) for row in rows]


@dataclass
class World:
    """An app, and the engine behind it, which is in this process."""

    url: str
    engine: ToldApart

    def votes(self) -> list[Vote]:
        return list(self.engine.votes(RUN))


@contextmanager
def served(engine: FakeEngine) -> Iterator[str]:
    """The engine's HTTP API in a thread."""
    port = free_port()
    config = uvicorn.Config(create_app(engine, token=TOKEN), host="127.0.0.1", port=port, log_level="warning")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_for(f"http://127.0.0.1:{port}/health")
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory, browser: Browser) -> Iterator[World]:
    engine = ToldApart(seconds_per_tick=0.1)
    log = tmp_path_factory.mktemp("compare") / "log.txt"
    with served(engine) as address, running_app(log, engine=address, env={"WARP_ENGINE_TOKEN": TOKEN}) as started:
        yield World(url=started.url, engine=engine)


@pytest.fixture
def world(app: World) -> Iterator[World]:
    yield app
    app.engine.hostile = False
    for vote in app.votes():
        app.engine.undo_vote(RUN, vote.id)


def section(tab: Tab, name: str) -> None:
    tab.page.get_by_role("tab", name=name).click()
    tab.settled()


def start_voting(tab: Tab) -> None:
    section(tab, "Vote")
    tab.page.get_by_role("button", name="Start voting").click()
    expect(tab.page.get_by_role("button", name="Tie")).to_be_visible()


def voted(page: Page, count: int) -> None:
    """Wait until the page says so."""
    expect(page.get_by_text(f"{count} of 32 voted")).to_be_visible()


def texts(page: Page) -> list[str]:
    """What the two panes show."""
    shown = page.get_by_role("region", name="completion 1")
    expect(shown).to_have_count(2)
    return shown.all_inner_texts()


def look() -> None:
    """As long as a grade is taken for a key held down."""
    threading.Event().wait(0.35)


def test_voting_by_keyboard_alone(open_tab: OpenTab, world: World):
    page = (tab := open_tab(f"{world.url}/{LINK}")).page
    page.get_by_role("tab", name="Completions").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    start = page.get_by_role("button", name="Start voting")
    start.focus()
    page.keyboard.press("Enter")
    voted(page, 0)
    before = texts(page)
    look()
    page.keyboard.press("1")
    voted(page, 1)
    assert [vote.score for vote in world.votes()] == [1.5]
    assert [text.strip() for text in (world.votes()[0].first_text, world.votes()[0].second_text)] == before
    second = texts(page)
    assert second != before
    page.keyboard.press("s")
    expect(page.get_by_text("1 of 32 voted, 1 skipped")).to_be_visible()
    look()
    page.keyboard.press("7")
    voted(page, 2)
    assert [vote.score for vote in world.votes()] == [1.5, -1.5]
    page.keyboard.press("u")
    voted(page, 1)
    assert [vote.score for vote in world.votes()] == [1.5]
    page.keyboard.press("u")
    page.get_by_text("1 of 32 voted", exact=True).wait_for()
    assert texts(page) == second
    page.keyboard.press("Escape")
    expect(page.get_by_role("button", name="Go on voting")).to_be_visible()
    tab.settled()


def test_a_key_held_down_is_one_vote(open_tab: OpenTab, world: World):
    page = (tab := open_tab(f"{world.url}/{LINK}")).page
    start_voting(tab)
    look()
    for _ in range(30):
        page.keyboard.down("2")
        page.wait_for_timeout(30)
    page.keyboard.up("2")
    voted(page, 1)
    tab.settled()
    assert len(world.votes()) == 1


def test_nothing_moves_from_one_pair_to_the_next(open_tab: OpenTab, world: World):
    page = (tab := open_tab(f"{world.url}/{LINK}")).page
    start_voting(tab)
    names = ["Left much better", "Left slightly better", "Tie", "Right slightly better", "Right much better", "Stop"]
    buttons = [page.get_by_role("button", name=name) for name in names]
    places = [button.bounding_box() for button in buttons]
    assert all(place is not None and place["y"] + place["height"] < 900 for place in places)
    for count in range(1, 4):
        look()
        buttons[2].click()
        voted(page, count)
        tab.settled()
        assert [button.bounding_box() for button in buttons] == places
    for button in buttons:
        assert not is_cut(button)


def is_cut(element: Locator) -> bool:
    """Whether some of its text does not fit."""
    return bool(
        element.evaluate("e => [e, ...e.querySelectorAll('*')].some(one => one.scrollWidth > one.clientWidth + 1)")
    )


def test_a_vote_is_seen_at_once_by_another_session(open_tab: OpenTab, world: World):
    first, second = open_tab(f"{world.url}/{LINK}"), open_tab(f"{world.url}/{LINK}")
    start_voting(first)
    look()
    first.page.keyboard.press("4")
    voted(first.page, 1)
    section(second, "Vote")
    voted(second.page, 1)
    section(second, "Preferences")
    expect(second.page.get_by_text("1 vote on these models")).to_be_visible()
    expect(second.page.get_by_role("heading", name="Reward model as judge")).to_be_visible()


def test_hostile_text_makes_no_node(open_tab: OpenTab, world: World):
    world.engine.hostile = True
    label = "<img src=http://evil.example/p.png onerror='window.stolen=1'>![x](http://evil.example/q.png)"
    page = (tab := open_tab(f"{world.url}/{LINK}~{label}")).page
    for name in ("Completions", "Vote", "Preferences"):
        section(tab, name)
        if name == "Vote":
            page.get_by_role("button", name="Start voting").click()
        if name == "Preferences":
            expect(page.get_by_role("heading", name="Reward model as judge")).to_be_visible()
        else:
            assert "<script>window.stolen = 1</script>" in texts(page)[0]
        page.wait_for_timeout(300)
        nodes = "img[src*=evil], a[href*=javascript], a[href*=evil], textarea, style:has-text('body {')"
        assert page.locator(nodes).count() == 0
        assert page.locator("script", has_text="stolen").count() == 0
    assert page.evaluate("window.stolen") is None
    assert page.evaluate("getComputedStyle(document.body).display") != "none"


def test_a_measured_model_appears_while_one_works(open_tab: OpenTab, world: World):
    page = (tab := open_tab(f"{world.url}/{LINK}&pin=i1.slerp.e0.43.sft", scheme="dark")).page
    chip = page.get_by_role("button", name="Reward higher")
    chip.click()
    tab.settled()
    row = page.get_by_text("C: SLERP, eta 0.43 has not been measured with these prompts yet.")
    expect(row).to_be_visible()
    page.get_by_role("button", name="Measure", exact=True).click()
    expect(page.get_by_text("Measure SLERP, eta 0.43").last).to_be_visible()
    expect(row).to_be_hidden()
    expect(page.get_by_text("Measure SLERP, eta 0.43")).to_have_count(0)
    expect(chip).to_have_attribute("aria-pressed", "true")
    page.get_by_role("combobox", name="Model", exact=True).click()
    expect(page.get_by_role("option", name="C: SLERP, eta 0.43")).to_be_visible()


def test_a_row_is_chosen_by_click_and_by_key(open_tab: OpenTab, world: World):
    page = (tab := open_tab(f"{world.url}/{LINK}")).page
    table = page.get_by_test_id("stDataFrame").nth(1)
    table.click(position={"x": 18, "y": 40 + 74 + 30})
    expect(page.get_by_text("Row 2, completion 2 of its prompt")).to_be_visible()
    tab.settled()
    page.get_by_role("button", name="Next").focus()
    page.keyboard.press("Alt+ArrowRight")
    expect(page.get_by_text("Row 3, completion 1 of its prompt")).to_be_visible()
    page.keyboard.press("Alt+ArrowLeft")
    expect(page.get_by_text("Row 2, completion 2 of its prompt")).to_be_visible()
    marks = page.get_by_role("region", name="B: SLERP, eta 0.5, completion 1").locator("mark")
    assert marks.count() > 0


def test_a_link_restores_the_models_and_the_choice_changes_the_link(open_tab: OpenTab, world: World):
    page = (tab := open_tab(f"{world.url}/{LINK}&pin=i1.slerp.e1.sft~end")).page
    tags = page.get_by_test_id("stMultiSelect")
    expect(tags.get_by_text("SLERP, eta 0.5", exact=True)).to_be_visible()
    expect(tags.get_by_text("end", exact=True)).to_be_visible()
    page.get_by_role("combobox", name="Models beside the SFT policy").click()
    page.get_by_role("option", name="policy 2", exact=True).click()
    tab.settled()
    page.wait_for_function("location.search.includes('pin=i1.lerp.w0-1-0.e1.init')")
    page.reload()
    tab.settled()
    expect(tags.get_by_text("policy 2", exact=True)).to_be_visible()
