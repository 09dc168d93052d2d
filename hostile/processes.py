"""Attack: kill -9 of the engine, the web app, the trainer and what looks after them, in the middle of everything."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import httpx
import psutil
from safetensors.torch import load_file

from hostile.outcomes import Outcome, Tally
from hostile.process_activities import (
    ACTIVITIES,
    Site,
    acknowledge,
    begin,
    not_begun,
    run_of,
    trained,
    training,
    was_over,
)
from hostile.running_engine import REWARD, Models, Said, connect, finished, leftovers, make_models, move, said_by
from hostile.running_programs import Programs, interruptible, wait_for
from warp_core.commands.supervise import Program as Supervised
from warp_core.commands.supervise import Supervisor
from warp_core.errors import EngineUnreachableError, UnknownJobError, UserError
from warp_core.service.documents import RunState
from warp_core.service.listening import listen
from warp_core.service.protocol import (
    ExportRequest,
    GeometryRequest,
    JobState,
    MeasureRequest,
    Place,
    TrainRequest,
)
from warp_core.weights import open_checkpoint
from warp_core.workspace.paths import workspace_root

CLEAN_S = 10.0
BACK_S = 90.0
FIRST_S = 600.0  # the app has the bundled model unpacked before
T = TypeVar("T")
GONE = "no engine answers at"
KILLS = {
    "the engine": [("serve", activity) for activity in ACTIVITIES],
    "the web app": [("app", activity) for activity in ACTIVITIES],
    "the trainer": [("train", "training"), ("serve+train", "training")],
    "the engine and its successor": [("serve twice", "sampling")],
}
TRIES = 4  # for a kill to come in the middle


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
    return _said(site, within_s=FIRST_S)


def _said(site: Site, *, within_s: float = BACK_S) -> Said:
    request = move(site.models.full, Place(eta=0.4), session="after", seed=3)
    job = finished(site.engine, site.engine.submit(request), within_s=within_s)
    if job.state is not JobState.DONE:
        raise RuntimeError(f"a preview: {job.state}, {job.error}")
    return said_by(job)


def _reference_run(place: Path, site: Site) -> dict[str, str]:
    """Train once undisturbed."""
    site.engine.train(training(site, "reference"))
    wait_for(lambda: run_of(site, "reference").state is RunState.FINISHED, every_s=0.2)
    return trained("reference")


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
        activity = begin(site, kind)
        acknowledge(site, activity.name)
        victims = [site.process("train")] if "train" in victim else []
        if victim != "train":
            victims.append(_web_app(site) if victim == "app" else site.process("serve"))
        heard, engine, looked = len(site.said()), site.process("serve").pid, time.monotonic()
        why = not_begun(site, activity)
        if why:
            return [], why
        for one in victims:
            one.kill()
        took_s, engine_lives = time.monotonic() - looked, victim in ("app", "train")
        why = was_over(site, activity, took_s, engine_lives=engine_lives)
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
    summary = run_of(site, name)
    if killed:
        wait_for(lambda: run_of(site, name).state is not RunState.RUNNING, within_s=5)
        summary = run_of(site, name)
        if summary.state is not RunState.STOPPED or "killed" not in (summary.error or ""):
            return [f"a killed training is shown as {summary.state}: {summary.error}"]
        site.engine.train(TrainRequest(name=name))
    elif summary.state not in (RunState.RUNNING, RunState.FINISHED):
        return [f"the training is {summary.state}: {summary.error}"]
    wait_for(lambda: run_of(site, name).state is RunState.FINISHED, every_s=0.2)
    return [] if trained(name) == reference else ["the weights are others than without a kill"]


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

    servers = [one for one in site.programs.alive(but=[site.supervisor]) if "serve" in one.cmdline()]

    def dead() -> list[int]:
        found = set()
        for parent in (site.supervisor, *(one.pid for one in servers)):
            for child in psutil.Process(parent).children(recursive=True) if parent > 0 else ():
                with suppress(psutil.NoSuchProcess):
                    found |= {child.pid} if child.status() == psutil.STATUS_ZOMBIE else set()
        return sorted(found)

    until = time.monotonic() + CLEAN_S
    while ((rest := strangers()), (zombies := dead())) != ([], []) and time.monotonic() < until:
        time.sleep(0.2)
    found = [f"still running: {rest}"] if rest else []
    if len(servers) != 1:
        found.append(f"{len(servers)} engines")
    return found + ([f"zombies: {zombies}"] if zombies else [])


def _kill_the_supervisor(tally: Tally, site: Site) -> None:
    """What looks after both is killed: both end, and the next start finds everything and no lock."""
    problems: list[str] = []
    try:
        activity = begin(site, "front")
        acknowledge(site, activity.name)
        psutil.Process(site.supervisor).kill()
        wait_for(lambda: not [one for one in site.programs.alive() if one.pid != site.supervisor], within_s=CLEAN_S)
        if why := was_over(site, activity, 0.0, engine_lives=False):
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
