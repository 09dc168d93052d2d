"""The app as a process, and pages of a real browser that must not complain and must not leave this machine.

    def test_it(open_tab, app_url):
        tab = open_tab(app_url, scheme="dark")          # a session of its own; waits until the page stands
        tab.page.get_by_role("button", name="Measure").click()
        tab.settled()                                   # no script runs any more

At the end of a test every tab is checked: no error in the console, no request and no WebSocket to anywhere but
127.0.0.1. A test that provokes errors says so beforehand: `tab.expects_errors("WebSocket")`.

`app_url` is one app with a made-up engine for the whole test run; `start_app(...)` starts one for a single test.
Without a Chromium these tests are skipped, but with WARP_BROWSER_TESTS=1 they fail.
"""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Error, Page, sync_playwright

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
FLAGS = [
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-gpu",
    # Whatever tries to leave this machine all the same ends at a port where nobody listens.
    "--proxy-server=http://127.0.0.1:9",
    "--proxy-bypass-list=127.0.0.1;localhost",
]
START_S = 60
OURS = re.compile(
    r"(https?|wss?)://(127\.0\.0\.1|localhost)(:\d+)?/|data:|blob:(https?://(127\.0\.0\.1|localhost)|null)"
)
PROBE = re.compile(r"/\w+/_stcore/(health|host-config)$")
SCHEMES = ("light", "dark")


@dataclass
class RunningApp:
    """A web app in a process of its own."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path


@dataclass
class Tab:
    """A page of the browser with all that it asked for and complained about."""

    page: Page
    requests: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    expected: list[str] = field(default_factory=list)

    def expects_errors(self, *parts: str) -> None:
        """Let console errors pass that hold one of these texts."""
        self.expected += parts

    def hear(self, line: ConsoleMessage) -> None:
        """Keep an error of the console; not that Streamlit looks for its server below the page's path first."""
        if line.type == "error" and not PROBE.search(line.location["url"]):
            self.errors.append(f"{line.text} ({line.location['url']})")

    def settled(self, *, timeout_s: float = 20) -> None:
        """Wait until no script runs and nothing on the page waits for one."""
        self.page.wait_for_selector("[data-testid=stApp][data-test-script-state=notRunning]", timeout=1000 * timeout_s)

    def picture(self, path: Path, *, height: int | None = None) -> None:
        """Write a screenshot, of a taller window where `height` is given: Streamlit scrolls inside the page."""
        before = self.page.viewport_size
        if height is not None and before is not None:
            self.page.set_viewport_size({"width": before["width"], "height": height})
            self.page.wait_for_timeout(400)
        self.page.screenshot(path=path, animations="disabled")
        if height is not None and before is not None:
            self.page.set_viewport_size(before)

    def check(self) -> None:
        """Fail if the page left this machine or complained."""
        strangers = [url for url in self.requests if not OURS.match(url)]
        assert strangers == [], "requests off this machine"
        complaints = [text for text in self.errors if not any(part in text for part in self.expected)]
        assert complaints == [], "errors in the browser's console"


OpenTab = Callable[..., Tab]
StartApp = Callable[..., RunningApp]


def free_port() -> int:
    """A port that nobody listens on right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(url: str, *, process: subprocess.Popen[bytes] | None = None, timeout_s: float = START_S) -> None:
    """Wait until an address answers; fail when the process behind it ends first."""
    until = time.monotonic() + timeout_s
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            assert process is None or process.poll() is None, f"the process behind {url} ended"
            assert time.monotonic() < until, f"{url} did not answer in {timeout_s:.0f} s"
            time.sleep(0.1)


@contextmanager
def running_app(log: Path, *, engine: str = "fake", run: str | None = None, env: dict[str, str] | None = None) -> Any:
    """`python -m app` on a free port, stopped at the end."""
    port = free_port()
    command = [sys.executable, "-m", "app", "--port", str(port), "--engine", engine, *(["--run", run] if run else [])]
    with log.open("wb") as out:
        process = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=out, env=os.environ | (env or {}))
    try:
        url = f"http://127.0.0.1:{port}"
        wait_for(f"{url}/_stcore/health", process=process)
        yield RunningApp(url=url, process=process, log=log)
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Debian's Chromium without a window."""
    if not Path(CHROMIUM).exists():
        reason = "no Chromium at /usr/bin/chromium: apt-get install chromium"
        if os.environ.get("WARP_BROWSER_TESTS") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def shared_app(tmp_path_factory: pytest.TempPathFactory, browser: Browser) -> Iterator[RunningApp]:
    """An app with a made-up engine, for all tests that change nothing for the others."""
    with running_app(tmp_path_factory.mktemp("app") / "log.txt") as app:
        yield app


@pytest.fixture(scope="session")
def app_url(shared_app: RunningApp) -> str:
    """Address of the shared app."""
    return shared_app.url


@pytest.fixture
def start_app(tmp_path: Path, browser: Browser) -> Iterator[StartApp]:
    """Start an app for this test: engine="fake" or an address, run=NAME, env={...}."""
    with ExitStack() as stack:
        count = iter(range(100))
        yield lambda **options: stack.enter_context(running_app(tmp_path / f"app-{next(count)}.txt", **options))


@pytest.fixture(params=SCHEMES)
def scheme(request: pytest.FixtureRequest) -> str:
    """Both colour schemes, one after the other."""
    return str(request.param)


@pytest.fixture
def open_tab(browser: Browser, start_app: StartApp) -> Iterator[OpenTab]:
    """Open pages, each a browser session of its own; they are checked and closed at the end of the test.

    It asks for `start_app` so that the apps of a test end after its tabs, which would complain of their absence.
    """
    tabs: list[Tab] = []

    def open_it(
        url: str, *, scheme: str = "light", size: tuple[int, int] = (1440, 900), settle: bool = True, **context: Any
    ) -> Tab:
        viewport = {"width": size[0], "height": size[1]}
        page = browser.new_context(viewport=viewport, color_scheme=scheme, **context).new_page()
        page.set_default_timeout(20_000)
        tab = Tab(page=page)
        tabs.append(tab)
        page.on("request", lambda request: tab.requests.append(request.url))
        page.on("websocket", lambda socket_: tab.requests.append(socket_.url))
        page.on("console", tab.hear)
        page.on("pageerror", lambda error: tab.errors.append(str(error)))
        page.goto(url)
        if settle:
            tab.settled()
        return tab

    yield open_it
    for tab in tabs:
        try:
            tab.page.context.close()
        except Error:
            tab.errors.append("the page crashed")
    for tab in tabs:
        tab.check()
