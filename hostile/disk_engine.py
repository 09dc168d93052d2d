"""Part of the attack `disk`: the disk of the workspace fills while the engine and the web app run, and has room again.

Workspace and cache are on that disk, the models are not. Requests go past the client, so that statuses are seen.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import pydantic_core
from playwright.sync_api import expect
from pydantic import ValidationError

from hostile.outcomes import Outcome, Tally
from hostile.pages import DONE, App, chromium, open_page, started_app
from hostile.running_engine import REWARD, Models, leftovers, make_models, move, said_by
from hostile.running_programs import Programs, wait_for
from tests.training.runs import tiny_config
from warp_core.service.documents import RunState, RunSummary
from warp_core.service.protocol import (
    CheckRequest,
    ExportRequest,
    Failure,
    GeometryRequest,
    Job,
    JobRequest,
    JobState,
    JudgeRequest,
    MeasureRequest,
    Place,
    PrepareRequest,
    Selection,
    TrainRequest,
    Vote,
)
from warp_core.service.routes import ROUTES
from warp_core.training.config import config_to_mapping
from warp_core.workspace.bundled import BUNDLED

__all__ = ["alike", "engine_on_a_full_disk"]

BASE = "base"
STEPS = 60
WRITERS = ("train", "vote", "export")  # what cannot be done without room
ENDS_S = 120.0
DIGITS = 1e-6  # nats and rewards: those of a point depend on which others shared its batch


def engine_on_a_full_disk(
    programs: Programs, disk: Path, place: Path, fill: Callable[[int], Path], left_kb: Sequence[int], *, pages: bool
) -> Iterator[Outcome]:
    """Fill the disk of a running app, ask everything, make room, and ask again; no process is started anew.

    Args:
        programs: where the app is started.
        disk: a small file system.
        place: a folder elsewhere, for the models.
        fill: fills the disk up to so many KB; returns the file that does.
        left_kb: one round each.
        pages: whether a browser looks, too.
    """
    tally = Tally(
        "a disk that fills while engine and app run",
        promise="P1, P3, P13",
        holds="every request is done or refused in one line that names the path, nothing half-written is left; with"
        " room again the same requests are done, with the same answers, by the same processes",
    )
    home = disk / "engine"
    programs.environment |= {"WARP_WORKSPACE": str(home / "runs"), "WARP_CACHE": str(home / "cache")}
    with started_app(programs) as app, app.client() as client:
        site = _Site(home=home, models=make_models(place), client=client, app=app)
        yield _first_requests(site, fill)
        site.prepare()
        refused = 0
        for kb in left_kb:
            refused += _round(tally, site, kb, fill)
        yield tally.outcome(f"{', '.join(map(str, left_kb))} KB free; {refused} requests refused")
        if pages:
            yield _page(site, fill)


@dataclass(kw_only=True)
class _Site:
    """The app, how to ask its engine, and what the engine said when there was room."""

    home: Path
    models: Models
    client: httpx.Client
    app: App
    heard: int = 0
    expected: dict[str, Any] = field(default_factory=dict)
    votes: list[str] = field(default_factory=list)

    @property
    def runs(self) -> Path:
        return self.home / "runs"

    @property
    def config(self) -> dict[str, Any]:
        changes: dict[str, Any] = {
            "reward": {"terms": list(REWARD)},
            "training": {"steps": STEPS, "evaluate_every": 0},
            "warp": {"policies": 1},
        }
        return config_to_mapping(tiny_config(self.models.init.parent, self.models.init, **changes))

    def ask(self, name: str, *arguments: Any) -> tuple[Any, str]:
        """What the engine answers, or what it says instead and, behind a "!", what is wrong with that."""
        route = ROUTES[name]
        body, query = route.split(dict(zip(route.signature.parameters, arguments, strict=True)))
        content = None if body is None else pydantic_core.to_json(body)
        answer = self.client.request(route.verb, route.path, params=query, content=content)
        if answer.status_code == 200:
            return route.answer.validate_json(answer.content), ""
        with suppress(ValidationError):
            said = Failure.model_validate_json(answer.content).error
            return None, said if answer.status_code == 422 else f"!status {answer.status_code}: {said}"
        return None, f"!status {answer.status_code}: {answer.text[:200]}"

    def do(self, request: JobRequest) -> tuple[Job | None, str]:
        """Submit a job and wait for its end; what it, or the answer, says where it was not done."""
        job, said = self.ask("submit", request)
        if said:
            return None, said
        try:
            job = wait_for(lambda: self._ended(job.id), within_s=ENDS_S, every_s=0.02)
        except TimeoutError as error:
            return None, f"!{error}"
        said = job.error or f"!it ended as {job.state} without a word"
        return job, "" if job.state is JobState.DONE else said

    def _ended(self, job_id: str) -> Job | None:
        job, said = self.ask("job", job_id)
        if said:
            raise TimeoutError(f"job {job_id}: {said}")
        return job if job.state.is_final else None

    def run(self, name: str) -> RunSummary | None:
        """A run as the list has it."""
        found, _ = self.ask("runs")
        return next((run for run in found or () if run.name == name), None)

    def trained(self, name: str) -> dict[str, str]:
        """Content of every tensor file of a run."""
        return {
            str(file.relative_to(self.runs / name)): sha256(file.read_bytes()).hexdigest()
            for file in sorted((self.runs / name).rglob("*.safetensors"))
        }

    def end_of(self, name: str) -> tuple[RunState | None, str]:
        """Wait until a run stands still: its state, and what is said of it."""
        with suppress(TimeoutError):
            wait_for(lambda: (run := self.run(name)) and run.state is not RunState.RUNNING, within_s=ENDS_S)
        run = self.run(name)
        return (run.state, run.error or "") if run else (None, "")

    def prepare(self) -> None:
        """Train the run that is looked at, which later ones must equal, and ask everything while there is room."""
        self.heard = len(self.app.program.said)
        self.ask("train", TrainRequest(name=BASE, config=self.config))
        if self.end_of(BASE)[0] is not RunState.FINISHED:
            raise RuntimeError(f"training with room: {self.run(BASE)} {self.app.program.said[-3:]}")
        self.expected["train"] = self.trained(BASE)
        places = tuple(Place(eta=eta) for eta in (0.0, 0.25, 0.5, 1.0))
        _, said = self.do(MeasureRequest(session="disk", selection=Selection(run=BASE), places=places, num_prompts=2))
        done = {name: ask() for name, ask in _requests(self, "before").items()}
        said = said or "; ".join(f"{name}: {words}" for name, (_, words) in done.items() if words)
        if said:
            raise RuntimeError(f"with room: {said}")
        self.expected |= {name: answer for name, (answer, _) in done.items()}


def _first_requests(site: _Site, fill: Callable[[int], Path]) -> Outcome:
    """The disk is full before anybody has asked anything: the bundled run cannot be copied, and is there."""
    tally = Tally(
        "first requests on a full disk",
        promise="P1, P13",
        holds="the bundled run is listed and its front shown, nothing is half-copied; with room again it can be used",
    )
    run = Selection(run=BUNDLED)
    asked: dict[str, tuple[Any, ...]] = {"status": (), "runs": (), "run": (BUNDLED,), "front": (run,)}
    filler = fill(0)
    try:
        for name, arguments in (asked | {"prompts": (run,), "curves": (BUNDLED,), "votes": (run,)}).items():
            answer, said = site.ask(name, *arguments)
            tally.check(answer is not None, f"{name}: {said}")
        tally.check(not (rest := leftovers(site.home)), f"left {rest}")
        tally.check("Traceback" not in "\n".join(site.app.program.said), f"a trace: {site.app.program.said[-1:]}")
    finally:
        filler.unlink()
    for name, arguments in asked.items():
        answer, said = site.ask(name, *arguments)
        tally.check(answer is not None, f"{name}, with room: {said}")
    return tally.outcome()


def _requests(site: _Site, number: str) -> dict[str, Callable[[], tuple[Any, str]]]:
    """What is asked in a round: answers that must be the same with room again, None where they need not, and words."""
    run, loose = Selection(run=BASE), site.models.lora
    key = next(point.key for point in site.ask("front", run)[0].points)
    eta = 0.3 + sum(map(ord, number)) / 1e4

    def read(name: str, *arguments: Any) -> Callable[[], tuple[Any, str]]:
        return lambda: site.ask(name, *arguments)

    def opened(name: str, *arguments: Any) -> Callable[[], tuple[Any, str]]:
        return lambda: (None, site.ask(name, *arguments)[1])

    def job(request: JobRequest, seen: Callable[[Job], Any] = lambda job: None) -> Callable[[], tuple[Any, str]]:
        def do() -> tuple[Any, str]:
            found, said = site.do(request)
            return (seen(found) if found else None), said

        return do

    def measure(selection: Selection) -> JobRequest:
        places = (Place(eta=eta),)
        return MeasureRequest(session="disk", selection=selection, places=places, num_prompts=2, reward=REWARD)

    def export() -> tuple[Any, str]:
        found, said = site.do(ExportRequest(session="disk", selection=run, place=Place(eta=0.4), name=f"out-{number}"))
        return (None, said) if said else (bool(found and (found.result or {}).get("verified")), "")

    return {
        **{name: opened(name) for name in ("status", "runs", "studies", "config_schema")},
        **{name: read(name, run) for name in ("prompts",)},
        **{name: opened(name, run) for name in ("front", "votes")},
        "run": opened("run", BASE),
        "curves": read("curves", BASE),
        "samples": read("samples", run, key),
        "prediction": opened("prediction", run, 1),
        "check_config": opened("check_config", site.config),
        "preview": job(move(run, Place(eta=0.7), session="disk"), said_by),
        "preview of other models": job(move(site.models.full, Place(eta=0.7), session="disk"), said_by),
        "prepare": job(PrepareRequest(session="disk", selection=loose)),
        "check": job(
            CheckRequest(session="disk", selection=loose),
            lambda job: [(job.result or {})[name] for name in ("ok", "problems")],
        ),
        "geometry": job(GeometryRequest(session="disk", selection=run)),
        "measure": job(measure(run)),
        "measure other models": job(measure(loose)),
        "judge": job(JudgeRequest(session="disk", selection=run, keys=(key,), reward=REWARD)),
        "export": export,
        "vote": lambda: _vote(site, run),
    }


def _vote(site: _Site, selection: Selection) -> tuple[Any, str]:
    vote = Vote(
        session="disk",
        prompt="it is",
        first=Place(eta=0.0),
        second=Place(eta=1.0),
        first_text="a",
        second_text="b",
        score=1,
    )
    found, said = site.ask("vote", selection, vote)
    site.votes += [found.id] if found else []
    return None, said


def _round(tally: Tally, site: _Site, left_kb: int, fill: Callable[[int], Path]) -> int:
    """Fill the disk in the middle of a training; the number of requests that were refused."""
    running, new = f"running-{left_kb}", f"new-{left_kb}"
    metrics = site.runs / running / "iteration-1/policy-1/metrics.jsonl"
    site.ask("train", TrainRequest(name=running, config=site.config))
    wait_for(lambda: metrics.exists() and metrics.read_text().count("\n") > 2, every_s=0.02)
    requests = _requests(site, str(left_kb))
    filler = fill(left_kb)
    where = f"{left_kb} KB free"
    try:
        _, words = site.ask("train", TrainRequest(name=new, config=site.config))
        refused = {"train": words}
        for name, ask in requests.items():
            answer, refused[name] = ask()
            problem = _unlike_words(refused[name], site) or _unlike(answer, site, name, refused[name])
            tally.check(not problem, f"{where}, {name}: {problem}")
        for name in (running, new):
            if name == new and words:
                tally.check(not _unlike_words(words, site), f"{where}, train: {words}")
                tally.check(site.run(new) is None, f"{where}: {new} was refused and is listed: {site.run(new)}")
                continue
            state, said = site.end_of(name)
            refused["train"] = refused["train"] or said
            problem = "" if state is RunState.FINISHED else _unlike_words(said or "!it says nothing", site)
            tally.check(not problem, f"{where}: the training {name} is {state}: {problem}")
        rest = leftovers(site.runs, site.home / "cache")
        tally.check(not rest, f"{where}: left {rest}")
        made = site.runs / "exports" / f"out-{left_kb}"
        tally.check(not (refused["export"] and made.exists()), f"{where}: {made.name} was refused and is there")
        if not left_kb:
            done = [name for name in WRITERS if not refused[name]]
            tally.check(not done, f"{where}, and yet done: {done}")
    finally:
        filler.unlink()
    _after(tally, site, left_kb, {name: requests[name] for name in requests if name != "export" or refused[name]})
    return sum(map(bool, refused.values()))


def _after(tally: Tally, site: _Site, left_kb: int, requests: Mapping[str, Callable[[], tuple[Any, str]]]) -> None:
    """There is room again: all is done as it was before, and nobody was started anew."""
    where = f"after {left_kb} KB free"
    for name, ask in requests.items():
        answer, said = ask()
        problem = said or _unlike(answer, site, name, said)
        tally.check(not problem, f"{where}, {name}: {problem}")
    for name in (f"running-{left_kb}", f"new-{left_kb}"):
        run = site.run(name)
        if run is None or run.state is not RunState.FINISHED:
            begun = (site.runs / name / "run.json").exists()
            _, said = site.ask("train", TrainRequest(name=name, config=None if begun else site.config))
            tally.check(not said, f"{where}, train {name}: {said}")
        state, said = site.end_of(name)
        is_same = site.trained(name) == site.expected["train"]
        tally.check(state is RunState.FINISHED, f"{where}: the training {name} is {state}: {said}")
        tally.check(is_same, f"{where}: {name} has other weights than with room")
    votes, said = site.ask("votes", Selection(run=BASE))
    tally.check(not said and [vote.id for vote in votes] == site.votes, f"{where}: votes are lost or made up: {said}")
    rest = leftovers(site.runs, site.home / "cache")
    tally.check(not rest, f"{where}: left {rest}")
    tally.check(
        site.app.engine.is_running() and site.app.program.process.poll() is None, f"{where}: a process has ended"
    )
    log = "\n".join(site.app.program.said[site.heard :])
    tally.check("Traceback" not in log, f"{where}: a trace: {log[-300:]}")


def _unlike_words(said: str, site: _Site) -> str:
    """What is wrong with the words of a refusal; "" where nothing is."""
    if not said:
        return ""
    is_line = said.isprintable() and len(said) < 2000 and "fault of warp-core" not in said
    if said.startswith("!") or not is_line:
        return said
    return "" if str(site.home.parent) in said else f"names no path: {said}"


def _unlike(answer: Any, site: _Site, name: str, said: str) -> str:
    """What is wrong with an answer that is none of a refusal."""
    wanted = site.expected[name]
    is_same = bool(said) or alike(answer, wanted)
    return "" if is_same else f"another answer than before: {str(answer)[:150]} not {str(wanted)[:150]}"


def alike(one: Any, other: Any) -> bool:
    """Whether two JSON values are the same but for the last digits of numbers."""
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-5, abs_tol=DIGITS)
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(alike(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(alike, one, other))
    return bool(one == other)


def _page(site: _Site, fill: Callable[[int], Path]) -> Outcome:
    """A browser measures a point while the disk is full, and once more with room; the page is the same all the time."""
    tally = Tally(
        "the page of an app whose disk is full",
        promise="P13",
        holds="texts come, the page says in one line why a point cannot be measured; with room again it is measured",
    )
    with chromium() as browser, open_page(browser, f"{site.app.url}/?run={BASE}&at=i1.slerp.e0.61.sft&n=8") as page:
        page.wait_for_function(DONE)
        button = page.get_by_role("button", name="Measure", exact=True)
        filler = fill(0)
        try:
            button.click()
            slot = page.locator(".st-key-measuring")
            expect(slot).to_contain_text(str(site.home))
            words = slot.inner_text()
            tally.check("fault of" not in words and "Traceback" not in words, f"it says {words!r}")
            page.get_by_role("button", name="Regenerate").click()
            page.wait_for_url(re.compile("seed=1"))
            page.wait_for_function(DONE)
            tally.check(not page.get_by_test_id("stException").count(), "there is a trace on the page")
        finally:
            filler.unlink()
        button.click()
        expect(page.locator(".badge")).to_have_text("measured")
        tally.check(True, "")
    return tally.outcome()
