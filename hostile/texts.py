"""What a model might write (texts/*.txt), shown in a real Chromium on every page that shows what models write.

The engine is made up and writes these texts; the app, the browser and the pages are the real ones. In each place the
text must be there as it was written, no element may come of it, the browser may ask nobody but the app, and its console
must stay quiet.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, ConsoleMessage, Error, Locator, Page, sync_playwright

from app.compare.rows import shown_text
from hostile.outcomes import Outcome, Tally
from tests.browser.conftest import CHROMIUM, FLAGS, OURS, PROBE, running_app
from tests.evaluation.fake_front import POINTS, point
from tests.service.served import TOKEN, served
from warp_core.evaluation.page import write_front_html
from warp_core.evaluation.picture import write_front_svg
from warp_core.evaluation.series import plain
from warp_core.service.documents import Curve, Example, SampleRow
from warp_core.service.fake import FakeEngine
from warp_core.service.fake_jobs import FakeJob
from warp_core.service.protocol import Selection
from warp_core.studies.figures import Line, Panel
from warp_core.studies.page import write_study_html
from warp_core.studies.picture import write_study_svg

__all__ = ["attack", "read_texts"]

FOLDER = Path(__file__).with_suffix("")
QUICK = ("handlers", "script_end", "images", "latex", "colours", "bidi", "controls", "plotly")
PATIENCE_MS = 60_000
# What no text may bring into a page; our own pages have none of it either.
EVIL = (
    "[src*='evil'], [href*='evil'], [action*='evil'], [data*='evil'], [href^='javascript' i], [onerror], [onload], "
    "[onfocus], [ontoggle], [onbegin], [onmouseover], iframe[src^='data'], base, math, .katex, "
    "meta[http-equiv='refresh']"
)
PAGE_IS_WHOLE = "window.stolen === undefined && getComputedStyle(document.body).display !== 'none'"


def read_texts(*names: str) -> dict[str, str]:
    """Return the texts by name, all of them where no name is given; long ones are made here."""
    files = [FOLDER / f"{name}.txt" for name in names] or sorted(FOLDER.glob("*.txt"))
    texts = {file.stem: file.read_bytes().decode("utf-8") for file in files}
    if not names:
        texts["a line of 100 kB"] = "<b>x</b>" * 12_500
        texts["5,000 lines"] = "\n".join(f"{line} <i>" for line in range(5000))
    return texts


class Writer(FakeEngine):
    """Writes given texts: the n-th pane of a preview, the n-th row of a model and the n-th run each get another."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: Sequence[str] = ("",)

    def samples(self, selection: Selection, key: str) -> Sequence[SampleRow]:
        """Rows of the first model have the even texts, those of all others the odd ones."""
        rows = super().samples(selection, key)
        return [
            row.model_copy(update={"completion": self._text(2 * index + (key != "sft"))})
            for index, row in enumerate(rows)
        ]

    def curves(self, name: str) -> Sequence[Curve]:
        """Each policy has written one of the texts, of a prompt that is another."""
        return [
            curve.model_copy(
                update={"example": Example(step=1, prompt=self._text(index + 1), completion=self._text(index))}
            )
            for index, curve in enumerate(super().curves(name))
        ]

    def _tick(self, job: FakeJob) -> str | None:
        said = super()._tick(job)
        job.panes = tuple(
            pane.model_copy(
                update={
                    "completions": tuple(one.model_copy(update={"text": self._text(index)}) for one in pane.completions)
                }
            )
            for index, pane in enumerate(job.panes)
        )
        return said

    def _text(self, index: int) -> str:
        return self.texts[index % len(self.texts)]


@dataclass
class Watched:
    """A page of the browser, whom it asked, and what it complained of."""

    page: Page
    strangers: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def listen(self, *, files: bool) -> None:
        """Keep requests off this machine and errors of the console."""
        allowed = re.compile(f"file:|{OURS.pattern}") if files else OURS

        def asked(url: str) -> None:
            if not allowed.match(url):
                self.strangers.append(url)

        def said(line: ConsoleMessage) -> None:
            if line.type == "error" and not PROBE.search(line.location["url"]):
                self.complaints.append(line.text)

        self.page.on("request", lambda request: asked(request.url))
        self.page.on("websocket", lambda socket: asked(socket.url))
        self.page.on("console", said)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))

    def settled(self) -> None:
        """Wait until no script runs."""
        self.page.wait_for_selector("[data-testid=stApp][data-test-script-state=notRunning]", timeout=PATIENCE_MS)

    def check(self, tally: Tally, seen: str) -> None:
        """Count what must hold on any page, and begin anew."""
        tally.check(not self.strangers, f"{seen}: asked {self.strangers[:3]}")
        tally.check(not self.complaints, f"{seen}: the console says {self.complaints[:3]}")
        tally.check(self.page.locator(EVIL).count() == 0, f"{seen}: an element came of it")
        tally.check(bool(self.page.evaluate(PAGE_IS_WHOLE)), f"{seen}: a script ran, or the page is hidden")
        self.strangers.clear()
        self.complaints.clear()


def attack(place: Path, *, quick: bool) -> Iterator[Outcome]:
    """Show the texts everywhere.

    Raises RuntimeError where there is no Chromium.
    """
    if not Path(CHROMIUM).exists():
        raise RuntimeError(f"no Chromium at {CHROMIUM}: apt-get install chromium")
    texts = read_texts(*(QUICK if quick else ()))
    engine = Writer()
    with (
        sync_playwright() as playwright,
        served(engine) as address,
        running_app(place / "app.txt", engine=address, env={"WARP_ENGINE_TOKEN": TOKEN}) as app,
    ):
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        try:
            with _tab(browser) as tab:
                yield _explore(tab, app.url, engine, dict(list(texts.items())[:6]) if quick else texts)
                yield _compare(tab, app.url, engine, dict(list(texts.items())[:4]) if quick else texts)
                if not quick:
                    yield _train(tab, app.url, engine, texts)
            with _tab(browser, files=True) as tab:
                yield _static_pages(tab, place, texts, quick=quick)
        finally:
            browser.close()


@contextmanager
def _tab(browser: Browser, *, files: bool = False) -> Iterator[Watched]:
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    try:
        tab = Watched(context.new_page())
        tab.page.set_default_timeout(PATIENCE_MS)
        tab.listen(files=files)
        yield tab
    finally:
        context.close()


def _explore(tab: Watched, url: str, engine: Writer, texts: dict[str, str]) -> Outcome:
    tally = Tally(
        "the explore page: three panes",
        promise="P11",
        holds="every pane holds the text, character for character, and no element but the marks of differences",
    )
    for names in _in_groups(list(texts), 3):
        engine.texts = [texts[name] for name in names]
        tab.page.goto(f"{url}/?run=demo-run&at=i1.slerp.e0.5.sft&seed={list(texts).index(names[0])}")
        for pane, name in zip(("left", "current", "right"), names, strict=False):
            section = tab.page.locator(f"section.pane[data-pane='{pane}']")
            try:
                tab.page.wait_for_selector(f"section.pane[data-pane='{pane}'][data-state='done']")
            except Error as error:
                tally.check(False, f"{name}: the pane is not done: {error}")
                continue
            _check_text(tally, section.locator(".text").first, texts[name], name)
        tab.check(tally, ", ".join(names))
    return tally.outcome()


def _compare(tab: Watched, url: str, engine: Writer, texts: dict[str, str]) -> Outcome:
    tally = Tally(
        "the compare page: rows of completions",
        promise="P11",
        holds="both completions of a row hold the text, character for character but for a first blank",
    )
    names = list(texts)
    engine.texts = [texts[name] for name in names]
    tab.page.goto(f"{url}/compare?run=demo-run&pin=i1.slerp.e0.5.sft")
    regions = tab.page.get_by_role("region", name="completion 1")
    for row in range(0, len(names), 2):
        pair = [names[(row + offset) % len(names)] for offset in (0, 1)]
        if row:
            tab.page.get_by_role("button", name="Next").click()
        tab.page.get_by_text(re.compile(rf"Row {row // 2 + 1}, completion")).wait_for()
        tab.settled()
        regions.nth(1).wait_for()
        shown = [_content(regions.nth(place)) for place in (0, 1)]
        for name in pair:
            found = any(_holds(text, shown_text(texts[name])) for text in shown)
            tally.check(found, f"{name}: not among {[text[:80] for text in shown]!r}")
        nodes = {tag for place in (0, 1) for tag in _nodes(regions.nth(place))}
        tally.check(nodes <= {"MARK", "DIV", "SPAN"}, f"{pair}: elements {sorted(nodes)}")
        tab.check(tally, ", ".join(pair))
    return tally.outcome()


def _train(tab: Watched, url: str, engine: Writer, texts: dict[str, str]) -> Outcome:
    tally = Tally(
        "the train page: a completion of the latest step",
        promise="P11",
        holds="the completion is shown as it is, as text",
    )
    for names in _in_groups(list(texts), 2):
        engine.texts = [texts[name] for name in names]
        tab.page.goto(f"{url}/train?run=training-now")
        tab.page.get_by_text("A completion of the latest step").wait_for()
        tab.settled()
        # What draws a text is fetched when the first one is there to be drawn.
        with suppress(Error):
            tab.page.get_by_test_id("stCode").locator("code").nth(len(names) - 1).wait_for()
        shown = [_content(one) for one in tab.page.get_by_test_id("stCode").locator("code").all()]
        for name in names:
            wanted = texts[name].replace("\r\n", "\n").strip("\n")
            found = any(_holds(text.replace("\r\n", "\n").strip("\n"), wanted) for text in shown)
            tally.check(found, f"{name}: not among {[text[:80] for text in shown]!r}")
        tab.check(tally, ", ".join(names))
    return tally.outcome()


def _static_pages(tab: Watched, place: Path, texts: dict[str, str], *, quick: bool) -> Outcome:
    """Fronts and studies whose every name is a hostile text, as pages and as pictures; the pointer over each point."""
    tally = Tally(
        "pages and pictures of fronts and studies, the pointer over the plot",
        promise="P11",
        holds="titles and names are the text on one line, without control characters, cut after 120 characters; "
        "nothing but the plot's own elements, no request but the file",
    )
    writers: dict[str, Callable[[Path, str], None]] = {
        "front.html": _write_front,
        "front.svg": _write_front_picture,
        "study.html": _write_study,
        "study.svg": _write_study_picture,
    }
    files = list(writers)[:2] if quick else list(writers)
    for name, text in texts.items():
        for file in files:
            path, seen = place / file, f"{name} in {file}"
            writers[file](path, text)
            tab.page.goto(path.as_uri())
            if path.suffix == ".html":
                heading = tab.page.locator("h1").first.text_content() or ""
                tally.check(heading.strip() == plain(text).strip(), f"{seen}: the title is {heading[:100]!r}")
                tally.check(
                    tab.page.locator("script[src], link, img, iframe, form").count() == 0, f"{seen}: an element"
                )
                if file == "front.html":
                    _point_at_everything(tab.page)
            tab.strangers = [url for url in tab.strangers if url != path.as_uri()]
            if path.suffix == ".html":
                tab.check(tally, seen)
            else:
                tags = set(tab.page.evaluate("[...document.querySelectorAll('*')].map((node) => node.localName)"))
                tally.check(not tags & {"script", "image", "foreignObject", "a", "animate"}, f"{seen}: {sorted(tags)}")
                tally.check(tab.page.evaluate("document.documentElement.localName") == "svg", f"{seen}: no picture")
                tally.check(not tab.strangers and not tab.complaints, f"{seen}: {tab.strangers} {tab.complaints}")
                tab.complaints.clear()
    return tally.outcome()


def _write_front(path: Path, text: str) -> None:
    odd = [
        point(1.0, 1.0, policy=text, kind="policy", run=text, iteration=2),
        point(1.5, 1.0, None, policy=text, kind="training", run=text, step=1),
    ]
    write_front_html(path, [*POINTS, *odd], title=text, reward_label=text)


def _write_front_picture(path: Path, text: str) -> None:
    odd = point(1.0, 1.0, policy="x", kind="training", run=text)
    write_front_svg(path, [*POINTS, odd], title=text, reward_label=text)


def _panels(text: str) -> list[Panel]:
    line = Line(name=text, color="#3b6fd4", x=[0.0, 2.0], y=[-1.0, 3.0], notes=[text, text])
    return [Panel(x_label=text, y_label=text, lines=(line,))]


def _write_study(path: Path, text: str) -> None:
    write_study_html(
        path,
        _panels(text),
        title=text,
        observation=text,
        verdict="held",
        sentence=text,
        claims=[("held", text)],
        about=text,
    )


def _write_study_picture(path: Path, text: str) -> None:
    write_study_svg(path, _panels(text), title=text, caption=text)


def _point_at_everything(page: Page) -> None:
    """Let the plot show what it says of each of its points, as under a pointer."""
    page.evaluate(
        """() => { const plot = document.querySelector('.js-plotly-plot');
            plot.data.forEach((trace, curve) => (trace.x || []).forEach((x, index) =>
                x === null || Plotly.Fx.hover(plot, [{curveNumber: curve, pointNumber: index}]))); }"""
    )


def _check_text(tally: Tally, node: Locator, text: str, name: str) -> None:
    shown = _content(node)
    tally.check(_holds(shown, text), f"{name}: shown as {shown[:100]!r} ({len(shown)} characters of {len(text)})")
    nodes = set(_nodes(node))
    tally.check(nodes <= {"MARK"}, f"{name}: elements {sorted(nodes)}")


def _holds(shown: str, text: str) -> bool:
    return shown == text or shown.strip() == text.strip()


def _content(node: Locator) -> str:
    return str(node.evaluate("node => node.textContent"))


def _nodes(node: Locator) -> list[str]:
    found: Any = node.evaluate("node => [...node.querySelectorAll('*')].map((child) => child.tagName)")
    return list(found)


def _in_groups(names: Sequence[str], size: int) -> list[Sequence[str]]:
    return [names[start : start + size] for start in range(0, len(names), size)]
