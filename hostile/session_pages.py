"""Part of the attack `sessions`: browser pages of one app move the sliders of the explore page, as persons would.

One page at a time first, each move waited for; then all of them at once in a fresh app, where some moves are made
before the texts of the last one are there.
"""

import random
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qs, quote, urlsplit

from playwright.sync_api import Error, Page

from app import ui
from hostile.outcomes import Outcome, Tally
from hostile.pages import DONE, App, chromium, open_page, started_app
from hostile.running_engine import PROMPTS, connect, finished
from hostile.running_programs import Programs
from tests.browser.test_explore import drag, eta
from tests.tiny import make_model
from tests.training.runs import CPU, tiny_config
from warp_core.errors import RecipeError
from warp_core.service.places import parse_place, place_label, same_place
from warp_core.service.protocol import (
    GeometryRequest,
    JobState,
    MeasureRequest,
    PaneRequest,
    Place,
    PreviewRequest,
    Selection,
)
from warp_core.training.warp import train_warp
from warp_core.workspace.paths import workspace_root

__all__ = ["Slide", "last_of_bursts", "pages_at_once", "slides", "unlike_its_sliders", "unlike_the_move"]

SEED = 20260102
RUNS = ("one", "two")
TOKENS = 10
HURRIED = 0.3  # share of moves after which the next one follows at once
STANDS_S, LOOK_EVERY_MS = 60.0, 150
LAMBDA = "lambda, share of policy 2"
# What a page says of its position: three texts with their facts, the card, sliders and readout.
SHOWN = """async () => {
  // A move is drawn in the next frame.
  for (let frame = 0; frame < 2; frame++) await new Promise((next) => requestAnimationFrame(next));
  // One walk through the page: it is made several times a second, and all pages are drawn by the same two cores.
  const roots = [document];
  for (const root of roots) {
    for (const node of root.querySelectorAll('*')) if (node.shadowRoot) roots.push(node.shadowRoot);
  }
  const all = (what) => roots.flatMap((root) => [...root.querySelectorAll(what)]);
  const texts = (what) => all(what).map((node) => node.textContent);
  const panes = all('section.pane');
  const fields = all('.pilot input');
  const isWhole = (pane) => pane.dataset.state === 'done' && !pane.classList.contains('stale');
  return {
    still: document.querySelector('[data-testid=stApp][data-test-script-state=notRunning]') !== null
      && panes.length === 3 && panes.every(isWhole),
    panes: texts('section.pane'),
    texts: texts('section.pane .text'),
    recipes: texts('section.pane .recipe'),
    card: texts('.card section'),
    readout: texts('.pilot .readout'),
    shares: texts('.pilot .parts'),
    sliders: fields.filter((one) => one.type === 'range').map((one) => one.value),
    methods: fields.filter((one) => one.name === 'method' && one.checked).map((one) => one.value),
  };
}"""


Kind = Literal["eta", "lambda", "method", "keys", "drag"]


@dataclass(frozen=True, kw_only=True)
class Slide:
    """A move of a slider by hand; `hurried`: the next one follows before its texts are there."""

    kind: Kind
    value: float
    hurried: bool = False

    @property
    def method(self) -> str:
        """The method that it picks."""
        return "lerp" if self.value < 0.5 else "slerp"

    @property
    def num_keys(self) -> int:
        """How often it presses the right arrow."""
        return int(10 * self.value)


def slides(number: int, count: int) -> list[Slide]:
    """The moves of a session: the seed is fixed, the last one is not hurried."""
    draw = random.Random(SEED + number)
    kinds: list[Kind] = ["eta", "eta", "lambda", "lambda", "drag", "keys", "method"]
    return [
        Slide(kind=draw.choice(kinds), value=round(draw.uniform(0.05, 0.95), 2), hurried=draw.random() < HURRIED)
        if index < count - 1
        else Slide(kind="eta", value=round(draw.uniform(0.05, 0.95), 2))
        for index in range(count)
    ]


def last_of_bursts(moves: Sequence[Slide]) -> list[int]:
    """Indices of the moves that are waited for."""
    return [index for index, one in enumerate(moves) if not one.hurried]


def pages_at_once(place: Path, *, sessions: int, moves: int) -> Iterator[Outcome]:
    """Compare what pages show at once with what each shows alone.

    Raises RuntimeError where there is no Chromium.
    """
    _train(place)
    plans = {f"page-{number}": slides(number, moves) for number in range(sessions)}
    addresses = {name: _address(number) for number, name in enumerate(plans)}
    alone = Tally(
        "a page alone",
        promise="P8",
        holds="its texts, rewards and KLs are those that the engine gives a session of its own for that position",
    )
    with Programs(place / "alone") as programs, started_app(programs, RUNS[0]) as app:
        _measure(app)
        expected = {}
        with chromium() as browser:
            for name, plan in plans.items():
                with open_page(browser, app.url + addresses[name]) as page:
                    expected[name] = _alone(page, plan)
                    _check_alone(alone, app, name, expected[name][-1], addresses[name])
    yield alone.outcome()
    with Programs(place / "together") as programs, started_app(programs, RUNS[0]) as app:
        yield _together(app, plans, addresses, expected)


def _train(place: Path) -> None:
    """Two runs of two policies that are far enough apart to write different texts."""
    for number, (name, kind) in enumerate(zip(RUNS, ("lora", "full"), strict=True)):
        folder = place / name
        folder.mkdir(parents=True)
        training = {"steps": [3], "learning_rate": (0.3, 0.03)[number], "warmup_steps": 0}
        sft = make_model("llama", folder / "sft", seed=number)
        warp = {"policies": 2}
        config = tiny_config(folder, sft, kind=kind, reward={"terms": ["length"]}, training=training, warp=warp)
        train_warp(config, workspace_root() / name, devices=[CPU])


def _address(number: int) -> str:
    prompt = quote(PROMPTS[number % len(PROMPTS)])
    return f"/?run={RUNS[number % 2]}&at=i1.slerp.e0.5.sft&q={prompt}&seed={number}&n={TOKENS}"


def _measure(app: App) -> None:
    """Measure points and angles, so that the pages predict from the start; the engine's models are used once."""
    with connect(app.engine_url, app.token) as engine:
        for name in RUNS:
            run = Selection(run=name)
            places = tuple(Place(eta=eta) for eta in (0.0, 0.25, 0.5, 0.75, 1.0))
            measure = MeasureRequest(session="first", selection=run, places=places)
            for request in (measure, GeometryRequest(session="first", selection=run)):
                job = finished(engine, engine.submit(request))
                if job.state is not JobState.DONE:
                    raise RuntimeError(f"{job.kind} before the attack: {job.error}")


def _do(page: Page, move: Slide) -> None:
    """Move a slider as a person does."""
    match move.kind:
        case "eta" | "lambda":
            name = {"eta": "eta", "lambda": LAMBDA}[move.kind]
            field = page.get_by_role("textbox", name=f"{name}, as a number", exact=True)
            field.fill(str(move.value))
            field.press("Enter")
        case "method":
            page.get_by_role("radio", name=move.method.upper(), exact=True).click()
        case "keys":
            eta(page).focus()
            for key in ("Home", "PageUp", *["ArrowRight"] * move.num_keys):
                page.keyboard.press(key)
        case "drag":
            drag(page, eta(page), 0.5, move.value, steps=6)


def _alone(page: Page, plan: Sequence[Slide]) -> list[dict[str, Any]]:
    """What a page shows after each move when nobody else is there."""
    page.wait_for_function(DONE)
    found = []
    for number, move in enumerate(plan):
        _do(page, move)
        shown, problem = _standing(page, move)
        if problem:
            raise RuntimeError(f"a page alone, move {number}, {move}: {problem}")
        found.append(shown)
    return found


def _standing(page: Page, move: Slide) -> tuple[dict[str, Any], str]:
    """Wait until a page stands still where it was moved: what it shows, and what is wrong with that."""
    until, problem = time.monotonic() + STANDS_S, "never looked at"
    while time.monotonic() < until:
        shown: dict[str, Any] = page.evaluate(SHOWN)
        problem = unlike_the_move(move, shown) or unlike_its_sliders(page.url, shown)
        problem = problem or ("" if shown["still"] else "the texts never came")
        if not problem:
            return shown | {"at": _at(page.url)}, ""
        page.wait_for_timeout(LOOK_EVERY_MS)
    return {}, problem


def unlike_the_move(move: Slide, shown: dict[str, Any]) -> str:
    """Whether a slider is elsewhere than where it was put; "" where it is there."""
    eta, share = (float(value) for value in shown["sliders"])
    wanted = {
        "eta": abs(eta - move.value) < 1e-6,
        "lambda": abs(share - move.value) < 1e-6,
        "method": shown["methods"] == [move.method],
        "keys": abs(eta - 0.1 - move.num_keys / 100) < 1e-6,
        "drag": abs(eta - move.value) < 0.05,  # the thumb is so wide
    }
    return "" if wanted[move.kind] else f"the sliders are at {shown['sliders']}, {shown['methods']}"


def _at(url: str) -> str:
    return parse_qs(urlsplit(url).query).get("at", [""])[0]


def unlike_its_sliders(url: str, shown: dict[str, Any]) -> str:
    """What says another position than the sliders do: the address or the pane of the merge; "" where nothing does."""
    share = float(shown["sliders"][1])
    moved = Place(method=shown["methods"][0], weights=(1 - share, share), eta=float(shown["sliders"][0]))
    try:
        place = parse_place(_at(url))
    except RecipeError as error:
        return str(error)
    full = place if place.weights else place.model_copy(update={"weights": (0.5, 0.5)})
    if not same_place(full, moved):
        return f"the address is at {_at(url)}, the sliders at {moved}"
    name = place_label(place, policy_names=["policy 1", "policy 2"])
    return "" if shown["recipes"][1] == name else f"the merge is called {shown['recipes'][1]!r}, not {name!r}"


def _check_alone(tally: Tally, app: App, name: str, shown: dict[str, Any], address: str) -> None:
    """Ask the engine for what a page shows."""
    query = parse_qs(urlsplit(address).query)
    place = parse_place(shown["at"])
    places = {"left": Place(eta=0.0), "current": place, "right": place.model_copy(update={"eta": 1.0})}
    request = PreviewRequest(
        session="asked",
        selection=Selection(run=query["run"][0]),
        prompt=query["q"][0],
        panes=tuple(PaneRequest(id=pane, place=one) for pane, one in places.items()),
        seed=int(query["seed"][0]),
        max_new_tokens=TOKENS,
    )
    with connect(app.engine_url, app.token) as engine:
        job = finished(engine, engine.submit(request))
    said = [one.completions[0] for one in job.panes]
    texts = [one.text.lstrip() for one in said]
    tally.check(texts == shown["texts"], f"{name}: {shown['texts']} not {texts}")
    facts = [f"reward{ui.number(one.reward)}KL{ui.number(one.kl)}" for one in said]
    held = all(fact in pane for fact, pane in zip(facts, shown["panes"], strict=True))
    tally.check(held, f"{name}: {shown['panes']} without {facts}")


def _together(
    app: App,
    plans: dict[str, list[Slide]],
    addresses: dict[str, str],
    expected: dict[str, list[dict[str, Any]]],
) -> Outcome:
    tally = Tally(
        "pages at once",
        promise="P8",
        holds="every page comes to stand at the position of its last move, with the texts, rewards, KLs, card and"
        " readout that a page alone shows there",
    )
    waited: list[float] = []
    hurried = sum(move.hurried for plan in plans.values() for move in plan)
    draw = random.Random(SEED)
    with chromium() as browser, ExitStack() as stack:
        pages = {name: stack.enter_context(open_page(browser, app.url + addresses[name])) for name in plans}
        for page in pages.values():
            page.wait_for_function(DONE)
        bursts = {name: last_of_bursts(plan) for name, plan in plans.items()}
        done = dict.fromkeys(plans, 0)
        while names := [name for name in plans if bursts[name]]:
            draw.shuffle(names)
            began = time.monotonic()
            for name in names:
                last = bursts[name][0]
                for move in plans[name][done[name] : last + 1]:
                    _do(pages[name], move)
                done[name] = last + 1
            for name in names:
                last = bursts[name].pop(0)
                where = f"{name}, move {last}"
                _check_page(tally, pages[name], where, plans[name][last], expected[name][last])
                waited.append(time.monotonic() - began)
    log = [line for line in app.program.said if "Traceback" in line]
    tally.check(not log, f"a trace in the log: {app.program.said[-3:]}")
    return tally.outcome(
        f"{len(plans)} pages, {hurried} moves hurried; answer median {statistics.median(waited):.2f} s, most"
        f" {max(waited):.2f} s"
    )


def _check_page(tally: Tally, page: Page, where: str, move: Slide, wanted: dict[str, Any]) -> None:
    try:
        shown, problem = _standing(page, move)
    except Error as error:
        shown, problem = {}, f"{error}"
    other = [f"{key} {shown[key]} not {wanted[key]}" for key in wanted if shown and shown[key] != wanted[key]]
    tally.check(not problem and not other, f"{where}: {problem}{'; '.join(other)}")
