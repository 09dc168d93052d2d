"""The pilot in a browser: what moves, what is sent, what stays."""

import json
import math
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from tests.browser.conftest import ROOT, OpenTab, Tab, free_port, wait_for
from tests.browser.pilot_scene import Scene
from warp_core.service.protocol import Place

FRAMES = """
() => {
  window.frames_ = [];
  const step = (now) => { window.frames_.push(now); window.loop_ = requestAnimationFrame(step); };
  window.loop_ = requestAnimationFrame(step);
}
"""


@pytest.fixture(scope="module")
def pilot_url(tmp_path_factory: pytest.TempPathFactory, browser: Browser) -> Iterator[str]:
    """A page with nothing but the pilot."""
    port = free_port()
    with (tmp_path_factory.mktemp("pilot") / "log.txt").open("wb") as log:
        command = [sys.executable, "-m", "tests.browser.pilot_server", str(port)]
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
    wait_for(f"http://127.0.0.1:{port}/_stcore/health", process=process)
    yield f"http://127.0.0.1:{port}"
    process.terminate()
    process.wait(10)


@dataclass
class Pilot:
    """The pilot on a page, and what Python says of it."""

    page: Page

    def told(self) -> dict[str, Any]:
        """What Python knows."""
        return json.loads(self.page.get_by_test_id("stText").last.inner_text())

    @property
    def place(self) -> dict[str, Any]:
        """Where Python thinks that the sliders are."""
        return self.told()["seen"]["place"]

    def wait(self, is_so: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Wait until Python knows something."""
        until = time.monotonic() + 15
        while not is_so(told := self.told()):
            assert time.monotonic() < until, told
            self.page.wait_for_timeout(30)
        return told

    def wait_event(self, seq: int) -> dict[str, Any]:
        """Wait until Python has the event of that number, and no other."""
        told = self.wait(lambda told: told["seen"]["seq"] >= seq)
        self.page.wait_for_timeout(60)
        assert self.told()["seen"]["seq"] == seq
        return told

    def slider(self, name: str) -> Locator:
        return self.page.get_by_role("slider", name=name, exact=True)

    def number(self, name: str) -> Locator:
        return self.page.get_by_role("textbox", name=name)

    def button(self, name: str) -> Locator:
        return self.page.get_by_role("button", name=name, exact=True)

    def legend(self, series: str) -> Locator:
        return self.page.locator(f"[data-series='{series}']")

    def state(self) -> str:
        return self.page.locator(".readout .state").inner_text()

    def value(self, name: str) -> float:
        """A value of the readout."""
        text = self.page.locator(".values > div", has=self.page.locator("dt", has_text=name)).locator("dd").inner_text()
        return float(text.replace("\u2212", "-").split(" ")[0])

    def marker(self) -> tuple[float, float]:
        """Centre of the marker, on the page."""
        box = self.page.locator(".live .marker .ring").bounding_box()
        assert box
        return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2

    def point(self, key: str) -> tuple[float, float]:
        """Centre of a measured point, on the page."""
        box = self.page.locator(f".points [data-key='{key}']").bounding_box()
        assert box
        return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2

    def grab(self, name: str) -> tuple[float, float]:
        """Press the mouse on the thumb of a slider; returns where."""
        slider = self.slider(name)
        box = slider.bounding_box()
        assert box
        share = float(slider.input_value()) / float(slider.get_attribute("max") or 1)
        at = box["x"] + 8 + share * (box["width"] - 16), box["y"] + box["height"] / 2
        self.page.mouse.move(*at)
        self.page.mouse.down()
        return at


OpenPilot = Callable[..., Pilot]


@pytest.fixture(scope="module")
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


def test_a_drag_runs_nothing_and_its_end_runs_the_script_once(open_pilot: OpenPilot):
    pilot = open_pilot("points=100")
    x, y = pilot.grab("eta")
    before, marker = pilot.told(), pilot.marker()
    pilot.page.evaluate(FRAMES)
    for step in range(1, 41):
        pilot.page.mouse.move(x + 2 * step, y)
        pilot.page.wait_for_timeout(8)
    frames = pilot.page.evaluate("() => { cancelAnimationFrame(window.loop_); return window.frames_; }")
    assert pilot.told() == before
    assert math.dist(pilot.marker(), marker) > 40
    assert pilot.state().startswith("predicted")
    gaps = sorted(b - a for a, b in pairwise(frames))
    assert gaps[len(gaps) // 2] < 50, gaps  # 60 a second on a machine that has nothing else to do
    pilot.page.mouse.up()
    told = pilot.wait_event(1)
    assert told["runs"] == before["runs"] + 1
    assert told["seen"]["place"]["eta"] == pytest.approx(float(pilot.slider("eta").input_value()))
    assert told["seen"]["place"]["eta"] > 0.6


def test_what_is_shown_while_dragging_is_what_python_predicts(pilot: Pilot):
    pilot.number("weight of policy 1, as a number").fill("0.5")
    pilot.page.keyboard.press("Enter")
    told = pilot.wait_event(1)
    assert told["seen"]["place"]["weights"] == [0.5, 0.25, 0.25]
    scene, place = Scene(), Place.model_validate(told["seen"]["place"])
    surface = scene.prediction(2)
    c_LK = scene.world.coefficients(place)
    assert surface is not None
    kl = predicted(scene, surface, c_LK, "kl")
    assert pilot.value("KL") == pytest.approx(kl, abs=0.006)
    assert pilot.value("Reward") == pytest.approx(predicted(scene, surface, c_LK, "reward"), abs=0.006)


def predicted(scene: Scene, prediction: Any, c_LK: Any, name: str) -> float:
    """The formula of the prediction document, written out."""

    def d2(other_LK: Any) -> float:
        total = 0.0
        for gram, mine, other in zip(scene.geometry(2).gram_LKK, c_LK, other_LK, strict=True):
            gap = [a - b for a, b in zip(mine, other, strict=True)]
            total += sum(gap[i] * gram[i][j] * gap[j] for i in range(len(gap)) for j in range(len(gap)))
        return total / prediction.scale

    surface, u = prediction.surfaces[name], math.sqrt(d2(prediction.sft_LK))
    trend = sum(beta * u**power for power, beta in enumerate(surface.beta))
    pulls = zip(surface.alpha, prediction.points_PLK, strict=True)
    return trend + sum(alpha * math.exp(-d2(point) / (2 * surface.lengthscale**2)) for alpha, point in pulls)


def test_the_marker_itself_can_be_dragged_along_the_curve(pilot: Pilot):
    x, y = pilot.marker()
    target = pilot.point("i2.slerp.e0.8.sft")
    pilot.page.mouse.move(x, y)
    pilot.page.mouse.down()
    for share in (0.3, 0.6, 1.0):
        pilot.page.mouse.move(x + share * (target[0] - x), y + share * (target[1] - y) + 30)
    pilot.page.wait_for_timeout(60)
    assert pilot.told()["seen"]["seq"] == 0
    pilot.page.mouse.up()
    eta = pilot.wait_event(1)["seen"]["place"]["eta"]
    assert 0.7 < eta < 0.9
    assert float(pilot.slider("eta").input_value()) == pytest.approx(eta)


def test_a_click_on_a_point_takes_its_place(pilot: Pilot):
    x, y = pilot.point("i1.slerp.e0.8.sft")
    pilot.page.mouse.click(x + 3, y - 2)
    told = pilot.wait_event(1)
    place = {"iteration": 1, "method": "slerp", "weights": [], "eta": 0.8, "towards": "sft"}
    assert told["seen"]["place"] == place
    assert pilot.state() == "measured, n = 128"
    assert math.dist(pilot.marker(), (x, y)) < 1
    assert pilot.page.get_by_role("radio", name="1").is_checked()
    pilot.page.mouse.click(x - 1, y)  # there already: nothing to tell
    pilot.page.mouse.click(*pilot.point("i2.p3"))
    told = pilot.wait_event(2)
    assert told["seen"]["place"]["weights"] == [0, 0, 1]
    assert pilot.slider("weight of policy 3").input_value() == "1"
    pilot.page.mouse.click(*pilot.point("sft"))
    told = pilot.wait_event(3)  # the other sliders stay: every place with eta 0 is the SFT policy
    assert told["seen"]["place"] | {"towards": ""} == {
        "iteration": 2,
        "method": "lerp",
        "weights": [0, 0, 1],
        "eta": 0,
        "towards": "",
    }


def test_a_point_keeps_its_weights_to_the_last_digit(open_pilot: OpenPilot):
    pilot = open_pilot("exact")
    pilot.page.mouse.click(*pilot.point("exact"))
    weights = [1 / 7, 2 / 7, 4 / 7]
    assert pilot.wait_event(1)["seen"]["place"]["weights"] == weights
    pilot.slider("eta").focus()
    pilot.page.keyboard.press("ArrowLeft")
    assert pilot.wait_event(2)["seen"]["place"]["weights"] == weights
    pilot.slider("weight of policy 1").focus()
    pilot.page.keyboard.press("ArrowRight")
    mixed = pilot.wait_event(3)["seen"]["place"]["weights"]
    assert mixed == [round(weight, 4) for weight in mixed]
    assert sum(mixed) == pytest.approx(1, abs=1e-9)


def test_pins_can_be_clicked_even_where_nothing_was_measured(pilot: Pilot):
    ring = pilot.page.locator(".pins circle").nth(2).bounding_box()
    assert ring
    pilot.page.mouse.click(ring["x"] + ring["width"] / 2, ring["y"] + ring["height"] / 2)
    place = pilot.wait_event(1)["seen"]["place"]
    assert (place["eta"], place["weights"]) == (0.66, [0.8, 0.1, 0.1])
    assert pilot.state().startswith("predicted")


def test_points_can_be_reached_and_chosen_by_keys(pilot: Pilot):
    stop = pilot.page.locator(".points [tabindex='0']")
    assert stop.count() == 1
    stop.focus()
    pilot.page.keyboard.press("Home")
    focused = pilot.page.locator(".points path:focus")
    assert focused.get_attribute("data-key") == "sft"
    assert (focused.get_attribute("aria-label") or "").startswith("SFT policy, reward")
    pilot.page.keyboard.press("ArrowRight")
    key = focused.get_attribute("data-key")
    assert key != "sft"
    assert pilot.page.locator(".tip.shown strong").inner_text() != "SFT policy"
    pilot.page.keyboard.press("Enter")
    pilot.wait_event(1)
    assert focused.get_attribute("data-key") == key


def test_keys_move_a_slider_and_send_once_when_they_rest(pilot: Pilot):
    slider = pilot.slider("eta")
    slider.focus()
    for key in ("ArrowRight", "ArrowUp", "Shift+ArrowRight", "PageDown", "ArrowLeft"):
        pilot.page.keyboard.press(key)
    expect(slider).to_have_attribute("aria-valuetext", "0.44")
    assert pilot.wait_event(1)["seen"]["place"]["eta"] == 0.44
    pilot.page.keyboard.press("End")
    assert pilot.wait_event(2)["seen"]["place"]["eta"] == 1
    pilot.page.keyboard.press("Home")
    pilot.page.keyboard.press("Tab")  # leaving does not wait
    assert pilot.wait_event(3)["seen"]["place"]["eta"] == 0
    assert pilot.page.locator(".announcement").inner_text().startswith("eta 0.00, measured, n = 128: reward")


def test_a_typed_number_is_taken_and_nonsense_refused(pilot: Pilot):
    field = pilot.number("eta, as a number")
    field.fill("1.5")
    field.press("Enter")
    assert pilot.page.get_by_role("status").inner_text() == "eta takes a number from 0 to 1"
    assert field.get_attribute("aria-invalid") == "true"
    field.fill("a half")
    field.press("Enter")
    assert field.input_value() == "a half"
    assert pilot.told()["seen"]["seq"] == 0
    field.press("Escape")
    assert (field.input_value(), field.get_attribute("aria-invalid")) == ("0.43", None)
    field.fill("0,125")
    field.press("Enter")
    assert pilot.wait_event(1)["seen"]["place"]["eta"] == 0.125
    assert pilot.page.get_by_role("status").inner_text() == ""


def test_weights_add_up_and_a_double_click_makes_them_alike(pilot: Pilot):
    x, y = pilot.grab("weight of policy 2")
    pilot.page.mouse.move(x + 30, y)
    pilot.page.mouse.move(x + 60, y)
    pilot.page.mouse.up()
    weights = pilot.wait_event(1)["seen"]["place"]["weights"]
    assert sum(weights) == pytest.approx(1, abs=1e-9)
    assert weights[1] > 0.5
    assert weights[0] == pytest.approx(weights[2], abs=2e-4)
    pilot.slider("weight of policy 1").dblclick()
    pilot.wait(lambda told: told["seen"]["place"]["weights"] == [])
    assert pilot.number("weight of policy 2, as a number").input_value() == "0.333"


def test_methods_iterations_and_ends_are_sent(pilot: Pilot):
    for seq, (name, field, value) in enumerate(
        [("LERP", "method", "lerp"), ("init", "towards", "init"), ("1", "iteration", 1)], start=1
    ):
        pilot.page.locator("label", has=pilot.page.get_by_role("radio", name=name, exact=True)).click()
        assert pilot.wait_event(seq)["seen"]["place"][field] == value
        pilot.page.locator(".state.predicted, .state.measured").wait_for()
    assert pilot.page.get_by_role("radio", name="init").is_disabled()  # the init of iteration 1 is the SFT policy


def test_two_policies_have_one_lambda_and_slerp_shares_above_one(open_pilot: OpenPilot):
    pilot = open_pilot("policies=2")
    assert pilot.slider("lambda, share of policy 2").input_value() == "0.5"
    pilot.number("eta, as a number").fill("1")
    pilot.page.keyboard.press("Enter")
    pilot.wait_event(1)
    shares = [float(text) for text in pilot.page.locator(".parts b").all_inner_texts()]
    assert shares == pytest.approx([math.sqrt(0.5)] * 2, abs=0.03)
    assert pilot.page.locator(".formula").inner_text().startswith("\u03b8 = 0.00 \u03b8")
    pilot.slider("lambda, share of policy 2").focus()
    pilot.page.keyboard.press("Shift+ArrowRight")
    assert pilot.wait_event(2)["seen"]["place"]["weights"] == [0.4, 0.6]
    pilot.page.locator("label", has=pilot.page.get_by_role("radio", name="LERP", exact=True)).click()
    pilot.wait_event(3)
    assert pilot.page.locator(".parts b").all_inner_texts() == ["0.40", "0.60"]


def test_one_policy_alone_has_no_weights(open_pilot: OpenPilot):
    pilot = open_pilot("policies=1")
    assert pilot.page.get_by_role("slider").count() == 1
    assert pilot.page.locator(".parts li").count() == 1


def test_extrapolation_is_on_demand(pilot: Pilot):
    pilot.button("extrapolate to 2").click()
    assert pilot.wait_event(1)["seen"]["extrapolate"] is True
    pilot.slider("eta").focus()
    pilot.page.keyboard.press("End")
    assert pilot.wait_event(2)["seen"]["place"]["eta"] == 2
    pilot.button("extrapolate to 2").click()
    told = pilot.wait_event(3)
    assert (told["seen"]["extrapolate"], told["seen"]["place"]["eta"]) == (False, 1)


def test_a_budget_sets_the_largest_eta_within_it(pilot: Pilot):
    pilot.button("KL budget").click()
    first = pilot.wait_event(1)["seen"]
    assert first["budget"] == pytest.approx(pilot.value("KL") + 0.1, abs=0.15)
    assert first["place"]["eta"] == 0.43  # a line at first, which moves nothing
    assert pilot.page.locator(".field.budget .note").inner_text().endswith(" nats left")
    line = pilot.page.locator(".live .budget .grip").bounding_box()
    assert line
    x, y = line["x"] + line["width"] / 2, line["y"] + 150
    pilot.page.mouse.move(x, y)
    pilot.page.mouse.down()
    pilot.page.mouse.move(x + 50, y)
    pilot.page.mouse.move(x + 100, y)
    pilot.page.wait_for_timeout(60)
    assert pilot.told()["seen"]["seq"] == 1
    assert float(pilot.slider("eta").input_value()) > first["place"]["eta"]
    pilot.page.mouse.up()
    second = pilot.wait_event(2)["seen"]
    assert second["budget"] > first["budget"]
    assert pilot.value("KL") <= second["budget"] + 0.1
    pilot.number("KL budget in nats").fill("3")
    pilot.page.keyboard.press("Enter")
    third = pilot.wait_event(3)["seen"]
    assert (third["budget"], pilot.value("KL") <= 3) == (3, True)
    pilot.slider("eta").focus()
    pilot.page.keyboard.press("PageUp")
    pilot.wait_event(4)
    assert "over by" in pilot.page.locator(".field.budget .note").inner_text()
    pilot.page.get_by_label("Horizontal axis").select_option("length")
    pilot.wait_event(5)
    assert not pilot.page.locator(".live .budget").is_visible()
    pilot.button("KL budget").click()
    assert pilot.wait_event(6)["seen"]["budget"] is None


def test_axes_can_be_other_metrics(pilot: Pilot):
    options = pilot.page.get_by_label("Vertical axis").locator("option").all_inner_texts()
    assert options[:2] == ["KL to the SFT policy (nats per completion)", "reward"]
    assert "reward: sentiment" in options
    pilot.page.get_by_label("Vertical axis").select_option("diversity")
    assert pilot.wait_event(1)["seen"]["y"] == "diversity"
    assert 0.7 < pilot.value("Diversity") < 0.95
    assert pilot.page.locator(".front-line").first.get_attribute("d") == ""
    pilot.page.get_by_label("Vertical axis").select_option("reward:length")  # not predicted
    pilot.wait_event(2)
    assert not pilot.page.locator(".live .marker").is_visible()


def test_series_are_switched_off_and_stay_off(pilot: Pilot):
    num_points = pilot.page.locator(".points path").count()
    pilot.legend("i1.slerp").click()
    assert pilot.wait_event(1)["seen"]["hidden"] == ["i1.slerp"]
    assert pilot.legend("i1.slerp").get_attribute("aria-pressed") == "false"
    assert pilot.page.locator(".points path").count() == num_points - 5
    pilot.button("Hide dominated").click()
    assert pilot.wait_event(2)["seen"]["hidden"] == ["i1.slerp", "dominated"]
    assert pilot.page.locator(".points .dominated").count() == 0
    pilot.legend("predicted").click()
    pilot.wait_event(3)
    assert pilot.page.locator(".live .predicted").get_attribute("d") == ""
    pilot.legend("i1.slerp").click()
    assert pilot.wait_event(4)["seen"]["hidden"] == ["dominated", "predicted"]


def test_hovering_tells_what_a_point_and_the_curve_are(pilot: Pilot):
    tip = pilot.page.locator(".tip.shown")
    pilot.page.mouse.move(*pilot.point("i1.slerp.e1.sft"))
    assert tip.locator("strong").inner_text() == "SLERP, eta 1"
    assert re.fullmatch(r"reward \d\.\d\d \u00b1 0\.\d\d", tip.locator("span").first.inner_text())
    assert "n = 128" in tip.inner_text()
    path = pilot.page.locator(".live .predicted")
    x, y = path.evaluate(
        "(path) => { const at = path.getPointAtLength(0.65 * path.getTotalLength()); return [at.x, at.y]; }"
    )
    corner = pilot.page.locator(".canvas").bounding_box()
    assert corner
    pilot.page.mouse.move(corner["x"] + x, corner["y"] + y)
    assert tip.locator("strong").inner_text().startswith("predicted at eta 0.")
    pilot.page.mouse.move(5, 5)
    tip.wait_for(state="detached")


def test_a_box_zooms_and_stays_until_it_is_reset(open_pilot: OpenPilot):
    pilot = open_pilot("tick=0.4")
    ticks = pilot.page.locator(".grid text.y")
    whole = ticks.all_inner_texts()
    box = pilot.page.locator(".canvas").bounding_box()
    assert box
    pilot.page.mouse.move(box["x"] + 300, box["y"] + 330)
    pilot.page.mouse.down()
    pilot.page.mouse.move(box["x"] + 400, box["y"] + 300)
    pilot.page.mouse.move(box["x"] + 500, box["y"] + 150)
    pilot.page.mouse.up()
    pilot.button("Reset zoom").wait_for()
    zoomed = ticks.all_inner_texts()
    assert zoomed != whole
    runs = pilot.told()["runs"]
    pilot.wait(lambda told: told["runs"] > runs + 1)
    assert ticks.all_inner_texts() == zoomed
    assert pilot.told()["seen"]["seq"] == 0
    pilot.button("Reset zoom").click()
    pilot.button("Reset zoom").wait_for(state="hidden")


def test_new_points_come_during_a_drag_and_disturb_nothing(open_pilot: OpenPilot):
    pilot = open_pilot("tick=0.25")
    pilot.legend("front").click()
    pilot.wait_event(1)
    field = pilot.number("weight of policy 1, as a number")
    field.fill("0.7")  # not yet entered
    num_points = pilot.page.locator(".points path").count()
    runs = pilot.told()["runs"]
    pilot.wait(lambda told: told["runs"] > runs + 2)
    assert field.input_value() == "0.7"
    assert field.evaluate("(field) => field.getRootNode().activeElement === field")
    assert pilot.page.locator(".points path").count() > num_points
    field.press("Escape")
    x, y = pilot.grab("eta")
    pilot.page.mouse.move(x + 40, y)
    pilot.page.mouse.move(x + 60, y)
    runs, held = pilot.told()["runs"], pilot.slider("eta").input_value()
    pilot.wait(lambda told: told["runs"] > runs + 2)
    assert pilot.slider("eta").input_value() == held
    assert pilot.told()["seen"]["seq"] == 1
    pilot.page.mouse.up()
    pilot.wait_event(2)
    runs = pilot.told()["runs"]
    pilot.wait(lambda told: told["runs"] > runs + 2)
    assert pilot.slider("eta").input_value() == held
    assert pilot.legend("front").get_attribute("aria-pressed") == "false"


def test_python_can_move_the_sliders(pilot: Pilot):
    pilot.slider("eta").focus()
    pilot.page.keyboard.press("End")
    pilot.wait_event(1)
    pilot.page.get_by_role("button", name="Go to the middle").click()
    pilot.wait(lambda told: told["seen"]["place"]["eta"] == 0.5)
    expect(pilot.number("eta, as a number")).to_have_value("0.50")
    pilot.slider("eta").focus()
    pilot.page.keyboard.press("ArrowRight")
    assert pilot.wait_event(2)["seen"]["place"]["eta"] == 0.51


def test_without_geometry_the_sliders_work_and_nothing_is_predicted(open_pilot: OpenPilot):
    pilot = open_pilot("blind")
    assert pilot.state() == "No prediction yet: the geometry is being computed"
    assert not pilot.page.locator(".live .marker").is_visible()
    pilot.number("eta, as a number").fill("0.8")
    pilot.page.keyboard.press("Enter")
    pilot.wait_event(1)
    assert pilot.state() == "measured, n = 128"
    assert pilot.page.locator(".live .marker").is_visible()


def test_with_nothing_measured_the_plot_says_what_to_do(open_pilot: OpenPilot):
    pilot = open_pilot("empty")
    assert pilot.page.locator(".empty").inner_text() == "Nothing measured yet: Measure puts the first point here."
    assert pilot.state() == "No prediction yet: it needs four measured points"
    assert pilot.page.locator(".grid text").count() == 0


def test_names_are_never_markup(open_pilot: OpenPilot):
    pilot = open_pilot("hostile")
    assert pilot.page.locator(".pilot img, .pilot b:not(.parts b)").count() == 0
    assert "<img" in (pilot.page.locator(".pins").text_content() or "")
    assert "<img" in pilot.page.locator(".parts").inner_text()


@pytest.mark.parametrize("size", [(1440, 800), (760, 1300)])
def test_nothing_jumps(pilot: Pilot, size: tuple[int, int]):
    pilot.page.set_viewport_size({"width": size[0], "height": size[1]})
    pilot.page.wait_for_timeout(200)
    place = pilot.page.locator(".pilot")
    before = place.bounding_box()
    plot, controls = (pilot.page.locator(name).bounding_box() for name in (".plot", ".controls"))
    assert plot
    assert controls
    assert (controls["x"] > plot["x"] + 300) == (size[0] > 900)
    pilot.button("KL budget").click()
    pilot.wait_event(1)
    pilot.number("eta, as a number").fill("7")
    pilot.page.keyboard.press("Enter")
    pilot.button("Hide dominated").click()
    pilot.wait_event(2)
    assert place.bounding_box() == before
    pilot.page.set_viewport_size({"width": 1440, "height": 900})


def test_it_follows_the_theme(pilot: Pilot):
    pilot.legend("i1.lerp").click()
    pilot.wait_event(1)
    light = ring_and_text(pilot)
    pilot.page.emulate_media(color_scheme="dark")
    pilot.page.wait_for_function("() => matchMedia('(prefers-color-scheme: dark)').matches")
    pilot.page.wait_for_timeout(300)
    dark = ring_and_text(pilot)
    pilot.page.emulate_media(color_scheme="light")
    assert light[1] < 200 < 550 < dark[1]
    assert [ring for ring, _ in (light, dark)] == pytest.approx([text for _, text in (light, dark)], abs=3)
    assert pilot.legend("i1.lerp").get_attribute("aria-pressed") == "false"


def ring_and_text(pilot: Pilot) -> tuple[float, float]:
    """Brightness of the marker and of the text."""
    script = "(node, name) => getComputedStyle(node)[name].match(/[0-9.]+/g).slice(0, 3).map(Number)"
    ring = sum(pilot.page.locator(".live .ring").evaluate(script, "stroke"))
    return ring, sum(pilot.page.locator(".pilot .columns").evaluate(script, "color"))


def test_circles_are_round(pilot: Pilot):
    circle = pilot.page.locator(".live .ring").bounding_box()
    assert circle
    assert circle["width"] == pytest.approx(circle["height"], abs=0.01)
