"""A server with a page that holds the pilot alone, and pilots on it."""

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, expect

from tests.browser.conftest import ROOT, OpenTab, Tab, free_port, wait_for
from tests.browser.pilot.driver import OpenPilot, Pilot


@pytest.fixture(scope="package")
def pilot_url(tmp_path_factory: pytest.TempPathFactory, browser: Browser) -> Iterator[str]:
    """A page with nothing but the pilot."""
    port = free_port()
    with (tmp_path_factory.mktemp("pilot") / "log.txt").open("wb") as log:
        command = [sys.executable, "-m", "tests.browser.pilot.server", str(port)]
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
    wait_for(f"http://127.0.0.1:{port}/_stcore/health", process=process)
    yield f"http://127.0.0.1:{port}"
    process.terminate()
    process.wait(10)


@pytest.fixture(scope="package")
def plain(browser: Browser, pilot_url: str) -> Iterator[Tab]:
    """The page without a query, loaded once for all tests."""
    page = browser.new_context(viewport={"width": 1440, "height": 900}, color_scheme="light").new_page()
    tab = Tab(page=page)
    page.set_default_timeout(20_000)
    page.on("request", lambda request: tab.requests.append(request.url))
    page.on("console", tab.hear)
    page.on("pageerror", lambda error: tab.errors.append(str(error)))
    page.goto(pilot_url)
    page.locator(".live.placed").wait_for(state="attached")
    yield tab
    page.context.close()


@pytest.fixture
def pilot(plain: Tab) -> Iterator[Pilot]:
    """A pilot that nobody has touched."""
    found = Pilot(plain.page)
    last = found.told()["page"]
    plain.page.set_viewport_size({"width": 1440, "height": 900})
    plain.page.emulate_media(color_scheme="light")
    plain.page.mouse.move(5, 5)
    plain.page.get_by_role("button", name="Begin anew").click()
    found.wait(lambda told: told["page"] > last)
    plain.settled()
    expect(plain.page.locator(".live.placed")).to_have_count(1)
    expect(found.number("eta, as a number")).to_have_value("0.43")
    yield found
    plain.check()


@pytest.fixture
def open_pilot(open_tab: OpenTab, pilot_url: str) -> OpenPilot:
    """Load the page: open_pilot("points=100", size=(900, 700))."""

    def open_it(query: str = "", **options: Any) -> Pilot:
        page = open_tab(f"{pilot_url}/?{query}", **options).page
        page.locator(".legend button").first.wait_for()
        if "blind" not in query and "empty" not in query:
            page.locator(".live.placed").wait_for(state="attached")
        return Pilot(page)

    return open_it
