"""Attack: the disk is full or read-only; the workspace vanishes, is moved away or becomes a file on the way.

A full and a read-only disk are a small tmpfs of our own, which needs the right to mount.
"""

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from hostile import crash_operations as operations
from hostile.crash_child import leftovers, start
from hostile.disk_engine import alike, engine_on_a_full_disk
from hostile.outcomes import Outcome, Tally
from hostile.running_programs import Programs, interruptible, wait_for
from hostile.running_stages import Ended, Stages, Stop
from tests.tiny import make_model, make_policies
from tests.training.runs import metrics, stored_points, tiny_config, trained_bytes
from warp_core.training.config import config_to_toml
from warp_core.workspace.votes import VotesStore

SIZE_MB = 16
ENGINE_MB = 96  # the bundled run is copied there
LEFT_KB = (0, 4, 12, 24, 48, 96)
QUICK_LEFT_KB = 24
VOTES = 200
STAGES = {
    "train": ("warp_core.training.reinforce.Learner.step", 2),
    "merge": ("warp_core.weights.streamed.write_model_files", 1),
    "export": ("warp_core.weights.streamed.write_model_files", 1),
    "front": ("warp_core.evaluation.sweep.measure_together", 1),
}
QUICK = {("train", "moved away"), ("merge", "vanished"), ("front", "moved away")}


def attack(place: Path, *, quick: bool) -> Iterator[Outcome]:
    """Take the disk away in every way that there is."""
    interruptible()
    with Programs(place / "programs") as programs, Stages(programs) as stages:
        site = _Site(place / "inputs", stages)
        if _may_mount(place / "try"):
            with _disk(place / "disk") as disk:
                yield from _on_a_full_disk(site, disk, quick=quick)
                yield _on_a_read_only_disk(site, disk, quick=quick)
            with _disk(place / "engine", size_mb=ENGINE_MB) as disk:
                yield from engine_on_a_full_disk(
                    programs,
                    disk,
                    place / "models",
                    lambda left_kb: _fill(disk, left_kb),
                    (0,) if quick else LEFT_KB,
                    pages=not quick,
                )
        else:
            # Nothing was tried, which counts as a failure: it is not known.
            yield Tally("a full and a read-only disk", promise="P1, P13", holds="").outcome("mounting is not allowed")
        yield _without_a_workspace(site, place / "homes", quick=quick)


@dataclass(frozen=True)
class _Command:
    """A command of the command line that writes below a home: its arguments, and what it has made there."""

    argv: Callable[[Path], list[object]]
    made: Callable[[Path], Any]
    needs_run: bool = False


class _Site:
    """Models, a run that is trained, and what each command makes of them when nothing is wrong."""

    def __init__(self, folder: Path, stages: Stages) -> None:
        self.folder, self.stages = folder, stages
        init = make_model("llama", folder / "init")
        policies = make_policies(init, folder, num=2)
        training: dict[str, Any] = {"training": {"steps": 3}, "warp": {"policies": 2}}
        config = tiny_config(folder, init, **training, reward={"terms": ["length"]})
        self.config = folder / "run.toml"
        self.config.write_text(config_to_toml(config), encoding="utf-8")
        models: list[object] = ["--init", init, "--policies", *policies]
        self.commands = {
            "train": _Command(self._train, lambda home: _run_content(home / "out")),
            "merge": _Command(lambda home: ["merge", *models, "--out", home / "out"], _folder_content),
            "export": _Command(
                lambda home: ["export", home / "run", "--eta", 0.5, "--out", home / "out"], _folder_content, True
            ),
            "front": _Command(
                lambda home: ["front", home / "run", "--etas", 0.5, "--num-prompts", 2],
                lambda home: _Points(stored_points(home / "run")),
                True,
            ),
        }
        ended = self.run(["train", self.config, "--out", folder / "run"], {"WARP_CACHE": str(folder / "cache")})
        if ended.code:
            raise RuntimeError(f"training without a fault: {ended.tail}")
        self.expected = {}
        for name in self.commands:
            home = self.home(folder / "alone" / name, name)
            ended = self.run_in(home, name)
            if ended.code:
                raise RuntimeError(f"{name} without a fault: {ended.tail}")
            self.expected[name] = self.commands[name].made(home)

    def _train(self, home: Path) -> list[object]:
        begun = (home / "out" / "run.json").exists()
        return ["train", self.config, "--out", home / "out", *(["--resume"] if begun else [])]

    def home(self, home: Path, name: str) -> Path:
        """Make a home for a command, with what it reads there."""
        home.mkdir(parents=True)
        if self.commands[name].needs_run:
            shutil.copytree(self.folder / "run", home / "run")
        return home

    def run(self, argv: Sequence[object], environment: Mapping[str, str], **options: Any) -> Ended:
        """Run a command to its end."""
        return self.stages.run(argv, environment=environment, **options)

    def run_in(self, home: Path, name: str, **options: Any) -> Ended:
        """Run a command in a home."""
        environment = {"WARP_CACHE": str(self.folder / "cache")}
        return self.run(self.commands[name].argv(home), environment, **options)

    def problems(self, ended: Ended, *, names: str) -> list[str]:
        """What is wrong with the way in which a command ended without its disk; `names`: the path that it names."""
        if ended.code == 0:
            return []
        said = [line for line in ended.err if line.startswith("warp-core: ")]
        if ended.code != 2 or ended.has_trace or len(said) != 1:
            return [ended.tail]
        return [] if names in said[0] else [f"names no path: {said[0]}"]

    def again(self, home: Path, name: str) -> list[str]:
        """What is wrong when the same is done after the mend."""
        command = self.commands[name]
        ended = self.run_in(home, name)
        if ended.code:
            return [f"after the mend: {ended.tail}"]
        problems = [] if command.made(home) == self.expected[name] else ["after the mend: not what it makes alone"]
        rest = leftovers(home)
        return problems + ([f"left: {rest}"] if rest else [])


def _folder_content(home: Path) -> dict[str, str]:
    found = operations.digests(home / "out")
    # Names its inputs by their paths.
    return {name: digest for name, digest in found.items() if name.endswith(".safetensors")}


class _Points:
    """Stored points. The last digits of a point depend on which others shared its batch: those may differ."""

    def __init__(self, points: Sequence[Mapping[str, Any]]) -> None:
        self.points = sorted(points, key=lambda point: json.dumps([point["recipe"], point["policy"]], sort_keys=True))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Points) and alike(self.points, other.points)

    __hash__ = None  # type: ignore[assignment]


def _run_content(run: Path) -> tuple[Any, ...]:
    return trained_bytes(run), [metrics(run, 1, policy) for policy in (1, 2)], stored_points(run)


def _may_mount(place: Path) -> bool:
    try:
        with _disk(place):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


@contextmanager
def _disk(place: Path, *, size_mb: int = SIZE_MB) -> Iterator[Path]:
    """A small file system of our own."""
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size_mb}m", "tmpfs", place], check=True, capture_output=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True, capture_output=True)


def _fill(disk: Path, left_kb: int) -> Path:
    """Fill a disk up to so many KB; the file that fills it."""
    filler = disk / "filler"
    free = shutil.disk_usage(disk).free
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(4096, free - (left_kb << 10)))
    return filler


def _on_a_full_disk(site: _Site, disk: Path, *, quick: bool) -> Iterator[Outcome]:
    tally = Tally(
        "a full disk",
        promise="P1, P13",
        holds="one line that names the path, exit code 2, nothing half-written; with more room the same is done",
    )
    for name, command in site.commands.items():
        refused = 0
        for left_kb in (QUICK_LEFT_KB,) if quick else LEFT_KB:
            if quick and name == "export":
                continue
            home = site.home(disk / f"{name}-{left_kb}", name)
            filler = _fill(disk, left_kb)
            ended = site.run_in(home, name)
            problems = site.problems(ended, names=str(disk))
            refused += ended.code != 0
            if ended.code and name in ("merge", "export") and (home / "out").exists():
                problems.append("there is an output")
            if ended.code == 0 and command.made(home) != site.expected[name]:
                problems.append("done, and not what it makes with more room")
            filler.unlink()
            if ended.code or name == "train":
                problems += site.again(home, name)
            tally.check(not problems, f"{name}, {left_kb} KB free: {'; '.join(problems)}")
            shutil.rmtree(home, ignore_errors=True)
        if not quick:
            tally.check(refused > 0, f"{name}: no disk was too full for it")
    yield tally.outcome()
    yield _votes_on_a_full_disk(disk, quick=quick)


def _votes_on_a_full_disk(disk: Path, *, quick: bool) -> Outcome:
    tally = Tally(
        "votes on a full disk",
        promise="P3, P13",
        holds="one line that names the file; every acknowledged vote is there; with more room votes are taken again",
    )
    for left_kb in (48,) if quick else (0, 24, 48, 64, 96):
        home = disk / f"votes-{left_kb}"
        home.mkdir()
        told = disk.parent / f"told-{left_kb}"
        filler = _fill(disk, left_kb)
        ended = start(operations.vote, str(home), VOTES, str(told), base=disk.parent / f"votes-{left_kb}").ended()
        problems = [ended.fault] if ended.fault else []
        if ended.is_done or str(home) not in ended.error:
            problems.append(f"it says {ended.error!r}")
        filler.unlink()
        again = start(operations.vote, str(home), 3, base=disk.parent / f"again-{left_kb}").ended()
        problems += [] if again.is_done else [f"with more room: {again.error}"]
        with VotesStore(home / "votes.sqlite") as store:
            found = [one["id"] for one in store.list()]
        promised = told.read_text(encoding="ascii").split() if told.exists() else []
        if found[: len(promised)] != promised:
            problems.append(f"{len(promised)} acknowledged, {len(found)} there")
        tally.check(not problems, f"{left_kb} KB free: {'; '.join(problems)}")
        shutil.rmtree(home)
    return tally.outcome()


def _on_a_read_only_disk(site: _Site, disk: Path, *, quick: bool) -> Outcome:
    tally = Tally(
        "a read-only disk",
        promise="P1, P13",
        holds="one line that names the path, exit code 2, nothing changes; the same is done once it can be written",
    )
    for name in ("merge", "front") if quick else site.commands:
        home = site.home(disk / f"read-only-{name}", name)
        before = operations.digests(home)
        _remount(disk, "ro")
        try:
            ended = site.run_in(home, name)
            problems = site.problems(ended, names=str(disk))
            problems += [] if ended.code else ["it says that it is done"]
            problems += [] if operations.digests(home) == before else ["something has changed"]
        finally:
            _remount(disk, "rw")
        problems += site.again(home, name)
        tally.check(not problems, f"{name}: {'; '.join(problems)}")
        shutil.rmtree(home)
    return tally.outcome()


def _remount(disk: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", disk], check=True, capture_output=True)


def _vanish(home: Path, kept: Path) -> None:
    shutil.copytree(home, kept)
    shutil.rmtree(home)


def _move(home: Path, kept: Path) -> None:
    home.rename(kept)


def _become_a_file(home: Path, kept: Path) -> None:
    home.rename(kept)
    home.write_text("not a folder", encoding="utf-8")


WAYS = {"vanished": _vanish, "moved away": _move, "is a file": _become_a_file}


def _without_a_workspace(site: _Site, place: Path, *, quick: bool) -> Outcome:
    tally = Tally(
        "a workspace that is taken away on the way",
        promise="P1, P13",
        holds="one line that names the path, exit code 2, nothing half-written; the same is done once it is back",
    )
    place.mkdir()
    for name in site.commands:
        for way, damage in WAYS.items():
            if quick and (name, way) not in QUICK:
                continue
            home = site.home(place / f"{name}-{way.replace(' ', '-')}", name)
            kept = home.with_name(f"{home.name}-kept")
            where, call = STAGES[name]
            try:
                ended = site.run_in(
                    home,
                    name,
                    at=[Stop(where, signal.SIGSTOP, call)],
                    outside=_when_stopped(lambda damage=damage, home=home, kept=kept: damage(home, kept)),  # type: ignore[misc]
                )
                problems = [] if ended.reached else ["the stage was never reached"]
                problems += site.problems(ended, names=str(home))
                if ended.code == 0:
                    problems.append("it says that it is done")
            except TimeoutError as error:
                problems = [str(error)]
            if home.is_file():
                home.unlink()
            elif home.is_dir():
                problems.append(f"made again: {sorted(str(p.relative_to(home)) for p in home.rglob('*'))[:3]}")
                shutil.rmtree(home)
            with suppress(FileNotFoundError):
                kept.rename(home)
            problems += site.again(home, name)
            tally.check(not problems, f"{name}, {way}: {'; '.join(problems)}")
    return tally.outcome()


def _when_stopped(damage: Callable[[], None]) -> Callable[[int], None]:
    """Wait until a process has stopped itself, do the damage, and let it go on."""

    def outside(pid: int) -> None:
        process = psutil.Process(pid)
        wait_for(lambda: process.status() == psutil.STATUS_STOPPED or not process.is_running(), every_s=0.005)
        try:
            damage()
        finally:
            process.send_signal(signal.SIGCONT)

    return outside
