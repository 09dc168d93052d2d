"""Measure what a person feels in the explorer, with the real engine, SmolLM2 and a real browser.

    .venv/bin/python scripts/measure_app.py [--moves 200] [--releases 20] [--out figures.json]

Needs requirements-dev.txt and a Chromium. Everything runs in a scratch workspace; the model comes from the cache. The
figures go to stderr as they come, and to stdout (or --out) as one JSON document:

    cold_start_s      `warp-core app` typed -> front drawn; -> three panes sampled
    frames_ms         between two frames during a drag of five seconds, and script runs during and after it
    release_ms        slider let go -> job running -> merged -> first token -> all tokens in three panes -> scored
    ui_cpu            share of one core that the web process takes while the engine measures a point
    memory_mb         of engine and web process before and after so many slider moves (of six tokens each)
"""

import argparse
import json
import os
import random
import secrets
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from playwright.sync_api import FloatRect, Page, sync_playwright
from streamlit.proto.BackMsg_pb2 import BackMsg

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from warp_core.service.client import HttpEngine  # noqa: E402
from warp_core.service.protocol import Job, JobState  # noqa: E402

CHROMIUM = "/usr/bin/chromium"
FLAGS = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-background-networking", "--disable-gpu"]
WAIT_MS = 300_000
DRAG_S = 5.0
POINTS = "svg.still [role=button]"
RECORDER = """() => {
    window.__frames = []; let last = null;
    const tick = (now) => { if (last !== null) window.__frames.push(now - last); last = now;
        if (!window.__stop) requestAnimationFrame(tick); };
    window.__stop = false; requestAnimationFrame(tick);
}"""


def say(text: str) -> None:
    """Write a line to stderr at once."""
    print(text, file=sys.stderr, flush=True)


def quantiles(values: Sequence[float]) -> dict[str, float]:
    """Return median, 95th and 99th percentile, and how many there were."""
    ordered = sorted(values)

    def at(share: float) -> float:
        return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 1)

    return {"p50": round(statistics.median(ordered), 1), "p95": at(0.95), "p99": at(0.99), "n": len(ordered)}


def free_port() -> int:
    """Return a port of loopback that nobody uses right now."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@contextmanager
def started(*arguments: str, environment: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """Run `warp-core` with arguments until the block ends."""
    process = subprocess.Popen(
        [sys.executable, "-m", "warp_core", *arguments],
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=30)


@contextmanager
def browser_page() -> Iterator[Page]:
    """Open a page of a fresh browser."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        page.set_default_timeout(WAIT_MS)
        yield page
        browser.close()


def cold_start(environment: dict[str, str]) -> dict[str, float]:
    """Start everything from nothing, models in the cache, and wait for the front and for the first completions."""
    port = free_port()
    began = time.monotonic()
    with started("app", "--headless", "--port", str(port), environment=environment) as process, browser_page() as page:
        assert process.stdout is not None
        process.stdout.readline()
        found = {"address_printed": time.monotonic() - began}
        page.goto(f"http://127.0.0.1:{port}")
        page.locator(POINTS).first.wait_for(state="attached")
        found["front_drawn"] = time.monotonic() - began
        page.get_by_role("button", name="Generate", exact=True).click()
        wait_for_panes(page)
        found["three_panes"] = time.monotonic() - began
    return {name: round(value, 2) for name, value in found.items()}


def wait_for_panes(page: Page) -> None:
    """Wait until all three panes say that they are done."""
    page.locator(".pane[data-state=done]:not(.stale)").nth(2).wait_for()


def slider_box(page: Page) -> FloatRect:
    """Return where the eta slider is, on the screen: a click further down has scrolled it away."""
    slider = page.get_by_role("slider", name="eta", exact=True)
    slider.scroll_into_view_if_needed()
    box = slider.bounding_box()
    assert box is not None
    return box


def drag(page: Page, *, seconds: float) -> None:
    """Drag the eta slider to and fro with the mouse and let it go."""
    box = slider_box(page)
    y = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] / 2, y)
    page.mouse.down()
    end, step = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        share = 0.5 + 0.4 * ((step % 80) / 40 - 1 if step % 80 < 80 else 0)
        page.mouse.move(box["x"] + box["width"] * min(0.95, max(0.05, share)), y)
        step += 1
    page.mouse.up()


def frames(page: Page, runs: list[float]) -> dict[str, Any]:
    """Record the frames of a drag, and what the page sends to Python meanwhile and within 2 s after it."""
    page.evaluate(RECORDER)
    runs.clear()
    drag(page, seconds=DRAG_S)
    let_go = time.time()
    page.evaluate("window.__stop = true")
    intervals = page.evaluate("window.__frames")
    page.wait_for_timeout(2000)
    return quantiles(intervals) | {
        "over_20_ms": sum(value > 20 for value in intervals),
        "script_runs_during": sum(at < let_go - 0.05 for at in runs),
        "script_runs_after": sum(at >= let_go - 0.05 for at in runs),
    }


def note_run(frame: str | bytes, runs: list[float]) -> None:
    """Keep when the page asked for a script run, unless a timer did."""
    if isinstance(frame, bytes):
        message = BackMsg()
        message.ParseFromString(frame)
        if message.WhichOneof("type") == "rerun_script" and not message.rerun_script.is_auto_rerun:
            runs.append(time.time())


def move_to(page: Page, eta: float) -> float:
    """Drag the slider to a value and let it go; return when that was."""
    box = slider_box(page)
    y = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] / 2, y)
    page.mouse.down()
    for part in (0.3, 0.7, 1.0):
        page.mouse.move(box["x"] + box["width"] * (0.5 + (eta - 0.5) * part), y)
    page.mouse.up()
    return time.time()


def next_preview(engine: HttpEngine, after: float, *, patience_s: float = 120.0) -> Job:
    """Return the first preview that was submitted after a time, when it has ended."""
    end = time.monotonic() + patience_s
    while time.monotonic() < end:
        jobs = [job for job in engine.jobs() if job.kind == "preview" and job.created_at >= after - 0.01]
        if jobs and jobs[-1].state.is_final:
            return jobs[-1]
        time.sleep(0.02)
    raise TimeoutError("no preview came")


def releases(page: Page, engine: HttpEngine, *, count: int) -> dict[str, dict[str, float]]:
    """Let the slider go at random places and read the engine's own times, from the release on."""
    chance = random.Random(0)
    found: dict[str, list[float]] = {}
    for number in range(count):
        at = move_to(page, chance.uniform(0.1, 0.45) if number % 2 else chance.uniform(0.55, 0.95))
        job = next_preview(engine, at)
        if job.state is not JobState.DONE:
            continue
        found.setdefault("submitted", []).append(1000 * (job.created_at - at))
        for name, seconds in job.timings_s.items():
            found.setdefault(name, []).append(1000 * (job.created_at - at + seconds))
        page.wait_for_timeout(300)
    return {name: quantiles(values) for name, values in found.items()}


def ui_cpu(page: Page, engine: HttpEngine, web: psutil.Process) -> dict[str, float]:
    """Measure a place that has not been measured, and watch the web process for ten seconds of it."""
    move_to(page, 0.43)
    page.wait_for_timeout(4000)
    page.get_by_role("button", name="Measure", exact=True).click()
    page.wait_for_timeout(3000)
    before, began = web.cpu_times(), time.monotonic()
    page.wait_for_timeout(10_000)
    after, spent = web.cpu_times(), time.monotonic() - began
    is_measuring = any(job.kind == "measure" and job.state is JobState.RUNNING for job in engine.jobs())
    for job in engine.jobs():
        if job.kind == "measure" and not job.state.is_final:
            engine.cancel(job.id)
    share = (after.user + after.system - before.user - before.system) / spent
    return {"share_of_a_core": round(share, 3), "job_was_running": float(is_measuring)}


def memory(page: Page, engine: HttpEngine, web: psutil.Process, *, moves: int) -> dict[str, Any]:
    """Move the slider so often, waiting for each preview, and watch the memory of both processes."""
    chance = random.Random(1)
    server = psutil.Process(engine.status().pid)

    def now() -> dict[str, float]:
        return {name: round(one.memory_info().rss / 2**20, 1) for name, one in (("engine", server), ("web", web))}

    series = {0: now()}
    for move in range(1, moves + 1):
        # To and fro: a slider that comes to rest where it was asks for nothing.
        eta = chance.uniform(0.05, 0.45) if move % 2 else chance.uniform(0.55, 0.95)
        next_preview(engine, move_to(page, eta))
        if move % max(1, moves // 8) == 0:
            series[move] = now()
            say(f"  after {move} moves: {series[move]} MB")
    return {"by_move": series}


def main() -> None:
    """Run all measurements and print them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--moves", type=int, default=200)
    parser.add_argument("--releases", type=int, default=20)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    found: dict[str, Any] = {"cores": os.cpu_count()}
    with tempfile.TemporaryDirectory() as scratch:
        token = secrets.token_urlsafe(16)
        environment = {"WARP_WORKSPACE": f"{scratch}/runs", "WARP_ENGINE_TOKEN": token}
        found["cold_start_s"] = cold_start(environment)
        say(f"cold start: {found['cold_start_s']}")
        port, web_port = free_port(), free_port()
        url = f"http://127.0.0.1:{port}"
        with (
            started("serve", "--port", str(port), environment=environment) as server,
            HttpEngine(url, token) as engine,
        ):
            assert server.stdout is not None
            server.stdout.readline()
            command = ("app", "--engine", url, "--port", str(web_port), "--headless")
            with started(*command, environment=environment) as app, browser_page() as page:
                assert app.stdout is not None
                app.stdout.readline()
                web = next(one for one in psutil.Process(app.pid).children(recursive=True) if one.is_running())
                sent: list[float] = []
                page.on("websocket", lambda socket_: socket_.on("framesent", lambda frame: note_run(frame, sent)))
                page.goto(f"http://127.0.0.1:{web_port}")
                page.locator(POINTS).first.wait_for(state="attached")
                page.get_by_role("button", name="Generate", exact=True).click()
                wait_for_panes(page)
                page.wait_for_timeout(3000)
                found["frames_ms"] = frames(page, sent)
                say(f"frames: {found['frames_ms']}")
                page.wait_for_timeout(5000)
                found["release_ms"] = releases(page, engine, count=options.releases)
                say(f"release: {json.dumps(found['release_ms'])}")
                found["ui_cpu"] = ui_cpu(page, engine, web)
                say(f"web process while measuring: {found['ui_cpu']}")
                page.goto(f"http://127.0.0.1:{web_port}/?n=6")
                page.locator(POINTS).first.wait_for(state="attached")
                page.wait_for_timeout(8000)
                found["memory_mb"] = memory(page, engine, web, moves=options.moves)
    text = json.dumps(found, indent=2)
    print(text) if options.out is None else options.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
