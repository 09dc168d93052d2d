"""Take the pictures of the web app that the README shows, with the real engine and the bundled run.

    .venv/bin/python scripts/picture_app.py --url http://127.0.0.1:8501 [--out docs/app] [--only drag explore ...]

Needs requirements-dev.txt, a Chromium, and an app that runs (`make app HEADLESS=1`) in a workspace of its own: it
measures, votes and exports nothing, but the pages show what that workspace holds.
"""

import argparse
import io
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

CHROMIUM = "/usr/bin/chromium"
FLAGS = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-background-networking", "--disable-gpu"]
SIZE = {"width": 1440, "height": 900}
FILM = {"width": 1440, "height": 1440}
FILM_WIDTH = 1000
FRAME_MS = 70
LAST_FRAME_MS = 2500
FILM_LIMIT_BYTES = 3_000_000
PINS = "pin=i1.slerp.e0.5.sft~half way&pin=i1.lerp.e0.8.sft&pin=i2.slerp.e1.sft"
PAGES = {
    "explore": f"?run=demo-run&at=i2.slerp.e0.62.sft&{PINS}&budget=8",
    "train": "train?run=demo-run",
    "geometry": "geometry?run=demo-run&at=i1.slerp.e0.5.sft",
    "compare": f"compare?run=demo-run&{PINS}",
    "export": "export?run=demo-run&at=i2.slerp.e0.62.sft",
    "studies": "studies?run=demo-run",
    "help": "help?run=demo-run",
}


def settle(page: Page, *, seconds: float) -> None:
    """Wait for the page to stand still."""
    page.wait_for_timeout(1000)
    page.get_by_test_id("stStatusWidget").wait_for(state="detached", timeout=120_000)
    page.wait_for_timeout(1000 * seconds)


def still(browser: Browser, address: str, out: Path, *, scheme: str, seconds: float) -> None:
    """Take one picture of a page."""
    page = browser.new_page(viewport=SIZE, color_scheme=scheme)  # type: ignore[arg-type]
    page.goto(address)
    settle(page, seconds=seconds)
    page.screenshot(path=out)
    picture = Image.open(out).convert("RGB")
    # Few colours in a flat page: a palette makes the file a third as large.
    picture.quantize(256, dither=Image.Dither.NONE).save(out, optimize=True)
    page.close()


def film(browser: Browser, address: str, out: Path) -> None:
    """Record a drag of eta: frames while the hand moves, then what the engine writes after the release."""
    page = browser.new_page(viewport=FILM, color_scheme="light")
    page.goto(f"{address}?run=demo-run&at=i2.slerp.e0.1.sft")
    settle(page, seconds=25)
    frames: list[Image.Image] = []

    def take() -> None:
        frame = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
        height = round(frame.height * FILM_WIDTH / frame.width)
        frames.append(frame.resize((FILM_WIDTH, height), Image.Resampling.LANCZOS))

    drag(page, take, [0.1 + 0.9 * step / 30 for step in range(31)] + [1.0 - 0.45 * step / 15 for step in range(16)])
    end = time.monotonic() + 6
    while time.monotonic() < end:
        take()
    durations = [FRAME_MS] * (len(frames) - 1) + [LAST_FRAME_MS]
    for quality in (70, 50, 35, 20):
        frames[0].save(
            out, save_all=True, append_images=frames[1:], duration=durations, loop=0, quality=quality, method=4
        )
        if out.stat().st_size < FILM_LIMIT_BYTES:
            break
    page.close()


def drag(page: Page, take: Callable[[], None], etas: Sequence[float]) -> None:
    """Drag the eta slider through places, with a picture at each."""
    box = page.get_by_role("slider", name="eta", exact=True).bounding_box()
    assert box is not None
    y, thumb = box["y"] + box["height"] / 2, 16.0

    def at(eta: float) -> float:
        return box["x"] + thumb / 2 + (box["width"] - thumb) * eta

    page.mouse.move(at(etas[0]), y)
    page.mouse.down()
    for eta in etas:
        page.mouse.move(at(eta), y)
        take()
    page.mouse.up()


def main() -> None:
    """Take all pictures, or those that are named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--url", default="http://127.0.0.1:8501")
    parser.add_argument("--out", type=Path, default=Path("docs/app"))
    parser.add_argument("--only", nargs="+", choices=["drag", *PAGES])
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    wanted = options.only or ["drag", *PAGES]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        for name in wanted:
            if name == "drag":
                film(browser, f"{options.url}/", options.out / "drag.webp")
                continue
            for scheme in ("light", "dark"):
                where = options.out / f"{name}-{scheme}.png"
                still(browser, f"{options.url}/{PAGES[name]}", where, scheme=scheme, seconds=6)
                print(where, where.stat().st_size // 1000, "kB")
        browser.close()


if __name__ == "__main__":
    main()
