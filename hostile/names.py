"""Names of runs, exports, studies, models and views that try to leave the workspace or to overwrite what is there."""

import contextlib
import io
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import psutil
import torch
from pydantic import BaseModel, ValidationError

from hostile.input_names import NAMES, OURS, SOUND
from hostile.outcomes import Outcome, Tally
from hostile.running_programs import wait_for
from tests import tiny
from tests.service.served import TOKEN, served
from tests.training.runs import tiny_config
from warp_core.cli import main
from warp_core.errors import WarpError
from warp_core.service.documents import RunState
from warp_core.service.engine import LocalEngine
from warp_core.service.exports import export
from warp_core.service.library import Library
from warp_core.service.places import parse_place
from warp_core.service.protocol import (
    SFT,
    ExportRequest,
    Failure,
    MeasureRequest,
    PreviewRequest,
    Selection,
    TrainRequest,
    Vote,
)
from warp_core.studies.catalogue import chosen_studies
from warp_core.training.config import config_to_mapping
from warp_core.workspace.paths import find_run, run_path, safe_name

__all__ = ["attack"]

TRAINED_S = 180.0

Picture = dict[str, tuple[int, int, int] | None]


def attack(place: Path, *, quick: bool) -> Iterator[Outcome]:
    """See hostile/README.md."""
    before = {name: os.environ.get(name) for name in ("WARP_WORKSPACE", "WARP_CACHE", "HOME")}
    here = Path.cwd()
    scene = _Scene(place)
    os.environ |= {
        "WARP_WORKSPACE": str(scene.workspace),
        "WARP_CACHE": str(place / "cache"),
        "HOME": str(place / "home"),
    }
    try:
        os.chdir(scene.elsewhere)
        yield _helpers(scene)
        yield _requests(scene)
        yield _engine(scene, quick=quick)
        yield _commands(scene, quick=quick)
        yield _trainings(scene, quick=quick)
    finally:
        os.chdir(here)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


class _Scene:
    """A workspace with things in it, and a picture of everything around it."""

    def __init__(self, place: Path) -> None:
        self.place, self.workspace, self.elsewhere = place, place / "around" / "workspace", place / "elsewhere"
        for folder in (self.workspace / "tiny", self.workspace / "exports" / "taken", self.elsewhere, place / "home"):
            folder.mkdir(parents=True)
        for name in ("studies", "votes", ".training"):
            (self.workspace / name).mkdir()
        about = '{"format": 1, "sft": {"id": "a", "name": "a"}, "started": 1.0}'
        (self.workspace / "tiny" / "run.json").write_text(about, encoding="ascii")
        (self.workspace / "tiny" / "config.toml").write_text("", encoding="ascii")
        (self.workspace / "exports" / "taken" / "model.safetensors").write_text("mine", encoding="ascii")
        (self.workspace / "results.sqlite").write_text("mine", encoding="ascii")
        self.init = tiny.make_model("llama", place / "models" / "init")
        self.policies = tiny.make_policies(self.init, place / "models", num=1)

    def picture(self) -> Picture:
        """Every path below the place but caches: size, time of change and identity of a file, None for a folder."""
        found: Picture = {}
        for folder, folders, files in os.walk(self.place):
            at = Path(folder)
            if at == self.place:
                folders[:] = [name for name in folders if name != "cache"]
            found |= {(at / name).relative_to(self.place).as_posix(): None for name in folders}
            for name in files:
                status = (at / name).lstat()
                stamp = (status.st_size, status.st_mtime_ns, status.st_ino)
                found[(at / name).relative_to(self.place).as_posix()] = stamp
        return found

    def harm(self, before: Picture, *, allowed: tuple[str, ...] = ()) -> str:
        """What was changed, removed or made; "" where nothing was but below `allowed` folders of the workspace.

        What was made there is removed again.
        """
        after, problem = self.picture(), ""
        inside = tuple(f"around/workspace/{name}" for name in allowed)
        for name in sorted(before.keys() | after.keys()):
            if name in before and name in after and before[name] == after[name]:
                continue
            made = name not in before
            if made and any(name == one or name.startswith(f"{one}/") for one in inside):
                continue
            problem = problem or f"{'made' if made else 'changed'}: {name!r}"
        for name in allowed:
            if f"around/workspace/{name}" not in before:
                shutil.rmtree(self.workspace / name, ignore_errors=True)
        return problem


def _refusal(error: Exception) -> str:
    """What is wrong with a refusal; "" where nothing is."""
    text = str(error)
    if isinstance(error, ValidationError):  # of a request: the server answers with its own words
        return ""
    if not isinstance(error, WarpError):
        return f"{type(error).__name__}: {text[:200]}"
    return "" if text.isprintable() and len(text) < 2000 else f"not one line: {text[:200]!r}"


def _tried(action: Callable[[], object]) -> tuple[bool, str]:
    """Whether it was taken, and what is wrong with the refusal."""
    try:
        action()
    except Exception as error:
        return False, _refusal(error)
    return True, ""


def _helpers(scene: _Scene) -> Outcome:
    tally = Tally("path helpers", promise="P10", holds="refused in one line, or one component, kept as it is")
    before = scene.picture()
    for name in NAMES:
        taken, problem = _tried(lambda name=name: safe_name(name))  # type: ignore[misc]
        tally.check(not problem, f"safe_name({name!r}): {problem}")
        if taken:
            path = scene.workspace / safe_name(name)
            tally.check(safe_name(name) == name and path.parent == scene.workspace, f"{name!r} becomes {path}")
            tally.check(path.resolve().parent == scene.workspace.resolve(), f"{name!r} leads to {path.resolve()}")
        for root in (scene.workspace, scene.workspace / "exports"):
            taken, problem = _tried(lambda name=name, root=root: run_path(name, root=root))  # type: ignore[misc]
            tally.check(not problem, f"run_path({name!r}): {problem}")
            tally.check(not taken or run_path(name, root=root) == root / name, f"run_path({name!r}) is another path")
        _, problem = _tried(lambda name=name: find_run(name))  # type: ignore[misc]
        tally.check(not problem, f"find_run({name!r}): {problem}")
        for what in (parse_place, chosen_studies):
            taken, problem = _tried(lambda name=name, what=what: what(name))  # type: ignore[misc]
            tally.check(not taken and not problem, f"{what.__name__}({name[:50]!r}): {problem or 'taken'}")
        tally.check(name in SOUND or not _is_sound(name) or name in _THERE, f"{name!r} is taken for sound")
    tally.check(not scene.harm(before), scene.harm(before))
    return tally.outcome(f"{len(NAMES)} names")


_THERE = {"results.sqlite", "studies", "exports", "votes", "Exports", "tiny", "Tiny", "taken"}


def _is_sound(name: str) -> bool:
    with suppress(WarpError):
        return safe_name(name) == name
    return False


def _requests(scene: _Scene) -> Outcome:
    """Requests hold the name as it is, or are refused; what they turn into paths is tried below."""
    tally = Tally("requests", promise="P10", holds="a name arrives as it is, or the request is refused")
    selection = Selection(run="tiny")
    vote = {"prompt": "x", "first": SFT, "second": SFT, "first_text": "a", "second_text": "b", "score": 1.0}
    pane = {"place": SFT}
    makers: dict[str, Callable[[str], BaseModel]] = {
        "run": lambda name: Selection(run=name),
        "init": lambda name: Selection(init=name, policies=(name,), base=name),
        "train": lambda name: TrainRequest(name=name, config={}),
        "export": lambda name: ExportRequest(session="a", selection=selection, place=SFT, name=name),
        "session": lambda name: MeasureRequest(session=name, selection=selection, places=(SFT,)),
        "vote": lambda name: Vote(session=name, **vote),  # type: ignore[arg-type]
        "pane": lambda name: PreviewRequest(
            session="a",
            selection=selection,
            prompt="x",
            panes=({"id": name, **pane},),  # type: ignore[arg-type]
        ),
    }
    for what, make in makers.items():
        for name in NAMES:
            try:
                request = make(name)
            except ValidationError:
                tally.check(name not in SOUND or what in ("session", "vote", "pane"), f"{what} {name!r}: refused")
                continue
            except Exception as error:
                tally.check(False, f"{what} {name!r}: {type(error).__name__}: {error}")
                continue
            # A half character cannot be sent at all.
            with suppress(UnicodeEncodeError, ValueError):
                again = type(request).model_validate_json(request.model_dump_json())
                tally.check(again == request, f"{what} {name!r} arrives as {again}")
            if what == "session":
                tally.check(bool(re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name)), f"session {name!r} was taken")
    return tally.outcome()


class _Quiet:
    """A job's context that listens to nothing."""

    def say(self, message: str) -> None:
        pass

    def checkpoint(self) -> None:
        pass

    def progress(self, done: float, total: float, message: str = "") -> None:
        pass


def _engine(scene: _Scene, *, quick: bool) -> Outcome:
    tally = Tally("engine", promise="P10", holds="one line, or a folder of just that name; nothing else is touched")
    library, engine = Library(scene.workspace), LocalEngine()
    engine.runs()  # copies the bundled run
    models = Selection(init=str(scene.init), policies=(str(scene.policies[0]),))
    before = scene.picture()
    try:
        for name in NAMES:
            asked: dict[str, Callable[[], object]] = {
                "run": lambda name=name: engine.run(name),  # type: ignore[misc]
                "curves": lambda name=name: engine.curves(name),  # type: ignore[misc]
                "stop": lambda name=name: engine.stop(name),  # type: ignore[misc]
                "votes": lambda name=name: engine.votes(Selection(run=name)),  # type: ignore[misc]
                "front": lambda name=name: engine.front(Selection(run=name)),  # type: ignore[misc]
                "resume": lambda name=name: engine.train(TrainRequest(name=name)),  # type: ignore[misc]
                "study": lambda name=name: engine.study(name, name),  # type: ignore[misc]
                "job": lambda name=name: engine.cancel(name),  # type: ignore[misc]
                "model": lambda name=name: library.sources(Selection(init=name, policies=(name,)), 1),  # type: ignore[misc]
                "reward": lambda name=name: library.reward((name,)),  # type: ignore[misc]
            }
            # What is there may be looked at; that a run of that name is resumed is tried by others.
            for what, action in asked.items():
                if name == "tiny" and what == "resume":
                    continue
                taken, problem = _tried(_offline(action))
                tally.check(not problem, f"{what} {name[:50]!r}: {problem}")
                tally.check(not taken or name in _THERE or what == "votes", f"{what} {name[:50]!r}: taken")
            _check_export(tally, scene, library, models, name, before, is_wanted=not quick or name not in SOUND)
        problem = scene.harm(before)
        tally.check(not problem, problem)
    finally:
        engine.close()
    return tally.outcome(f"{len(NAMES)} names")


def _offline(action: Callable[[], object]) -> Callable[[], object]:
    """Names that look like Hub ids are looked up there: not here."""

    def asked() -> object:
        before = os.environ.get("HF_HUB_OFFLINE")
        os.environ["HF_HUB_OFFLINE"] = "1"
        try:
            return action()
        finally:
            if before is None:
                del os.environ["HF_HUB_OFFLINE"]
            else:
                os.environ["HF_HUB_OFFLINE"] = before

    return asked


def _check_export(
    tally: Tally,
    scene: _Scene,
    library: Library,
    models: Selection,
    name: str,
    before: Picture,
    *,
    is_wanted: bool,
) -> None:
    """Export a model under the name: it lies in exports/NAME and nowhere else, or one line says why not."""
    sound = _is_sound(name) and name != "taken"
    if sound and not is_wanted:
        return
    try:
        request = ExportRequest(session="a", selection=models, place=SFT, name=name, verify=False)
    except ValidationError:
        tally.check(not sound, f"export {name!r}: refused")
        return
    taken, problem = _tried(lambda: export(library, request, _Quiet()))  # type: ignore[arg-type]
    tally.check(not problem and taken == sound, f"export {name!r}: {problem or ('taken' if taken else 'refused')}")
    if taken:
        tally.check(
            (scene.workspace / "exports" / name / "model.safetensors").is_file(), f"export {name!r} is elsewhere"
        )
    harm = scene.harm(before, allowed=(f"exports/{name}",) if sound else ())
    tally.check(not harm, f"export {name!r}: {harm}")


def _commands(scene: _Scene, *, quick: bool) -> Outcome:
    """Names as arguments of commands: an exit code of 0 or 2, one line, and nothing made that was not asked for."""
    tally = Tally("commands", promise="P10", holds="exit code 2 and one line, or it was looked at; nothing is touched")
    before = scene.picture()
    # A NUL and a half character cannot be an argument; they come from Python alone.
    names = [name for name in NAMES if not quick or len(name) % 2]
    commands: dict[str, Callable[[str], list[str]]] = {
        "front": lambda name: ["front", name],
        "export": lambda name: ["export", name, "--eta", "0.5", "--out", "out"],
        "study": lambda name: ["study", name, "--plan", "--scale", "smoke"],
        "app": lambda name: ["app", name, "--engine", "http://127.0.0.1:9", "--headless"],
        "check": lambda name: ["check", name],
        "train": lambda name: ["train", name, "--out", "run"],
        "evaluate": lambda name: ["evaluate", "--policy", name, "--anchor", name],
        "prompts": lambda name: [
            "evaluate",
            "--policy",
            str(scene.init),
            "--anchor",
            str(scene.init),
            "--prompts",
            name,
        ],
    }
    slowest = 0.0
    for what, arguments in commands.items():
        for name in names:
            began = time.monotonic()
            code, said = _command(arguments(name))
            slowest = max(slowest, time.monotonic() - began)
            lines = [line for line in said.splitlines() if line.startswith("warp-core")]
            known = what == "check" and code == 2 and not said
            problem = f"{what} {name[:60]!r}: exit code {code}: {said[-200:]!r}"
            tally.check(code in (0, 2) and "Traceback" not in said and (code == 0 or known or len(lines) == 1), problem)
            tally.check("\x1b" not in said, f"{what} {name[:60]!r}: commands the terminal")
    harm = scene.harm(before)
    tally.check(not harm, harm)
    return tally.outcome(f"{len(names)} names, slowest {slowest:.1f} s")


def _command(arguments: list[str]) -> tuple[int, str]:
    """Run a command in this process; its exit code and what it said on stderr."""
    said = io.StringIO()
    run: Callable[[], Any] = _offline(lambda: main(arguments))  # type: ignore[assignment]
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
        try:
            code = run()
        except SystemExit as ended:
            code = int(ended.code or 0)
        except Exception as error:
            return 1, f"{type(error).__name__}: {error}"
    return code, said.getvalue()


def _trainings(scene: _Scene, *, quick: bool) -> Outcome:
    """Start a run of every name over HTTP, past the client, which would refuse some by itself."""
    tally = Tally(
        "runs started over HTTP",
        promise="P10",
        holds="status 422 and one line, no process, nothing made; or trained to its end under precisely that name",
    )
    changes: dict[str, Any] = {"reward": {"terms": ["length"]}, "training": {"steps": 1, "evaluate_every": 0}}
    config = config_to_mapping(tiny_config(scene.place / "models", scene.init, **changes))
    engine = LocalEngine()
    engine.runs()  # copies the bundled run
    free = [name for name in NAMES if _is_free(scene, name)]
    headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
    try:
        with served(engine) as url, httpx.Client(base_url=url, headers=headers, trust_env=False, timeout=60) as client:
            before = scene.picture()
            for name in NAMES:
                query = f"?name={quote(name, errors='surrogatepass')}"
                # That a run of that name is resumed is tried by others.
                asked: dict[str, tuple[str, Any]] = {"stop": (f"/stop{query}", None)} | (
                    {} if name == "tiny" else {"resume": ("/train", None)}
                )
                asked |= {} if name in free else {"start": ("/train", config)}
                for what, (path, given) in asked.items():
                    problem = _unlike_a_refusal(_posted(client, path, name, given))
                    tally.check(not problem, f"{what} {name[:50]!r}: {problem}")
                    problem = str(psutil.Process().children() or "") or scene.harm(before)
                    tally.check(not problem, f"{what} {name[:50]!r}: refused, and {problem}")
            wanted = [name for name in free if not quick or name in SOUND]
            for name in wanted:
                problem = _unlike_a_start(_posted(client, "/train", name, config), name)
                tally.check(not problem, f"start {name[:50]!r}: {problem}")
            _check_trained(tally, scene, client, wanted)
            harm = scene.harm(before, allowed=tuple(part for name in wanted for part in (name, f".training/{name}")))
            tally.check(not harm, harm)
    finally:
        for child in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                child.kill()
        engine.close()
    return tally.outcome(f"{len(NAMES)} names, {len(wanted)} of them trained")


def _is_free(scene: _Scene, name: str) -> bool:
    """Whether a new run may have a name: it is sound, none of our folders, and at most an empty one has it."""
    folder = scene.workspace / name
    return (
        _is_sound(name)
        and name.lower() not in OURS
        and (not folder.exists() or (folder.is_dir() and not any(folder.iterdir())))
    )


def _posted(client: httpx.Client, path: str, name: str, config: dict[str, Any] | None) -> httpx.Response:
    # Half a character goes over the wire as an escape.
    return client.post(path, content=json.dumps({"name": name, "config": config}))


def _unlike_a_refusal(answer: httpx.Response) -> str:
    try:
        said = Failure.model_validate_json(answer.content).error
    except ValidationError:
        return f"{answer.status_code} {answer.text[:200]!r}"
    is_line = said.isprintable() and 10 < len(said) < 2000 and "fault of warp-core" not in said
    return "" if answer.status_code == 422 and is_line else f"{answer.status_code} {said[:200]!r}"


def _unlike_a_start(answer: httpx.Response, name: str) -> str:
    if answer.status_code != 200:
        return f"{answer.status_code} {answer.text[:200]!r}"
    run = answer.json()
    return "" if (run["name"], run["state"]) == (name, RunState.RUNNING) else f"{run['state']} as {run['name']!r}"


def _check_trained(tally: Tally, scene: _Scene, client: httpx.Client, names: list[str]) -> None:
    """Wait until runs have ended: each is in the list once, under its name, finished, in the folder of that name."""

    def listed(name: str) -> list[dict[str, Any]]:
        return [run for run in client.get("/runs").json() if run["name"] == name]

    for name in names:
        with suppress(TimeoutError):
            wait_for(
                lambda name=name: all(run["state"] != RunState.RUNNING for run in listed(name)),  # type: ignore[misc]
                within_s=TRAINED_S,
                every_s=0.2,
            )
        found = [(run["state"], run["error"]) for run in listed(name)]
        tally.check(found == [(RunState.FINISHED, None)], f"{name[:50]!r} is listed as {found}")
        path = client.get("/run", params={"name": name}).json().get("path")
        tally.check(path == str(scene.workspace / name), f"{name[:50]!r} lies in {path}")
