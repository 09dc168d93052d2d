"""Attack: files that an engine has opened or loaded are deleted, cut, replaced, or something is in the way."""

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from hostile.file_cases import PLACE, Case, Site, content, done, refusal
from hostile.outcomes import Outcome, Tally
from hostile.running_damage import DAMAGES, REPLACES
from hostile.running_engine import (
    REWARD,
    Models,
    connect,
    engine_here,
    finished,
    leftovers,
    make_models,
    move,
    said_by,
)
from hostile.running_failures import one_thread
from hostile.running_programs import Programs
from tests.service.selections import make_run
from warp_core.errors import EngineUnreachableError, WarpError
from warp_core.service.client import HttpEngine
from warp_core.service.protocol import (
    ExportRequest,
    GeometryRequest,
    JobState,
    MeasureRequest,
    Place,
    Selection,
)
from warp_core.weights import compute_geometry, make_recipe, merge_to_folder, open_checkpoint

WEIGHTS = {
    "full": ("init/model.safetensors", "policy0/model.safetensors"),
    "lora": ("init/model.safetensors", "adapter0/adapter_model.safetensors"),
}
OTHERS = {
    "full": ("init/config.json", "policy0/config.json", "init/tokenizer.json"),
    "lora": ("adapter0/adapter_config.json", "init/config.json"),
}
# (kind, file, damage, while a job runs)
QUICK = (
    ("full", "init/model.safetensors", "truncated", True),
    ("full", "policy0/model.safetensors", "replaced", False),
    ("lora", "adapter0/adapter_model.safetensors", "overwritten", False),
    ("lora", "init/model.safetensors", "deleted", False),
    ("full", "init/config.json", "a folder in its place", False),
    ("full", "policy0/model.safetensors", "unreadable", False),
)


def attack(place: Path, *, quick: bool) -> Iterator[Outcome]:
    """Damage files behind an engine's back, and compare what it says then with an engine that has its files."""
    programs = Programs(place / "programs", obey_modes=True)
    with one_thread(), engine_here() as url, connect(url) as reference, programs:
        site = Site(place=place, programs=programs, reference=reference)
        cases = list(QUICK) if quick else _all_cases()
        yield from _models(site, cases, "files of models")
        yield from _caches(site, ("garbage", "a folder in its place") if quick else tuple(DAMAGES))
        if not quick:
            yield from _runs(site)
            yield from _exports(site)
        yield from _merges(place / "merges", ("replaced", "truncated") if quick else tuple(DAMAGES))


def _all_cases() -> list[tuple[str, str, str, bool]]:
    found = []
    for kind in ("full", "lora"):
        found += [(kind, file, damage, busy) for file in WEIGHTS[kind] for damage in DAMAGES for busy in (False, True)]
        found += [(kind, file, damage, False) for file in OTHERS[kind] for damage in DAMAGES if damage not in REPLACES]
    return [*found, *(("lora", "init/config.json", damage, False) for damage in REPLACES)]


def _models(site: Site, cases: Sequence[tuple[str, str, str, bool]], title: str) -> Iterator[Outcome]:
    idle = Tally(
        f"{title}, loaded before",
        promise="P5, P13",
        holds="what is asked afterwards is of the content that is there now, or of the old in whole, or one line that"
        " names the file; the engine and other models go on",
    )
    busy = Tally(
        f"{title}, while a job uses them",
        promise="P5, P13",
        holds="the job's numbers are those of the old content in whole, or one line names the file; the engine goes on",
    )
    for kind, file, damage, is_busy in cases:
        tally = busy if is_busy else idle
        problems: list[str] = []
        try:
            case = Case(site, kind, file, damage)
            problems += case.while_busy() if is_busy else case.while_idle()
        except EngineUnreachableError as error:
            problems.append(f"no answer: {error}")
        except (TimeoutError, RuntimeError, OSError) as error:
            problems.append(f"{type(error).__name__}: {error}")
        problems += site.health()
        tally.check(not problems, f"{kind}, {file} {damage}: {'; '.join(problems)}")
    for tally in (idle, busy):
        if tally.tried:
            yield tally.outcome(f"engine started {site.starts} times")


def _caches(site: Site, damages: Sequence[str]) -> Iterator[Outcome]:
    """The store of points and the cache of angles, which the engine opens for every question."""
    tally = Tally(
        "results store and cache of angles",
        promise="P13",
        holds="right numbers, or one line that names the file; the engine goes on",
    )
    for number, damage in enumerate(damages):
        models = make_models(site.folder(), seed=1)
        for what in ("results", "geometry"):
            problems: list[str] = []
            try:
                problems += _damaged_cache(site, models, what, damage, number)
            except (WarpError, TimeoutError, RuntimeError, OSError) as error:
                problems.append(f"{type(error).__name__}: {error}")
            problems += site.health()
            tally.check(not problems, f"{what} {damage}: {'; '.join(problems)}")
    yield tally.outcome()


def _damaged_cache(site: Site, models: Models, what: str, damage: str, number: int) -> list[str]:
    engine, reference = site.engine, site.reference
    if what == "geometry":
        request: Any = GeometryRequest(session="cache", selection=models.full, granularity="model")
        expected = done(reference, request).result
        done(engine, request)
        files = sorted((site.cache / "geometry").glob("*.json"))
    else:
        place = Place(eta=round(1.1 + number / 100, 3))
        request = MeasureRequest(session="cache", selection=models.full, places=(place,), num_prompts=2, reward=REWARD)
        expected = done(reference, request).result
        done(engine, request.model_copy(update={"places": (Place(eta=0.05),)}))
        files = [site.cache / "results.sqlite"]
    for file in files:
        DAMAGES[damage](file, b"SQLite format 3\0" + bytes(200))
    problems = []
    for wanted in (request, request):
        job = finished(engine, engine.submit(wanted))
        if job.state is JobState.FAILED:
            problems += refusal(job.error, [file.name for file in files])
        elif job.result != expected:
            problems.append(f"{job.state}, another answer")
    try:
        engine.front(models.full)
    except WarpError as error:
        problems += refusal(str(error), [file.name for file in files])
    for file in files:
        if file.is_dir() and not file.is_symlink():
            shutil.rmtree(file)
        else:
            file.unlink(missing_ok=True)
    for rest in files[0].parent.glob("results.sqlite-*"):
        rest.unlink()
    job = finished(engine, engine.submit(request))
    if job.state is not JobState.DONE or job.result != expected:
        problems.append(f"after it was mended: {job.state}, {job.error}")
    return problems


RUN_FILES = (
    "run.json",
    "config.toml",
    "prompts-evaluation.jsonl",
    "results.sqlite",
    "votes.sqlite",
    "iteration-1/geometry.json",
    "iteration-1/policy-1/metrics.jsonl",
    "iteration-1/policy-1/checkpoint/adapter_model.safetensors",
    "iteration-2/init/adapter_config.json",
)


def _runs(site: Site) -> Iterator[Outcome]:
    """Every file of a run that the engine reads, and every question about the run."""
    tally = Tally(
        "files of a run",
        promise="P13",
        holds="every question has the answer from before, in whole or in part, or one line that names the run or the"
        " file; the engine goes on",
    )
    made = make_run(site.place / "run")
    for file in RUN_FILES:
        for damage in DAMAGES:
            name = f"run-{site.count}"
            site.folder()
            folder = site.workspace / name
            shutil.copytree(made.run, folder)
            problems: list[str] = []
            try:
                problems += _damaged_run(site, name, folder, file, damage)
            except EngineUnreachableError as error:
                problems.append(f"no answer: {error}")
            except (TimeoutError, RuntimeError, OSError) as error:
                problems.append(f"{type(error).__name__}: {error}")
            problems += site.health()
            shutil.rmtree(folder, ignore_errors=True)
            tally.check(not problems, f"{file} {damage}: {'; '.join(problems)}")
    yield tally.outcome()


def _questions(engine: HttpEngine, name: str) -> dict[str, Callable[[], Any]]:
    run = Selection(run=name)
    return {
        "run": lambda: engine.run(name).config,
        "curves": lambda: engine.curves(name),
        "front": lambda: {point.key: point.metrics for point in engine.front(run).points},
        "geometry": lambda: engine.geometry(run, 1),
        "prediction": lambda: engine.prediction(run, 1),
        "prompts": lambda: engine.prompts(run),
        "votes": lambda: engine.votes(run),
        "preview": lambda: said_by(done(engine, move(run, PLACE, session="run"))),
        "measurement": lambda: (
            done(engine, MeasureRequest(session="run", selection=run, places=(Place(eta=0.5),))).result
        ),
    }


def _damaged_run(site: Site, name: str, folder: Path, file: str, damage: str) -> list[str]:
    engine, selection = site.engine, Selection(run=name)
    done(engine, GeometryRequest(session="run", selection=selection))
    before = {what: ask() for what, ask in _questions(engine, name).items()}
    target = folder / file
    if not target.exists():
        target.touch()
    DAMAGES[damage](target, b"[]\n")
    names = (name, target.name)
    problems = []
    try:
        engine.runs()
    except WarpError as error:
        problems.append(f"the list of runs: {error}")
    for what, ask in _questions(engine, name).items():
        try:
            answer = ask()
        except EngineUnreachableError:
            raise
        except (WarpError, RuntimeError) as error:
            problems += [f"{what}: {one}" for one in refusal(str(error), names)]
            continue
        if not _is_part(answer, before[what]):
            problems.append(f"{what}: another answer")
    return problems


def _is_part(answer: Any, before: Any) -> bool:
    """Whether an answer is the one from before, or what can be known without the file."""
    if answer == before or answer is None:
        return True
    if isinstance(answer, dict) and isinstance(before, dict):
        return all(key in before and value == before[key] for key, value in answer.items())
    if not (isinstance(answer, list | tuple) and len(answer) < len(before)):
        return False
    rest = iter(before)
    return all(any(one == other for other in rest) for one in answer)


def _exports(site: Site) -> Iterator[Outcome]:
    """The folder of an export is deleted while it is written."""
    tally = Tally(
        "the folder of an export, while it is written",
        promise="P1, P13",
        holds="whole, or one line that names it and nothing there; the next export of that name works",
    )
    for number in range(10):
        name = f"vanishing-{number}"
        root = site.workspace / "exports"
        problems: list[str] = []
        request = ExportRequest(session="x", selection=site.well.full, place=Place(eta=0.3), name=name)
        job = site.engine.submit(request)
        until = time.monotonic() + 5
        while time.monotonic() < until and not (found := list(root.glob(f".{name}.tmp-*"))):
            time.sleep(0.0005)
        if not found:
            problems.append("its folder was never seen: nothing was deleted")
        for one in found:
            shutil.rmtree(one, ignore_errors=True)
        job = finished(site.engine, job)
        if job.state is JobState.FAILED:
            problems += refusal(job.error, [name])
        elif not (job.result or {}).get("verified"):
            problems.append(f"{job.state}, not verified")
        if job.state is JobState.FAILED and (root / name).exists():
            problems.append("it is there all the same")
        again = finished(site.engine, site.engine.submit(request.model_copy(update={"name": f"{name}-again"})))
        if again.state is not JobState.DONE:
            problems.append(f"the next one: {again.error}")
        if rest := leftovers(root):
            problems.append(f"left: {rest}")
        tally.check(not problems, f"try {number}: {'; '.join(problems)}")
    yield tally.outcome()


def _merges(place: Path, damages: Sequence[str]) -> Iterator[Outcome]:
    """A policy's file changes while a merge to disk reads it."""
    tally = Tally(
        "a policy's file, while a merge to disk reads it",
        promise="P1, P5, P13",
        holds="the merge of the old content in whole, or one line that names the file and nothing there; never a mix",
    )
    for damage in damages:
        for at in (1, 5, 12) if len(damages) > 2 else (5,):
            folder = place / f"{damage}-{at}".replace(" ", "-").replace(",", "")
            problem = _damaged_merge(folder, damage, at)
            tally.check(not problem, f"{damage} after {at} tensors: {problem}")
    yield tally.outcome()


def _damaged_merge(folder: Path, damage: str, at: int) -> str:
    models, other = make_models(folder / "models", seed=1), make_models(folder / "other", seed=2)
    init, *policies = (open_checkpoint(path) for path in (models.init, *models.policies))
    recipe = make_recipe(init, policies, eta=0.4)
    geometry = compute_geometry(init, policies)
    about: dict[str, Any] = {"init": init, "policies": policies, "geometry": geometry}
    merge_to_folder(recipe, out=folder / "expected", **about)
    calls = [0]

    def progress(done: int, total: int) -> None:
        calls[0] += 1
        if calls[0] == at:
            DAMAGES[damage](
                models.policies[0] / "model.safetensors", (other.policies[0] / "model.safetensors").read_bytes()
            )

    try:
        merge_to_folder(recipe, out=folder / "out", progress=progress, **about)
    except WarpError as error:
        found = refusal(str(error), ["model.safetensors", str(models.policies[0])])
        found += ["the output is there all the same"] if (folder / "out").exists() else []
        found += [f"left: {rest}"] if (rest := leftovers(folder)) else []
        return "; ".join(found)
    if content(folder / "out") != content(folder / "expected"):
        return "done, and not the merge of the old content"
    return ""
