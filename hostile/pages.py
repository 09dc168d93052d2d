"""The whole app for attacks: `warp-core app` and pages of a real Chromium; when the explore page stands still."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
from playwright.sync_api import Browser, Page, sync_playwright

from hostile.running_programs import Program, Programs
from tests.browser.conftest import CHROMIUM, FLAGS

__all__ = ["DONE", "App", "chromium", "open_page", "started_app"]

PATIENCE_S = 60.0
# Whether no script runs, and each of the three texts is whole and of the position that the page is at.
DONE = """() => {
  const all = (root, what) => [
    ...root.querySelectorAll(what),
    ...[...root.querySelectorAll('*')].flatMap((node) => (node.shadowRoot ? all(node.shadowRoot, what) : [])),
  ];
  const panes = all(document, 'section.pane');
  return document.querySelector('[data-testid=stApp][data-test-script-state=notRunning]') !== null
    && panes.length === 3
    && panes.every((pane) => pane.dataset.state === 'done' && !pane.classList.contains('stale'));
}"""


@dataclass(frozen=True, kw_only=True)
class App:
    """`warp-core app`: where its page and its engine are."""

    program: Program
    engine: psutil.Process
    url: str
    engine_url: str
    token: str

    def client(self) -> httpx.Client:
        """A client of the engine that shows statuses."""
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        return httpx.Client(base_url=self.engine_url, headers=headers, trust_env=False, timeout=60)


@contextmanager
def started_app(programs: Programs, *run: str) -> Iterator[App]:
    """The app as a person starts it, with a run to open or none, ended with everything that it has started."""
    program = programs.start("warp_core", "app", *run, "--headless", "--json")
    told = program.announced()
    children = psutil.Process(told["pid"]).children(recursive=True)
    engine = next(one for one in children if "serve" in one.cmdline())
    token = engine.environ()["WARP_ENGINE_TOKEN"]
    try:
        yield App(program=program, engine=engine, url=told["url"], engine_url=told["engine"], token=token)
    finally:
        for one in [program.process, *children]:
            with suppress(psutil.Error):
                one.kill()


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser without a window.

    Raises RuntimeError where there is none.
    """
    if not Path(CHROMIUM).exists():
        raise RuntimeError(f"no Chromium at {CHROMIUM}: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def open_page(browser: Browser, url: str) -> Iterator[Page]:
    """A page with a session of its own."""
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    try:
        page = context.new_page()
        page.set_default_timeout(1000 * PATIENCE_S)
        page.goto(url)
        yield page
    finally:
        context.close()
