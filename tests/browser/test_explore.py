"""The explore page in a browser: drag and stream at once, hostile text, links, keyboard, steady layout."""

import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import pytest
from playwright.sync_api import Locator, Page, WebSocket, expect
from streamlit.proto.BackMsg_pb2 import BackMsg

from tests.browser.conftest import OpenTab, StartApp, Tab

JS = Path(__file__).resolve().parents[2] / "app" / "components" / "panes" / "panes.js"
expect.set_options(timeout=20_000)  # the machine may be busy with other things
SLOW = "/?run=demo-run&at=i1.slerp.e0.5.sft&n=200"
HOSTILE = "/?run=demo-run&at=i1.slerp.e0.5.sft&q=hostile&n=64"


@dataclass
class Asked:
    """The script runs that a tab has asked for; those that a timer asked for apart."""

    by_hand: list[float] = field(default_factory=list)
    by_timer: list[float] = field(default_factory=list)

    def listen(self, page: Page) -> None:
        page.on("websocket", self._watch)

    def _watch(self, socket: WebSocket) -> None:
        socket.on("framesent", self._sent)

    def _sent(self, payload: str | bytes) -> None:
        if isinstance(payload, bytes):
            message = BackMsg()
            message.ParseFromString(payload)
            if message.WhichOneof("type") == "rerun_script":
                runs = self.by_timer if message.rerun_script.is_auto_rerun else self.by_hand
                runs.append(time.monotonic())


def pane(page: Page, name: str) -> Locator:
    return page.locator(f"section.pane[data-pane='{name}']")


def text_of(page: Page, name: str) -> str:
    return pane(page, name).locator(".text").first.inner_text()


def wait_until_done(page: Page) -> None:
    for name in ("left", "current", "right"):
        expect(pane(page, name)).to_have_attribute("data-state", "done")
    expect(page.get_by_role("button", name="Generate", exact=True)).to_be_visible()


def eta(page: Page) -> Locator:
    return page.get_by_role("slider", name="eta", exact=True)


def drag(page: Page, slider: Locator, start: float, end: float, *, steps: int = 40, release: bool = True) -> None:
    """Drag from one share of the slider's width to another."""
    box = slider.bounding_box()
    assert box
    height = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + start * box["width"], height)
    page.mouse.down()
    for step in range(1, steps + 1):
        page.mouse.move(box["x"] + (start + (end - start) * step / steps) * box["width"], height)
        page.wait_for_timeout(12)
    if release:
        page.mouse.up()


@pytest.fixture(scope="module")
def words(browser) -> Iterator[Page]:
    """A page that has the script of the panes as `panes`."""
    page = browser.new_context().new_page()
    source = json.dumps(JS.read_text(encoding="utf-8"))
    blob = f"new Blob([{source}], {{type: 'text/javascript'}})"
    page.evaluate(f"async () => {{ window.panes = await import(URL.createObjectURL({blob})) }}")
    yield page
    page.context.close()


class TestWordDifferences:
    def marked(self, words: Page, reference: str, text: str) -> list[str]:
        """What would be marked, neighbours joined."""
        pieces = words.evaluate("([a, b]) => panes.differences(a, b)", [reference, text])
        assert "".join(piece for piece, _ in pieces) == text
        joined = "".join(piece if is_new else "\0" for piece, is_new in pieces)
        return [part for part in joined.split("\0") if part]

    def test_new_words_are_marked_and_phrases_are_one_mark(self, words: Page):
        assert self.marked(words, "the film is dull and long", "the film is a bright joy and short") == [
            "a bright joy",
            "short",
        ]

    def test_the_same_text_has_no_marks(self, words: Page):
        assert self.marked(words, "a b\n c.", "a b\n c.") == []

    def test_an_empty_reference_marks_everything(self, words: Page):
        assert self.marked(words, "", "all of it") == ["all of it"]
        assert self.marked(words, "something", "") == []

    def test_signs_count_as_words_of_their_own(self, words: Page):
        assert self.marked(words, "It's dull.", "It's dull, dull!") == [", dull!"]

    def test_other_scripts_and_spaces_come_back_as_they_were(self, words: Page):
        text = "\u00c9t\u00e9  \u6620\u753b \U0001f3ac\u200d\ttab\r\n end"
        assert self.marked(words, text, text) == []

    def test_texts_that_are_too_long_for_it_are_not_compared(self, words: Page):
        line, lines = "<b>x</b>" * 12_500, "\n".join(f"{line} <i>" for line in range(5000))
        assert words.evaluate("([a, b]) => panes.differences(a, b)", [line, lines]) is None

    def test_a_thousand_words_are_quick(self, words: Page):
        first, second = (" ".join(f"w{(i * k) % 97}" for i in range(1024)) for k in (3, 5))
        took = words.evaluate(
            "([a, b]) => { const t = performance.now(); panes.differences(a, b); return performance.now() - t }",
            [first, second],
        )
        assert took < 500


class TestStreaming:
    def test_three_panes_stream_while_a_slider_is_dragged(self, app_url: str, open_tab: OpenTab):
        page = open_tab(app_url + SLOW, size=(1440, 1600)).page
        wait_until_done(page)
        box = eta(page).bounding_box()
        assert box
        page.get_by_role("button", name="Regenerate").click()
        page.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + box["height"] / 2)
        page.mouse.down()
        lengths: list[list[int]] = []
        states = [""]
        while len(states) < 400 and not (states[-1] == "done" and "sampling" in states):
            share = 0.8 - 0.003 * abs(len(states) % 200 - 100)  # to and fro
            page.mouse.move(box["x"] + share * box["width"], box["y"] + box["height"] / 2)
            states.append(pane(page, "current").get_attribute("data-state") or "")
            lengths.append([len(text_of(page, name)) for name in ("left", "current", "right")])
        for column in zip(*lengths, strict=True):
            assert len(set(column)) > 2, "a pane stood still during the drag"
        page.mouse.move(box["x"] + 0.8 * box["width"], box["y"] + box["height"] / 2)
        page.mouse.up()
        expect(pane(page, "current")).to_contain_text("SLERP, eta 0.8")
        wait_until_done(page)

    def test_a_drag_asks_for_no_run_and_its_end_for_one(self, app_url: str, open_tab: OpenTab):
        url = app_url
        asked = Asked()
        tab = open_tab("about:blank", settle=False)
        asked.listen(tab.page)
        tab.page.goto(f"{url}/?run=demo-run&at=i1.slerp.e0.5.sft")
        wait_until_done(tab.page)
        tab.settled()
        before = len(asked.by_hand)
        drag(tab.page, eta(tab.page), 0.5, 0.8, release=False)
        tab.page.wait_for_timeout(200)
        assert len(asked.by_hand) == before
        tab.page.mouse.up()
        expect(pane(tab.page, "current")).to_contain_text("SLERP, eta 0.8")
        wait_until_done(tab.page)
        assert len(asked.by_hand) == before + 1
        assert re.search(r"at=i1\.slerp\.e0\.8", tab.page.url)

    def test_nothing_moves_while_texts_come_and_go(self, app_url: str, open_tab: OpenTab):
        tab = open_tab(f"{app_url}/?run=demo-run&at=i1.slerp.e0.5.sft", size=(1440, 1800))
        wait_until_done(tab.page)
        heading = tab.page.get_by_role("heading", name="Pins")
        places = {round(heading.bounding_box()["y"])}
        tab.page.get_by_role("button", name="Regenerate").click()
        for _ in range(12):
            places.add(round(heading.bounding_box()["y"]))
            tab.page.wait_for_timeout(150)
        wait_until_done(tab.page)
        places.add(round(heading.bounding_box()["y"]))
        assert len(places) == 1

    def test_what_is_being_typed_survives_the_runs_that_come(self, app_url: str, open_tab: OpenTab):
        page = open_tab(f"{app_url}/?run=demo-run&at=i1.slerp.e0.5.sft").page
        wait_until_done(page)
        page.get_by_role("button", name="Regenerate").click()
        prompt = page.get_by_role("textbox", name="Prompt")
        prompt.fill("")
        prompt.press_sequentially("A film about tea", delay=60)
        wait_until_done(page)
        expect(prompt).to_have_value("A film about tea")
        prompt.press("Control+Enter")
        page.wait_for_url(re.compile(r"q=A(\+|%20)film"))
        expect(prompt).to_have_value("A film about tea")
        wait_until_done(page)

    def test_two_sessions_have_their_own_texts(self, app_url: str, open_tab: OpenTab):
        url = app_url
        first = open_tab(f"{url}/?run=demo-run&at=i1.slerp.e0.2.sft&q=Tea").page
        second = open_tab(f"{url}/?run=demo-run&at=i1.slerp.e0.9.sft&q=Coffee").page
        wait_until_done(first)
        wait_until_done(second)
        assert text_of(first, "current") != text_of(second, "current")
        second.get_by_role("button", name="Regenerate").click()
        wait_until_done(second)
        assert pane(first, "current").get_attribute("data-state") == "done"
        assert "eta 0.2" in pane(first, "current").inner_text()

    def test_stop(self, app_url: str, open_tab: OpenTab):
        page = open_tab(app_url + SLOW).page
        wait_until_done(page)
        page.get_by_role("button", name="Regenerate").click()
        expect(pane(page, "left")).to_have_attribute("data-state", "sampling")
        page.get_by_role("button", name="Stop").click()
        expect(pane(page, "left")).to_have_attribute("data-state", "stopped")
        expect(page.get_by_role("button", name="Generate", exact=True)).to_be_visible()


class TestMeasuring:
    def test_a_measured_point_appears_and_the_card_follows(self, start_app: StartApp, open_tab: OpenTab):
        page = open_tab(f"{start_app().url}/?run=demo-run&at=i1.slerp.e0.42.sft").page
        wait_until_done(page)
        expect(page.locator(".badge")).to_have_text("predicted")
        page.get_by_role("button", name="Measure", exact=True).click()
        expect(page.get_by_text("Measuring: ")).to_be_visible()
        expect(page.locator(".badge")).to_have_text("measured")
        expect(page.get_by_role("button", name="Measure", exact=True)).to_be_disabled()
        expect(page.get_by_text("Measuring a point takes 64 prompts")).to_be_visible()


class TestHostileText:
    def test_makes_no_node_and_no_request(self, app_url: str, open_tab: OpenTab):
        tab = open_tab(app_url + HOSTILE)
        wait_until_done(tab.page)
        text = pane(tab.page, "current").locator(".text").first
        assert "<script>window.stolen = 1</script>" in text.inner_text()
        nodes = text.evaluate("node => [...node.querySelectorAll('*')].map((child) => child.tagName)")
        assert set(nodes) <= {"MARK"}
        expect(text.locator("mark").last).to_contain_text('<img src="http://evil.example/')
        assert tab.page.evaluate("window.stolen") is None

    def test_of_a_label_in_a_link(self, app_url: str, open_tab: OpenTab):
        label = quote("![x](http://evil.example/x.png)<img src=//evil.example/y>")
        tab = open_tab(f"{app_url}/?run=demo-run&at=i1.slerp.e0.5.sft&pin=i1.slerp.e0.3.sft~{label}&ref=0&left=0")
        wait_until_done(tab.page)
        expect(pane(tab.page, "left").locator(".title")).to_contain_text("![x](http://evil.example")
        assert tab.page.locator("img[src*=evil]").count() == 0


class TestLinks:
    def test_an_address_restores_the_view(self, app_url: str, open_tab: OpenTab):
        address = (
            f"{app_url}/?run=demo-run&at=i2.slerp.w0.5-0.3-0.2.e0.3.sft&pin=i1.slerp.e0.2.sft~mild&ref=0&budget=8"
            "&q=A+film+about+tea&seed=7&n=32&left=0&y=length"
        )
        tab = open_tab(address)
        page = tab.page
        wait_until_done(page)
        expect(eta(page)).to_have_value("0.3")
        expect(page.get_by_role("textbox", name="Prompt")).to_have_value("A film about tea")
        expect(pane(page, "left").locator(".title")).to_have_text("mild")
        expect(page.locator(".metrics thead")).to_contain_text("vs mild")
        texts = [text_of(page, name) for name in ("left", "current", "right")]
        again = open_tab(page.url)
        wait_until_done(again.page)
        assert [text_of(again.page, name) for name in ("left", "current", "right")] == texts
        assert again.page.url == page.url

    def test_export_takes_the_view_along(self, app_url: str, open_tab: OpenTab):
        tab = open_tab(f"{app_url}/?run=demo-run&at=i1.slerp.e0.3.sft")
        wait_until_done(tab.page)
        tab.page.get_by_role("button", name="Export this").click()
        tab.page.wait_for_url(re.compile(r"/export\?.*at=i1\.slerp\.e0\.3\.sft"))
        tab.settled()


class TestKeyboard:
    def test_slider_vote_and_panes_without_a_mouse(self, app_url: str, open_tab: OpenTab):
        page = open_tab(f"{app_url}/?run=demo-run&at=i1.slerp.e0.5.sft").page
        wait_until_done(page)
        eta(page).focus()
        for _ in range(10):
            page.keyboard.press("ArrowRight")
        expect(pane(page, "current")).to_contain_text("eta 0.6")
        wait_until_done(page)
        reached: list[str] = []
        page.get_by_role("textbox", name="Prompt").focus()
        for _ in range(40):
            page.keyboard.press("Tab")
            reached.append(
                page.evaluate(
                    "() => { let node = document.activeElement; while (node.shadowRoot?.activeElement)"
                    " node = node.shadowRoot.activeElement; return node.getAttribute('aria-label') || node.innerText }"
                )
                or ""
            )
            if reached[-1] == "Left much better":
                break
        for _ in range(3):
            page.keyboard.press("ArrowRight")
        page.keyboard.press("Enter")
        spoken = " | ".join(reached)
        for name in ("Generate", "Regenerate", "Settings", "SFT policy, completion 1", "Left much better"):
            assert name in spoken
        expect(page.get_by_text("Your vote: tie.")).to_be_visible()

    def test_differences_are_not_told_by_colour_alone(self, app_url: str, open_tab: OpenTab):
        page = open_tab(f"{app_url}/?run=demo-run&at=i1.slerp.e0.5.sft").page
        wait_until_done(page)
        expect(page.locator("td.words.good").first).to_have_text("better")
        border = page.locator("mark").first.evaluate("node => getComputedStyle(node).borderBottomStyle")
        assert border == "solid"


def test_the_check_comes_before_the_loading(app_url: str, open_tab: OpenTab, tmp_path: Path):
    tab: Tab = open_tab(f"{app_url}/?run=demo-run&at=i1.slerp.e0.5.sft")
    page = tab.page
    wait_until_done(page)
    page.get_by_role("combobox", name="Run").click()
    page.get_by_role("option", name="Checkpoints on disk").click()
    page.get_by_role("textbox", name="Init").fill("models/init")
    page.get_by_role("textbox", name="Policies, one a line").fill("models/a\nmodels/b")
    page.get_by_role("textbox", name="Init").focus()
    page.get_by_role("button", name="Check", exact=True).click()
    page.get_by_role("button", name="Explore these").click()
    wait_until_done(page)
    expect(page.get_by_role("slider", name="lambda, share of b", exact=True)).to_be_visible()
