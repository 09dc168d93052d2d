"""Attack: kill -9 of the engine, the web app, the trainer and what looks after them, in the middle of everything."""

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

import httpx
import psutil
from safetensors.torch import load_file

from hostile.outcomes import Outcome, Tally
from hostile.running_engine import REWARD, Models, Said, connect, finished, leftovers, make_models, move, said_by
from hostile.running_programs import Programs, interruptible, wait_for
from tests.training.runs import tiny_config
from warp_core.commands.supervise import Program as Supervised
from warp_core.commands.supervise import Supervisor
from warp_core.errors import EngineUnreachableError, UnknownJobError, UserError
from warp_core.service.client import HttpEngine
from warp_core.service.documents import RunState, RunSummary
from warp_core.service.listening import listen
from warp_core.service.protocol import (
    ExportRequest,
    GeometryRequest,
    JobState,
    MeasureRequest,
    Place,
    TrainRequest,
    Vote,
)
from warp_core.training.config import config_to_mapping
from warp_core.weights import open_checkpoint
from warp_core.workspace.paths import workspace_root
from warp_core.workspace.results import shared_results_file
from warp_core.workspace.store import ResultsStore

SEED = 20260105
CLEAN_S = 10.0
BACK_S = 90.0
T = TypeVar("T")
GONE = "no engine answers at"
ACTIVITIES = ("sampling", "front", "export", "training")
KILLS = {
    "the engine": [("serve", activity) for activity in ACTIVITIES],
    "the web app": [("app", activity) for activity in ACTIVITIES],
    "the trainer": [("train", "training"), ("serve+train", "training")],
    "the engine and its successor": [("serve twice", "sampling")],
}
STEPS = 60
PLACES, EXPORTS, TOKENS = 60, 4, 200
TRIES = 4  # for a kill to come in the middle
SOON_S = 0.05  # in which no half of a sampling can be done


@dataclass(frozen=True, kw_only=True)
class Activity:
    """Something long that was begun.

    Attributes:
        kind: one of ACTIVITIES.
        name: of its run, or its session.
        jobs: ids, in the order in which they are done.
        before: points that there were beforehand.
    """

    kind: str
    name: str
    jobs: tuple[str, ...] = ()
    before: int = 0


@dataclass
class Site:
    """A running engine with whatever looks after it."""

    engine: HttpEngine
    models: Models
    programs: Programs
    said: Callable[[], str]
    app_url: str | None = None
    supervisor: int = -1
    acknowledged: set[str] = field(default_factory=set)
    points: set[str] = field(default_factory=set)
    runs: list[str] = field(default_factory=list)
    count: int = 0

    def process(self, word: str) -> psutil.Process:
        """The process whose command line has a word: `serve`, `app` (the web app) or `train`."""
        for one in self.programs.alive(but=[self.supervisor]):
            with suppress(psutil.Error):
                if word in one.cmdline():
                    return one
        raise LookupError(f"no process of {word!r} is running")

    def name(self, what: str) -> str:
        """A name that nothing has yet."""
        self.count += 1
        return f"{what}-{self.count}"


def attack(place: Path, *, quick: bool) -> Iterator[Outcome]:
    """Kill one process after the other, each in the middle of something, and look at what the others say and hold."""
    interruptible()
    models = make_models(place / "models")
    with Programs(place / "programs") as programs:
        if quick:
            with _engine_alone(programs, models) as site:
                expected = _baseline(site)
                yield from _killed(site, "the engine", [("serve", one) for one in ("sampling", "front")], expected, {})
        else:
            with _whole_app(programs, models, place) as site:
                expected = _baseline(site)
                reference = _reference_run(place, site)
                for title, kills in KILLS.items():
                    yield from _killed(site, title, kills, expected, reference)
                tally = _tally("what looks after both")
                _kill_the_supervisor(tally, site)
                yield tally.outcome()


def _tally(title: str) -> Tally:
    return Tally(
        f"kill -9 of {title}",
        promise="P3, P13",
        holds="the activity is under way at the kill; the others say so and recover; nothing acknowledged is lost;"
        " within 10 s nothing dead is in the way",
    )


def _killed(
    site: Site, title: str, kills: Sequence[tuple[str, str]], expected: Said, reference: dict[str, str]
) -> Iterator[Outcome]:
    tally = _tally(title)
    late = sum(_kill(tally, site, victim, activity, expected, reference) for victim, activity in kills)
    activities = ", ".join(activity for _, activity in kills)
    yield tally.outcome(f"{activities}; {late} more were over before the kill")


@contextmanager
def _engine_alone(programs: Programs, models: Models) -> Iterator[Site]:
    """An engine that a supervisor of this process looks after."""
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
    lines: list[str] = []
    engine = connect(f"http://127.0.0.1:{port}", "a-token")
    program = Supervised(
        name="the engine",
        command=["warp_core", "serve", "--port", str(port)],
        environment=programs.environment | {"WARP_ENGINE_TOKEN": "a-token"},
        answers=engine.is_up,
    )
    over = threading.Event()

    def watch(supervisor: Supervisor) -> None:
        while not over.wait(0.05):
            supervisor.look_after()

    with Supervisor([program], say=lines.append) as supervisor:
        supervisor.wait_until_ready()
        thread = threading.Thread(target=watch, args=(supervisor,), name="supervisor")
        thread.start()
        try:
            yield Site(engine=engine, models=models, programs=programs, said=lambda: "\n".join(lines))
        finally:
            over.set()
            thread.join()
            engine.close()


@contextmanager
def _whole_app(programs: Programs, models: Models, place: Path) -> Iterator[Site]:
    """`warp-core app --headless`, as a person starts it."""
    program = programs.start("warp_core", "app", "--headless", "--json")
    told = program.announced()
    token = next(
        one.environ()["WARP_ENGINE_TOKEN"] for one in programs.alive(but=[told["pid"]]) if "serve" in one.cmdline()
    )
    with connect(told["engine"], token) as engine:
        yield Site(
            engine=engine,
            models=models,
            programs=programs,
            said=lambda: "\n".join(program.said),
            app_url=told["url"],
            supervisor=told["pid"],
        )


def _baseline(site: Site) -> Said:
    """What the preview says that is asked for again after every kill."""
    return wait_for(lambda: _said(site), within_s=BACK_S)


def _said(site: Site) -> Said:
    request = move(site.models.full, Place(eta=0.4), session="after", seed=3)
    job = finished(site.engine, site.engine.submit(request), within_s=BACK_S)
    if job.state is not JobState.DONE:
        raise RuntimeError(f"a preview: {job.state}, {job.error}")
    return said_by(job)


def _training(site: Site, name: str) -> TrainRequest:
    changes: dict[str, Any] = {
        "reward": {"terms": ["length"]},
        "training": {"steps": STEPS, "evaluate_every": 0},
        "warp": {"policies": 1},
    }
    folder = site.models.init.parent
    return TrainRequest(name=name, config=config_to_mapping(tiny_config(folder, site.models.init, **changes)))


def _trained(name: str) -> dict[str, str]:
    """Content of every tensor file of a run."""
    folder = workspace_root() / name
    return {
        str(file.relative_to(folder)): sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*.safetensors"))
    }


def _run_of(site: Site, name: str) -> RunSummary:
    """A run as the list has it, where it stands before it has a folder, too."""
    return next(run for run in site.engine.runs() if run.name == name)


def _reference_run(place: Path, site: Site) -> dict[str, str]:
    """Train once undisturbed."""
    site.engine.train(_training(site, "reference"))
    wait_for(lambda: _run_of(site, "reference").state is RunState.FINISHED, every_s=0.2)
    return _trained("reference")


def _begin(site: Site, kind: str) -> Activity:
    """Begin something long, and return when it is in the middle."""
    engine, name = site.engine, site.name(kind)
    draw = random.Random(SEED + site.count)
    match kind:
        case "sampling":
            request = move(site.models.full, Place(eta=0.7), session=name)
            job = engine.submit(request.model_copy(update={"max_new_tokens": TOKENS, "num_completions": 8}))
            wait_for(lambda: any(pane.completions for pane in engine.job(job.id).panes), every_s=0.01)
            return Activity(kind=kind, name=name, jobs=(job.id,))
        case "front":
            places = tuple(Place(eta=round(draw.uniform(0.05, 1.2), 4)) for _ in range(PLACES))
            wanted = MeasureRequest(
                session=name, selection=site.models.lora, places=places, num_prompts=32, reward=REWARD
            )
            before = _stored()
            job = engine.submit(wanted)
            wait_for(lambda: _stored() > before, every_s=0.02)
            return Activity(kind=kind, name=name, jobs=(job.id,), before=before)
        case "export":
            # As many as it takes for one to be at work.
            jobs = []
            for number in range(EXPORTS):
                place = Place(eta=0.3 + number / 10)
                export = ExportRequest(session=name, selection=site.models.full, place=place, name=f"{name}-{number}")
                jobs.append(engine.submit(export).id)
            wait_for(lambda: engine.job(jobs[0]).progress, every_s=0.005)
            return Activity(kind=kind, name=name, jobs=tuple(jobs))
        case "training":
            engine.train(_training(site, name))
            site.runs.append(name)
            wait_for(lambda: _steps(name) > 3, every_s=0.02)
            return Activity(kind=kind, name=name)
    raise LookupError(kind)


def _steps(name: str) -> int:
    """Steps that a training has written down."""
    metrics = workspace_root() / name / "iteration-1/policy-1/metrics.jsonl"
    return metrics.read_text(encoding="utf-8").count("\n") if metrics.exists() else 0


def _not_begun(site: Site, activity: Activity) -> str:
    """Look at an activity right before a kill: why it is not under way; "" where it is."""
    if activity.kind == "training":
        return "" if 0 < _steps(activity.name) < STEPS else f"{_steps(activity.name)} of {STEPS} steps"
    job = site.engine.job(activity.jobs[-1])
    if job.state.is_final:
        return f"its last job is {job.state}"
    if activity.kind == "sampling":
        drawn = min((one.num_tokens for pane in job.panes for one in pane.completions), default=0)
        return "" if 0 < drawn < TOKENS // 2 else f"{drawn} of {TOKENS} tokens"
    return ""


def _was_over(site: Site, activity: Activity, took_s: float, *, engine_lives: bool) -> str:
    """Look right after a kill: why the activity may have been over by then; "" where it was not.

    What is looked at only grows: where it is not whole now, it was not at the kill. Of a sampling nothing is on the
    disk: there the kill must have followed the look at once.
    """
    if engine_lives and activity.jobs:
        state = site.engine.job(activity.jobs[-1]).state
        return f"its last job is {state}" if state.is_final else ""
    match activity.kind:
        case "training":
            return "" if _steps(activity.name) < STEPS else "its last step was done"
        case "front":
            found = _stored() - activity.before
            return "" if 0 < found < PLACES else f"{found} of {PLACES} points were there"
        case "export":
            folders = [workspace_root() / "exports" / f"{activity.name}-{number}" for number in range(EXPORTS)]
            return "" if not all(one.exists() for one in folders) else "all exports were there"
    return "" if took_s < SOON_S else f"the kill came {took_s:.2f} s after the look"


def _stored() -> int:
    """Points of models that belong to no run, as they are on the disk."""
    if not shared_results_file().exists():
        return 0
    with ResultsStore(shared_results_file(), read_only=True) as store:
        return len(store.keys())


def _acknowledge(site: Site, name: str) -> None:
    """Vote, and note everything that the engine has shown as kept."""
    vote = Vote(
        session="voter",
        prompt=name,
        first=Place(eta=0.0),
        second=Place(eta=1.0),
        first_text="a",
        second_text="b",
        score=1,
    )
    site.acknowledged.add(site.engine.vote(site.models.full, vote).id)
    site.points |= {point.key for point in site.engine.front(site.models.lora).points}


def _kill(tally: Tally, site: Site, victim: str, kind: str, expected: Said, reference: dict[str, str]) -> int:
    """Kill a process in the middle of an activity, and count it where that was under way: the tries that were not."""
    whys: list[str] = []
    for _ in range(TRIES):
        problems, why = _killed_once(site, victim, kind, expected, reference)
        if problems or not why:
            tally.check(not problems, f"{victim} during {kind}: {'; '.join(problems)}")
            return len(whys)
        whys.append(why)
    tally.check(False, f"{victim} during {kind}: never under way when it was killed: {whys}")
    return len(whys)


def _killed_once(
    site: Site, victim: str, kind: str, expected: Said, reference: dict[str, str]
) -> tuple[list[str], str]:
    """Kill once: what is wrong afterwards, and why the activity was not under way at the kill, "" where it was."""
    problems: list[str] = []
    why = ""
    try:
        activity = _begin(site, kind)
        _acknowledge(site, activity.name)
        victims = [site.process("train")] if "train" in victim else []
        if victim != "train":
            victims.append(_web_app(site) if victim == "app" else site.process("serve"))
        heard, engine, looked = len(site.said()), site.process("serve").pid, time.monotonic()
        why = _not_begun(site, activity)
        if why:
            return [], why
        for one in victims:
            one.kill()
        took_s, engine_lives = time.monotonic() - looked, victim in ("app", "train")
        why = _was_over(site, activity, took_s, engine_lives=engine_lives)
        if victim == "app":
            problems += _web_comes_back(site, heard, engine)
        elif victim != "train":
            problems += _engine_comes_back(site, victims[-1], heard, twice=victim.endswith("twice"))
        problems += _lost(site)
        if kind == "training":
            problems += _training_goes_on(site, activity.name, reference, killed="train" in victim)
        problems += _exports(site)
        if _said(site) != expected:
            problems.append("a preview says something else than before")
        problems += _orphans(site)
    except (TimeoutError, LookupError, RuntimeError, psutil.Error, EngineUnreachableError, UserError) as error:
        problems.append(f"{type(error).__name__}: {error}")
    return problems, why


def _engine_comes_back(site: Site, first: psutil.Process, heard: int, *, twice: bool) -> list[str]:
    problems = []
    try:
        site.engine.status()
        problems.append("a dead engine answers")
    except EngineUnreachableError as error:
        if GONE not in str(error):
            problems.append(f"the client says {error}")
    if twice:
        second = wait_for(lambda: _or_none(lambda: site.process("serve")), within_s=BACK_S)
        second.kill()
    wait_for(lambda: _or_none(site.engine.status), within_s=BACK_S)
    wait_for(lambda: "the engine ended (killed by SIGKILL): it is started again in" in site.said()[heard:], within_s=5)
    if site.process("serve").pid == first.pid:
        problems.append("the engine is the one that was killed")
    try:
        site.engine.job("0" * 16)
        problems.append("the new engine knows a job of the old one")
    except UnknownJobError:
        pass
    return problems


def _or_none(ask: Callable[[], T]) -> T | None:
    with suppress(EngineUnreachableError, LookupError):
        return ask()
    return None


def _web_app(site: Site) -> psutil.Process:
    """The process that serves the pages, below the one that looks after it."""
    return next(one for one in site.programs.alive() if "app" in one.cmdline() and "--engine" in one.cmdline())


def _web_comes_back(site: Site, heard: int, engine: int) -> list[str]:
    """The web app ends: its address is away for a moment, the engine and its jobs are not."""
    wait_for(lambda: "the web app ended (killed by SIGKILL): it is started again in" in site.said()[heard:], within_s=5)
    wait_for(lambda: _page_answers(site), within_s=BACK_S)
    return [] if site.process("serve").pid == engine else ["the engine was started again with the web app"]


def _page_answers(site: Site) -> bool:
    try:
        return httpx.get(f"{site.app_url}/_stcore/health", trust_env=False, timeout=2.0).status_code == 200
    except httpx.HTTPError:
        return False


def _lost(site: Site) -> list[str]:
    # Models of no run have a front once a job has opened them.
    opens = GeometryRequest(session="open", selection=site.models.lora)
    finished(site.engine, site.engine.submit(opens), within_s=BACK_S)
    votes = {vote.id for vote in site.engine.votes(site.models.full)}
    points = {point.key for point in site.engine.front(site.models.lora).points}
    found = []
    if not site.acknowledged <= votes:
        found.append(f"{len(site.acknowledged - votes)} votes are lost")
    if not site.points <= points:
        found.append(f"{len(site.points - points)} points are lost")
    return found


def _training_goes_on(site: Site, name: str, reference: dict[str, str], *, killed: bool) -> list[str]:
    """It runs on where its own process was not killed; else it is shown as stopped, and is resumed."""
    summary = _run_of(site, name)
    if killed:
        wait_for(lambda: _run_of(site, name).state is not RunState.RUNNING, within_s=5)
        summary = _run_of(site, name)
        if summary.state is not RunState.STOPPED or "killed" not in (summary.error or ""):
            return [f"a killed training is shown as {summary.state}: {summary.error}"]
        site.engine.train(TrainRequest(name=name))
    elif summary.state not in (RunState.RUNNING, RunState.FINISHED):
        return [f"the training is {summary.state}: {summary.error}"]
    wait_for(lambda: _run_of(site, name).state is RunState.FINISHED, every_s=0.2)
    return [] if _trained(name) == reference else ["the weights are others than without a kill"]


def _not_whole(folder: Path) -> str:
    try:
        found = open_checkpoint(folder).tensors
        return "" if found.keys() == load_file(folder / "model.safetensors").keys() else "other tensors"
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def _exports(site: Site) -> list[str]:
    """Whatever has a name is whole, and the next export works and clears up."""
    found = []
    root = workspace_root() / "exports"
    for folder in root.iterdir() if root.is_dir() else ():
        if not folder.name.startswith(".") and (problem := _not_whole(folder)):
            found.append(f"exports/{folder.name} is not whole: {problem}")
    for one in {part.name.split(".tmp-")[0][1:] for part in root.glob(".*.tmp-*")} if root.is_dir() else ():
        again = ExportRequest(session="again", selection=site.models.full, place=Place(eta=0.3), name=one)
        job = finished(site.engine, site.engine.submit(again))
        if job.state is not JobState.DONE or not (job.result or {}).get("verified"):
            found.append(f"export {one} again: {job.state}, {job.error}")
    if rest := leftovers(root):
        found.append(f"left of exports: {rest}")
    return found


def _orphans(site: Site) -> list[str]:
    """Nothing runs but what should: the supervisor, the engine, the web app; no zombies below them."""

    def strangers() -> list[str]:
        found = []
        for one in site.programs.alive(but=[site.supervisor]):
            with suppress(psutil.Error):
                line = one.cmdline()
                if "serve" not in line and "--engine" not in line:
                    found.append(" ".join(line)[-100:])
        return found

    until = time.monotonic() + CLEAN_S
    while (rest := strangers()) and time.monotonic() < until:
        time.sleep(0.2)
    servers = [one for one in site.programs.alive(but=[site.supervisor]) if "serve" in one.cmdline()]
    zombies = [
        child.pid
        for parent in (site.supervisor, *(one.pid for one in servers))
        if parent > 0
        for child in psutil.Process(parent).children(recursive=True)
        if child.status() == psutil.STATUS_ZOMBIE
    ]
    found = [f"still running: {rest}"] if rest else []
    if len(servers) != 1:
        found.append(f"{len(servers)} engines")
    return found + ([f"zombies: {zombies}"] if zombies else [])


def _kill_the_supervisor(tally: Tally, site: Site) -> None:
    """What looks after both is killed: both end, and the next start finds everything and no lock."""
    problems: list[str] = []
    try:
        activity = _begin(site, "front")
        _acknowledge(site, activity.name)
        psutil.Process(site.supervisor).kill()
        wait_for(lambda: not [one for one in site.programs.alive() if one.pid != site.supervisor], within_s=CLEAN_S)
        if why := _was_over(site, activity, 0.0, engine_lives=False):
            problems.append(f"never under way when it was killed: {why}")
    except (TimeoutError, LookupError, EngineUnreachableError) as error:
        problems.append(f"{type(error).__name__}: {error}; {len(site.programs.alive())} processes are left")
    program = site.programs.start("warp_core", "serve", "--port", 0, WARP_ENGINE_TOKEN="a-token")
    try:
        with connect(program.first_line(), "a-token") as engine:
            wait_for(lambda: _or_none(engine.status), within_s=BACK_S)
            site.engine = engine
            problems += _lost(site)
            wanted = MeasureRequest(
                session="next", selection=site.models.lora, places=(Place(eta=1.37),), num_prompts=2, reward=REWARD
            )
            job = finished(engine, engine.submit(wanted))
            if job.state is not JobState.DONE:
                problems.append(f"the next measurement: {job.state}, {job.error}")
    except (TimeoutError, EngineUnreachableError) as error:
        problems.append(f"{type(error).__name__}: {error}")
    tally.check(not problems, f"supervisor during front: {'; '.join(problems)}")
