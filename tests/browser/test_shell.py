"""The shell of the app in a browser: navigation, links, theme, status, an engine that dies and comes back, offline."""

import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest
from playwright.sync_api import expect

from app.main import PAGES
from tests.browser.conftest import OpenTab, RunningApp, StartApp, Tab, free_port, running_app
from tests.service.served import TOKEN, served
from warp_core.service.fake import FakeEngine
from warp_core.service.protocol import MeasureRequest, Place, Selection

TITLES = [title for title, _ in PAGES.values()]
SIZES = [(1440, 900), (1024, 768)]
IDLE_S = 2.5


class Backend:
    """A made-up engine behind HTTP that can be killed and started again at the same address."""

    def __init__(self) -> None:
        self.engine = FakeEngine(seconds_per_tick=0.05)
        self.engine.stop("training-now")
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._stack = ExitStack()

    def start(self) -> None:
        self._stack.enter_context(served(self.engine, port=self.port))

    def stop(self) -> None:
        self._stack.close()


@pytest.fixture
def backend() -> Iterator[Backend]:
    made = Backend()
    made.start()
    yield made
    made.stop()


def query_of(tab: Tab) -> str:
    return tab.page.evaluate("decodeURIComponent(location.search)")


def go(tab: Tab, title: str) -> None:
    link = tab.page.get_by_test_id("stSidebarNav").get_by_role("link", name=title)
    link.click()
    expect(link).to_have_attribute("aria-current", "page")
    tab.settled()


def until(true: Callable[[], Any], *, seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


def test_all_pages_open_and_keep_the_view(open_tab: OpenTab, shared_app: RunningApp):
    tab = open_tab(f"{shared_app.url}/explore?run=demo-run&at=i1.lerp.e0.8.sft&pin=i2.slerp.e0.3.sft~mine")
    assert tab.page.get_by_test_id("stSidebarNavLink").all_inner_texts()
    for title in [*TITLES[1:], TITLES[0]]:
        go(tab, title)
        until(lambda: query_of(tab) == "?run=demo-run&at=i1.lerp.e0.8.sft&pin=i2.slerp.e0.3.sft~mine")
        assert tab.page.get_by_text("A fault of this app").count() == 0
    assert tab.page.title() != "Streamlit"
    maps = Path(f"/proc/{shared_app.process.pid}/maps").read_text(encoding="utf-8")
    assert not re.search(r"libtorch|/torch/|transformers|safetensors", maps), "the app shows, the engine computes"
    log = shared_app.log.read_text(encoding="utf-8")
    assert "Traceback" not in log, log[-2000:]


def test_pages_fit_at_both_sizes_in_both_schemes(open_tab: OpenTab, app_url: str, scheme: str):
    tab = open_tab(f"{app_url}/?run=demo-run", scheme=scheme)
    main = tab.page.get_by_test_id("stMain")
    for title in TITLES:
        go(tab, title)
        for width, height in SIZES:
            tab.page.set_viewport_size({"width": width, "height": height})
            until(lambda: main.evaluate("node => node.scrollWidth <= node.clientWidth + 1"), seconds=5)
        assert tab.page.get_by_text("A fault of this app").count() == 0
        assert tab.page.get_by_test_id("stAppDeployButton").count() == 0


def test_the_scheme_follows_the_system_and_can_be_switched(open_tab: OpenTab, app_url: str, scheme: str):
    tab = open_tab(f"{app_url}/help", scheme=scheme)
    ground = {"light": "rgb(255, 255, 255)", "dark": "rgb(19, 23, 27)"}
    app = tab.page.get_by_test_id("stApp")
    expect(app).to_have_css("background-color", ground[scheme])
    figure = tab.page.locator("svg[role=img] text").first
    before = figure.evaluate("node => getComputedStyle(node).fill")
    other = {"light": "Dark", "dark": "Light"}[scheme]
    tab.page.get_by_test_id("stMainMenuButton").click()
    tab.page.get_by_test_id(f"stMainMenuItem-theme-{other}").click()
    expect(app).to_have_css("background-color", ground[other.casefold()])
    until(lambda: figure.evaluate("node => getComputedStyle(node).fill") != before)


def test_the_help_page_draws_its_pictures_and_equations(open_tab: OpenTab, app_url: str):
    tab = open_tab(f"{app_url}/help")
    expect(tab.page.locator("svg[role=img]")).to_have_count(5)
    expect(tab.page.locator(".katex-display")).to_have_count(5)
    assert tab.page.locator(".katex-error").count() == 0
    for picture in tab.page.locator("svg[role=img]").all():
        box = picture.bounding_box()
        assert box is not None
        assert box["width"] > 200
        texts = picture.locator("text").all()
        for text in texts:
            inner = text.bounding_box()
            assert inner is not None
            assert inner["x"] >= box["x"] - 1, text.inner_text()
            assert inner["x"] + inner["width"] <= box["x"] + box["width"] + 1, text.inner_text()


def test_the_tour_opens_prepared_views(open_tab: OpenTab, app_url: str):
    tab = open_tab(f"{app_url}/help?run=demo-run&at=i2.slerp.e0.1.sft")
    tab.page.get_by_test_id("stMain").get_by_role("link", name="2. Set a budget of KL 10").click()
    tab.page.wait_for_url(re.compile("budget=10"))
    until(lambda: query_of(tab).startswith("?run=demo-run&at=i2.slerp.e0.8.sft&budget=10"))
    tab.page.go_back()
    tab.page.wait_for_url(re.compile("/help"))
    expect(tab.page.get_by_role("heading", name="In one minute")).to_be_visible()


def test_back_undoes_a_change_of_the_view(open_tab: OpenTab, app_url: str):
    tab = open_tab(f"{app_url}/help?run=demo-run&at=i1.slerp.e9.sft")
    expect(tab.page.get_by_text("Left out of the link")).to_be_visible()
    tab.page.get_by_role("button", name="Dismiss").click()
    expect(tab.page.get_by_text("Left out of the link")).to_have_count(0)
    go(tab, "Train")
    tab.page.go_back()
    expect(tab.page.get_by_role("heading", name="In one minute")).to_be_visible()
    until(lambda: query_of(tab).startswith("?run=demo-run"))


def test_the_strip_shows_and_cancels_a_job(open_tab: OpenTab, start_app: StartApp, backend: Backend):
    app = start_app(engine=backend.url, env={"WARP_ENGINE_TOKEN": TOKEN})
    tab = open_tab(f"{app.url}/help")
    strip = tab.page.get_by_test_id("stSidebarUserContent")
    expect(strip).to_contain_text("Engine ready")
    places = tuple(Place(eta=0.01 * step) for step in range(1, 90))
    job = backend.engine.submit(MeasureRequest(session="somebody", selection=Selection(run="demo-run"), places=places))
    go(tab, "Train")
    expect(strip).to_contain_text("at work on 1 job")
    backend.engine.cancel(job.id)
    expect(strip).to_contain_text("Engine ready", timeout=8000)


def frames_of(tab: Tab) -> list[int]:
    """Sizes of what goes over the WebSocket from now on, either way."""
    sizes: list[int] = []
    session = tab.page.context.new_cdp_session(tab.page)
    session.send("Network.enable")
    for name in ("Network.webSocketFrameSent", "Network.webSocketFrameReceived"):
        session.on(name, lambda event: sizes.append(len(event["response"]["payloadData"])))
    return sizes


def test_nothing_moves_while_nothing_goes_on(open_tab: OpenTab, start_app: StartApp, backend: Backend):
    app = start_app(engine=backend.url, env={"WARP_ENGINE_TOKEN": TOKEN})
    tab = open_tab(f"{app.url}/help")
    tab.page.wait_for_timeout(500)
    frames = frames_of(tab)
    process = psutil.Process(app.process.pid)
    before = sum(process.cpu_times()[:2])
    tab.page.wait_for_timeout(1000 * IDLE_S)
    assert frames == []
    assert sum(process.cpu_times()[:2]) - before < 0.1 * IDLE_S


def test_a_killed_engine_is_one_banner_and_its_return_is_noticed(
    open_tab: OpenTab, start_app: StartApp, backend: Backend
):
    app = start_app(engine=backend.url, env={"WARP_ENGINE_TOKEN": TOKEN})
    tab = open_tab(f"{app.url}/help?run=demo-run&at=i1.slerp.e0.3.sft")
    backend.stop()
    go(tab, "Geometry")
    banner = tab.page.get_by_text("The engine does not answer.")
    expect(banner).to_have_count(1)
    assert "Traceback" not in tab.page.inner_text("body")
    backend.start()
    expect(banner).to_have_count(0, timeout=10_000)
    expect(tab.page.get_by_test_id("stSidebarUserContent")).to_contain_text("Engine ready")
    until(lambda: query_of(tab) == "?run=demo-run&at=i1.slerp.e0.3.sft")


def test_two_sessions_have_views_of_their_own(open_tab: OpenTab, app_url: str):
    first = open_tab(f"{app_url}/help?run=demo-run&at=i1.slerp.e0.1.sft")
    second = open_tab(f"{app_url}/help?run=demo-run&at=i2.lerp.e0.9.sft")
    go(first, "Train")
    go(second, "Train")
    until(lambda: "at=i1.slerp.e0.1.sft" in query_of(first))
    until(lambda: "at=i2.lerp.e0.9.sft" in query_of(second))


def test_the_navigation_can_be_used_by_keyboard(open_tab: OpenTab, app_url: str):
    tab = open_tab(f"{app_url}/geometry?run=demo-run")
    link = tab.page.get_by_test_id("stSidebarNav").get_by_role("link", name="Help")
    for _ in range(20):
        tab.page.keyboard.press("Tab")
        if link.evaluate("node => node === document.activeElement"):
            break
    assert link.evaluate("node => node === document.activeElement")
    tab.page.keyboard.press("Enter")
    expect(tab.page.get_by_role("heading", name="In one minute")).to_be_visible()


def test_cold_start(open_tab: OpenTab, tmp_path: Path, browser: Any, record_property: Callable[[str, object], None]):
    started = time.monotonic()
    with running_app(tmp_path / "log.txt") as app:
        up = time.monotonic() - started
        tab = open_tab(f"{app.url}/?run=demo-run", settle=False)
        tab.page.get_by_role("slider").first.wait_for()
        usable = time.monotonic() - started
        tab.settled()
        tab.page.context.close()
    figures = {"answers_s": round(up, 2), "usable_s": round(usable, 2)}
    record_property("cold_start", json.dumps(figures))
    print(figures)
    assert usable < 30
