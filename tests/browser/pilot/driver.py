"""The pilot on a page, as the tests handle it."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from playwright.sync_api import Locator, Page

__all__ = ["OpenPilot", "Pilot"]


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
