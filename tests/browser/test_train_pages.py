"""Train, Geometry and Export in a real browser: live curves that stay in place, keyboard, downloads, both themes."""

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser.conftest import ROOT, OpenTab, Tab, free_port, wait_for

expect.set_options(timeout=20_000)  # a busy machine takes its time
LINE = ".chart:has(.title:text-is('Reward')) path.line"


# `python -m app` whose made-up runs take a step in half a second instead of a quarter of a minute.
QUICK = "import warp_core.service.fake as fake; fake.TICKS_PER_STEP = 3; from app.__main__ import main; main()"


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory, browser: Browser) -> Iterator[str]:
    """An app of this module: its tests start runs."""
    port = free_port()
    command = [sys.executable, "-c", QUICK, "--port", str(port), "--engine", "fake"]
    with (tmp_path_factory.mktemp("train") / "log.txt").open("wb") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
    try:
        wait_for(f"http://127.0.0.1:{port}/_stcore/health", process=process)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


def fill(tab: Tab, label: str, text: str) -> None:
    field = tab.page.get_by_role("textbox", name=label, exact=True)
    field.fill(text)
    field.press("Enter")
    tab.settled()


def start_run(tab: Tab, name: str, *, steps: str = "2000") -> None:
    """From the form to the curves."""
    tab.page.get_by_role("radio", name="New run").click(force=True)
    tab.page.get_by_role("textbox", name="Name of the run").wait_for()
    fill(tab, "Steps T", steps)
    fill(tab, "Name of the run", name)
    tab.page.get_by_role("button", name="Start", exact=True).click()
    tab.page.get_by_text(f"Training curves of {name}").wait_for()


def length(page: Page) -> int:
    """Characters of the first line's path: it grows with every step."""
    return len(page.locator(LINE).first.get_attribute("d") or "")


class TestCurves:
    def test_they_grow_in_place_and_keep_zoom_and_switches(self, open_tab: OpenTab, url: str):
        tab = open_tab(f"{url}/train")
        page = tab.page
        start_run(tab, "growing")
        page.locator(LINE).first.wait_for(state="attached")
        page.evaluate("""() => {
            const hosts = [...document.querySelectorAll('*')].filter((one) => one.shadowRoot?.querySelector('.lines'))
            hosts[0].shadowRoot.querySelector('.lines').dataset.mark = 'first'
            window.removed = 0
            new MutationObserver((changes) => {
                for (const change of changes) for (const node of change.removedNodes)
                    if (node.nodeType === 1 && (node === hosts[0] || node.contains(hosts[0]))) window.removed += 1
            }).observe(document.body, { childList: true, subtree: true })
        }""")
        before = length(page)
        deadline = time.monotonic() + 20
        while length(page) <= before + 20:
            assert time.monotonic() < deadline, "no new step came"
            page.wait_for_timeout(200)
        assert page.locator(".lines[data-mark=first] path.line").count() == page.locator("path.line").count()
        assert page.evaluate("window.removed") == 0, "the chart was mounted anew"

        box = page.locator(".chart svg[role=img]").first.bounding_box()
        y = box["y"] + box["height"] / 2
        page.mouse.move(box["x"] + 60, y)
        page.mouse.down()
        page.mouse.move(box["x"] + 120, y, steps=6)
        page.mouse.up()
        reset = page.get_by_role("button", name="Show all steps")
        expect(reset).to_be_enabled()
        ticks = page.locator(".chart svg[role=img]").first.locator("text").all_inner_texts()
        page.wait_for_timeout(4500)  # two looks at the run
        expect(reset).to_be_enabled()
        assert page.locator(".chart svg[role=img]").first.locator("text").all_inner_texts()[-3:] == ticks[-3:]
        reset.click()
        expect(reset).to_be_hidden()

    def test_stop_and_resume(self, open_tab: OpenTab, url: str):
        tab = open_tab(f"{url}/train")
        page = tab.page
        start_run(tab, "stopping")
        row = page.locator(".st-key-train-run-stopping")
        row.get_by_role("button", name="Stop").click()
        expect(row.get_by_text("stopped")).to_be_visible()
        row.get_by_role("button", name="Resume").click()
        expect(row.get_by_text("running")).to_be_visible()
        row.get_by_role("button", name="Stop").click()
        expect(row.get_by_text("stopped")).to_be_visible()

    def test_series_are_switched_and_read_by_keyboard(self, open_tab: OpenTab, url: str):
        tab = open_tab(f"{url}/train?run=demo-run")
        page = tab.page
        page.locator(".st-key-train-run-demo-run").get_by_role("button", name="Watch").click()
        page.get_by_text("Training curves of demo-run").wait_for()
        expect(page.locator(LINE)).to_have_count(3)
        entry = page.get_by_role("button", name="policy 2", exact=True)
        entry.focus()
        page.keyboard.press("Enter")
        expect(entry).to_have_attribute("aria-pressed", "false")
        expect(page.locator(LINE)).to_have_count(2)
        page.keyboard.press("Enter")
        expect(page.locator(LINE)).to_have_count(3)
        page.get_by_role("group", name="Training curves of demo-run, iteration 2").focus()
        page.keyboard.press("Home")
        where = page.locator(".chart .where").first
        expect(where).to_have_text("step 1")
        page.keyboard.press("ArrowRight")
        expect(where).to_have_text("step 2")
        page.keyboard.press("Escape")
        expect(where).to_have_text("latest")
        entry.click()
        expect(page.locator(LINE)).to_have_count(2)
        page.get_by_role("radio", name="1", exact=True).click(force=True)
        expect(page.locator(LINE)).to_have_count(3)

    def test_colours_follow_the_theme(self, open_tab: OpenTab, url: str):
        strokes = {}
        for scheme in ("light", "dark"):
            tab = open_tab(f"{url}/train", scheme=scheme)
            strokes[scheme] = tab.page.locator(LINE).first.get_attribute("stroke")
        assert strokes == {"light": "#0072B2", "dark": "#4BA3DB"}

    def test_it_fits_a_small_window(self, open_tab: OpenTab, url: str):
        tab = open_tab(f"{url}/train", size=(1024, 768))
        tab.page.locator(LINE).first.wait_for(state="attached")
        for chart in tab.page.locator(".chart").all():
            box = chart.bounding_box()
            assert box["x"] + box["width"] <= 1024


class TestForm:
    def test_a_mistake_is_marked_and_mended(self, open_tab: OpenTab, url: str):
        tab = open_tab(f"{url}/train")
        page = tab.page
        page.get_by_role("radio", name="New run").click(force=True)
        page.get_by_role("textbox", name="Steps T").wait_for()
        fill(tab, "Steps T", "many")
        expect(page.get_by_text("Input should be a valid integer")).to_be_visible()
        expect(page.get_by_role("button", name="Start", exact=True)).to_be_disabled()
        fill(tab, "Steps T", "12")
        expect(page.get_by_role("button", name="Start", exact=True)).to_be_enabled()
        expect(page.get_by_text("24 steps in all")).to_be_visible()

    def test_typing_before_the_page_stands_loses_nothing(self, open_tab: OpenTab, url: str):
        tab = open_tab(f"{url}/train")
        page = tab.page
        page.get_by_role("radio", name="New run").click(force=True)
        for label, text in (("Steps T", "77"), ("Name of the run", "hasty"), ("Model", "other/model")):
            field = page.get_by_role("textbox", name=label, exact=True)
            field.fill(text)
            field.press("Enter")
        expect(page.get_by_text("154 steps in all")).to_be_visible()
        for line in ("learning_rate = 0.001", "alpha = 16.0", 'name = "other/model"'):
            expect(page.get_by_text(line)).to_be_visible()
        expect(page.get_by_role("button", name="Start", exact=True)).to_be_enabled()

    def test_small_numbers_can_be_typed(self, open_tab: OpenTab, url: str):
        tab = open_tab(f"{url}/train")
        page = tab.page
        page.get_by_role("radio", name="New run").click(force=True)
        rate = page.get_by_role("spinbutton", name="Learning rate")
        rate.fill("3e-6")
        rate.press("Enter")
        tab.settled()
        expect(page.get_by_text("learning_rate = 3e-06")).to_be_visible()

    def test_the_toml_downloads_as_it_is_shown(self, open_tab: OpenTab, url: str, tmp_path: Path):
        tab = open_tab(f"{url}/train", accept_downloads=True)
        page = tab.page
        page.get_by_role("radio", name="New run").click(force=True)
        page.get_by_role("button", name="Demo (about 10 minutes on 2 cores)").click()
        expect(page.get_by_text("learning_rate = 0.003")).to_be_visible()
        with page.expect_download() as waiting:
            page.get_by_role("button", name="Download").click()
        waiting.value.save_as(tmp_path / "run.toml")
        text = (tmp_path / "run.toml").read_text()
        assert "learning_rate = 0.003" in text
        page.get_by_role("button", name="Defaults").click()
        expect(page.get_by_text("learning_rate = 0.001")).to_be_visible()
        page.get_by_role("button", name="From TOML").click()
        page.locator("input[type=file]").set_input_files(tmp_path / "run.toml")
        page.get_by_role("button", name="Use it").click()
        tab.settled()
        expect(page.get_by_text("learning_rate = 0.003")).to_be_visible()


class TestGeometry:
    def test_all_charts_are_drawn_in_the_themes_colours(self, open_tab: OpenTab, url: str, scheme: str):
        page = open_tab(f"{url}/geometry?run=demo-run", scheme=scheme).page
        expect(page.locator(".js-plotly-plot")).to_have_count(5)
        page.locator(".js-plotly-plot .barlayer path").first.wait_for(state="attached")
        colors = page.evaluate("document.querySelector('.js-plotly-plot')._fullLayout.colorway.slice(0, 2)")
        assert colors == {"light": ["#0072B2", "#D55E00"], "dark": ["#4BA3DB", "#EC7A2C"]}[scheme]
        expect(page.get_by_text("degrees on average")).to_be_visible()

    def test_another_granularity_is_computed_and_the_table_downloads(self, open_tab: OpenTab, url: str, tmp_path: Path):
        page = open_tab(f"{url}/geometry?run=demo-run", accept_downloads=True).page
        page.get_by_role("radio", name="tensor").click(force=True)
        page.get_by_role("button", name="Compute").click()
        expect(page.get_by_text("degrees on average")).to_be_visible()
        with page.expect_download() as waiting:
            page.get_by_role("button", name="Download CSV").click()
        waiting.value.save_as(tmp_path / "g.csv")
        lines = (tmp_path / "g.csv").read_text().splitlines()
        assert lines[0].startswith("layer,parameters,first,second,angle_deg")
        assert len(lines) == 1 + 30 * 3


class TestExport:
    def test_by_keyboard_from_the_button_to_the_report(self, open_tab: OpenTab, url: str):
        tab = open_tab(f"{url}/export?run=demo-run&at=i1.slerp.e0.3.sft")
        page = tab.page
        name = page.get_by_role("textbox", name="Name", exact=True)
        expect(name).to_have_value("demo-run-i1-slerp-eta0.3")
        name.focus()
        for _ in range(12):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.innerText") == "Export":
                break
        page.keyboard.press("Enter")
        expect(page.get_by_text("verified")).to_be_visible()
        expect(page.get_by_text("all parameters are exactly equal")).to_be_visible()
        expect(page.get_by_text("from_pretrained")).to_be_visible()
        page.get_by_role("tab", name="Command line").click()
        expect(page.get_by_text("warp-core export /workspace/runs/demo-run")).to_be_visible()

    def test_a_link_says_which_model(self, open_tab: OpenTab, url: str):
        tab = open_tab(f"{url}/export?run=demo-run&at=i2.lerp.w0.2-0.3-0.5.e0.7.init")
        expected = "demo-run-i2-lerp-w0.2-0.3-0.5-eta0.7-to-init"
        expect(tab.page.get_by_role("textbox", name="Name", exact=True)).to_have_value(expected)

    def test_from_train_to_explore_the_address_names_the_run(self, open_tab: OpenTab, url: str):
        tab = open_tab(f"{url}/train")
        tab.page.locator(".st-key-train-run-demo-run").get_by_role("button", name="Explore").click()
        tab.page.wait_for_url(re.compile(r"/(explore)?\?run=demo-run&"))


@pytest.mark.parametrize(("scheme", "size"), [("light", (1440, 900)), ("dark", (1024, 768))])
def test_every_page_stands(open_tab: OpenTab, url: str, scheme: str, size: tuple[int, int]):
    tab = open_tab(f"{url}/train?run=demo-run", scheme=scheme, size=size)
    for link, words in (("Train", "Training curves"), ("Geometry", "degrees on average"), ("Export", "Target folder")):
        tab.page.get_by_role("link", name=link).click()
        expect(tab.page.get_by_text(words).first).to_be_visible()
        assert tab.page.get_by_text("A fault of this app").count() == 0
        assert tab.page.evaluate("document.scrollingElement.scrollWidth") <= size[0], "wider than the window"
