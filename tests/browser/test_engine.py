"""Engine, app and browser together, on a tiny run: what is shown is what the models say, and what is exported."""

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import torch
from playwright.sync_api import Page, expect
from transformers import AutoModelForCausalLM

from tests.browser.conftest import ROOT, OpenTab, free_port
from tests.browser.test_explore import drag, eta, pane, text_of, wait_until_done
from tests.tiny import make_model
from tests.training.runs import CPU, tiny_config
from warp_core.service.engine import LocalEngine
from warp_core.service.places import parse_place
from warp_core.service.protocol import JobState, PaneRequest, Place, PreviewRequest, Selection
from warp_core.training.warp import sources_of, train_warp
from warp_core.weights import coefficients, compute_geometry, make_recipe, merge_to_folder

PROMPT = "the plot"
START_S = 90


@dataclass
class Whole:
    """`warp-core app` on a tiny run."""

    url: str
    workspace: Path
    process: subprocess.Popen[str]
    errors: Path

    def engine(self) -> psutil.Process:
        """The engine's process."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        return next(child for child in children if "serve" in child.cmdline())


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with the finished run `tiny`: two policies whose steps were large enough to tell them apart."""
    folder = tmp_path_factory.mktemp("work space")
    make_model("llama", folder / "sft")
    config = tiny_config(
        folder,
        folder / "sft",
        reward={"terms": ["length"]},
        training={"steps": [3], "learning_rate": 0.3, "warmup_steps": 0},
        warp={"policies": 2},
    )
    train_warp(config, folder / "runs" / "tiny", devices=[CPU])
    return folder / "runs"


@pytest.fixture(scope="module")
def whole(workspace: Path, tmp_path_factory: pytest.TempPathFactory, browser: object) -> Iterator[Whole]:
    """The app and its engine, started as a person starts them."""
    port, errors = free_port(), tmp_path_factory.mktemp("app") / "errors.txt"
    environment = os.environ | {"WARP_WORKSPACE": str(workspace), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "warp_core", "app", "tiny", "--headless", "--port", str(port)]
    with errors.open("w") as log:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True
        )
    alarm = threading.Timer(START_S, process.kill)
    alarm.start()
    assert process.stdout is not None
    url = process.stdout.readline().strip()
    alarm.cancel()
    assert url == f"http://127.0.0.1:{port}", errors.read_text()
    yield Whole(url=url, workspace=workspace, process=process, errors=errors)
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 130
    process.stdout.close()


def address(whole: Whole, at: str, *, seed: int = 0) -> str:
    return f"{whole.url}/?run=tiny&at={at}&q={PROMPT}&seed={seed}&n=12"


def said_by(at: Place, *, workspace: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What an engine with one user says for the three panes of a place."""
    monkeypatch.setenv("WARP_WORKSPACE", str(workspace))
    engine = LocalEngine(device="cpu")
    places = {"left": Place(eta=0.0), "current": at, "right": at.model_copy(update={"eta": 1.0})}
    request = PreviewRequest(
        session="alone",
        selection=Selection(run="tiny"),
        prompt=PROMPT,
        panes=tuple(PaneRequest(id=name, place=place) for name, place in places.items()),
        seed=seed,
        max_new_tokens=12,
    )
    try:
        job = engine.submit(request)
        while not (job := engine.job(job.id)).state.is_final:
            threading.Event().wait(0.02)
        assert job.state is JobState.DONE, job.error
        return [one.completions[0].text for one in job.panes]
    finally:
        engine.close()


def shown_on(page: Page) -> list[str]:
    return [text_of(page, name) for name in ("left", "current", "right")]


def squeezed(texts: list[str]) -> list[str]:
    """Texts as a browser lays them out: spaces at the ends and around line breaks are not shown."""
    return [" ".join(text.split()) for text in texts]


def test_two_sessions_get_the_completions_of_their_own_models(
    whole: Whole, open_tab: OpenTab, workspace: Path, monkeypatch: pytest.MonkeyPatch
):
    spots = {"i1.slerp.e0.7.sft": 1, "i1.lerp.w0.1-0.9.e1.sft": 2}
    pages = {at: open_tab(address(whole, at, seed=seed), settle=False).page for at, seed in spots.items()}
    for page in pages.values():
        wait_until_done(page)
    for at, seed in spots.items():
        expected = said_by(parse_place(at), workspace=workspace, seed=seed, monkeypatch=monkeypatch)
        assert squeezed(shown_on(pages[at])) == squeezed(expected)
    assert shown_on(pages["i1.slerp.e0.7.sft"]) != shown_on(pages["i1.lerp.w0.1-0.9.e1.sft"])


def test_a_drag_ends_in_the_completions_of_the_new_place(whole: Whole, open_tab: OpenTab):
    page = open_tab(address(whole, "i1.slerp.e0.1.sft")).page
    wait_until_done(page)
    before = shown_on(page)
    drag(page, eta(page), 0.1, 0.93)
    expect(pane(page, "current").locator(".recipe")).not_to_contain_text("eta 0.1")
    wait_until_done(page)
    after = shown_on(page)
    assert before[0] == after[0], "the SFT policy with the same seed"
    assert before[1] != after[1]
    expect(page).to_have_url(re.compile(r"at=i1\.slerp\.e0\.9\d*\.sft"))


def test_a_measured_place_is_in_the_store_and_on_the_plot(whole: Whole, open_tab: OpenTab):
    page = open_tab(address(whole, "i1.slerp.e0.37.sft")).page
    wait_until_done(page)
    expect(page.locator(".badge")).not_to_have_text("measured")
    page.get_by_role("button", name="Measure", exact=True).click()
    expect(page.locator(".badge")).to_have_text("measured", timeout=60_000)
    again = open_tab(address(whole, "i1.slerp.e0.37.sft")).page
    expect(again.locator(".badge")).to_have_text("measured")


def test_an_export_from_the_page_loads_in_transformers_and_is_the_merge(
    whole: Whole, open_tab: OpenTab, workspace: Path, tmp_path: Path
):
    page = open_tab(f"{whole.url}/export?run=tiny&at=i1.slerp.e0.6.sft").page
    name = page.get_by_role("textbox", name="Name", exact=True)
    name.fill("from-the-page")  # and at once the button, without leaving the field before
    page.get_by_role("button", name="Export", exact=True).click()
    expect(page.get_by_text("AutoModelForCausalLM").first).to_be_visible(timeout=90_000)
    model = AutoModelForCausalLM.from_pretrained(workspace / "exports" / "from-the-page")
    run = workspace / "tiny"
    from warp_core.training.warp import reopen

    folder, config = reopen(run)
    sources = sources_of(folder, config, 1)
    recipe = make_recipe(sources.init, sources.policies, method="slerp", eta=0.6)
    geometry = compute_geometry(sources.init, sources.policies)
    assert coefficients(recipe, geometry).coef_LM.shape[1] == 2
    out = tmp_path / "by hand"
    merge_to_folder(recipe, init=sources.init, policies=sources.policies, geometry=geometry, out=out)
    by_hand = AutoModelForCausalLM.from_pretrained(out).state_dict()
    assert all(torch.equal(tensor, by_hand[key]) for key, tensor in model.state_dict().items())


def test_a_killed_engine_is_reported_and_started_again(whole: Whole, open_tab: OpenTab):
    tab = open_tab(address(whole, "i1.slerp.e0.5.sft"))
    page = tab.page
    wait_until_done(page)
    first = whole.engine()
    first.kill()
    page.get_by_role("button", name="Regenerate").click()
    expect(page.get_by_text("The engine does not answer")).to_be_visible()
    expect(page.get_by_text("The engine does not answer")).to_be_hidden(timeout=1000 * START_S)
    assert whole.engine().pid != first.pid
    assert "the engine" in whole.errors.read_text()
    page.get_by_role("button", name="Regenerate").click()
    wait_until_done(page)
    assert all(shown_on(page))
