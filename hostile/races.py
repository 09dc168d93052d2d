"""Attack: processes that want the same thing at once: one name, one run, one cache entry, one store."""

import contextlib
import io
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hostile import crash_operations as operations
from hostile.crash_child import Child, Ended, command, leftovers, start
from hostile.outcomes import Outcome, Tally
from tests.tiny import make_model, make_policies
from tests.training.runs import metrics, stored_points, tiny_config, trained_bytes
from warp_core.training.config import config_to_mapping, config_to_toml
from warp_core.workspace.paths import cache_root
from warp_core.workspace.store import ResultsStore

EXPORTERS = 6
ROUNDS = {"export": (12, 1), "train": (8, 1), "geometry": (10, 1), "front": (6, 1)}
LIMIT_S = 150.0


def attack(place: Path, *, quick: bool) -> Iterator[Outcome]:
    """Start them at the same moment, several rounds of each."""
    init = make_model("llama", place / "init")
    models = ["--init", str(init), "--policies", *(str(path) for path in make_policies(init, place, num=2))]
    rounds = {name: both[quick] for name, both in ROUNDS.items()}
    yield _exports(place / "export", models, rounds["export"])
    yield _trainings(place / "train", init, rounds["train"])
    yield _geometries(place / "geometry", models, rounds["geometry"])
    yield _fronts(place / "front", models, rounds["front"])


def _together(
    place: Path,
    functions: Sequence[tuple[Callable[..., Any], Sequence[Any]]],
    environment: Mapping[str, str] | None = None,
) -> list[Ended]:
    """Run functions in children that begin together; how they ended."""
    place.mkdir(parents=True)
    children: list[Child] = []
    go = place / "go"
    try:
        for number, (function, arguments) in enumerate(functions):
            base = place / f"child-{number}"
            children.append(start(_at_once, str(go), function, *arguments, base=base, environment=environment))
        until = time.monotonic() + LIMIT_S
        while len(list(place.glob("ready-*"))) < len(children):
            if time.monotonic() > until:
                raise TimeoutError(f"not all of {len(children)} children began")
            time.sleep(0.005)
        go.touch()
        return [child.ended(within_s=LIMIT_S) for child in children]
    finally:
        for child in children:
            child.kill()


def _at_once(go: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Wait until the file `go` is there, then call the function."""
    file = Path(go)
    (file.parent / f"ready-{os.getpid()}").touch()
    until = time.monotonic() + LIMIT_S
    while not file.exists() and time.monotonic() < until:
        time.sleep(0.0005)
    return function(*arguments)


def _said(ended: Ended) -> list[str]:
    """The lines that a command said as its error."""
    return [line for line in ended.err.splitlines() if line.startswith("warp-core: ")]


def _refusals(ended: Sequence[Ended], words: str) -> list[str]:
    """What is wrong with the commands that were refused; `words` is what each must say."""
    problems = []
    for one in ended:
        if one.fault or one.result not in (0, 2):
            problems.append(f"code {one.result}: {one.fault or one.err[-200:]}")
        elif one.result == 2 and (len(_said(one)) != 1 or words not in _said(one)[0]):
            problems.append(f"says {_said(one)}")
    return problems


def _exports(place: Path, models: list[str], rounds: int) -> Outcome:
    tally = Tally(
        f"{EXPORTERS} merges to one name",
        promise="P1",
        holds="one is there, whole; the others are told in one line that the name is taken; nothing is left",
    )
    wanted = {}
    place.mkdir()
    for number in range(EXPORTERS):
        out = place / "alone" / str(number) / "out"
        start(command, _merge(models, number, out), base=place / f"alone-{number}").ended()
        wanted[number] = (out / "model.safetensors").read_bytes() if (out / "model.safetensors").exists() else b""
    for round_ in range(rounds):
        folder = place / f"round-{round_}"
        out = folder / "target" / "out"
        ended = _together(folder, [(command, [_merge(models, number, out)]) for number in range(EXPORTERS)])
        problems = _refusals(ended, "not empty")
        winners = [number for number, one in enumerate(ended) if one.result == 0]
        if len(winners) != 1:
            problems.append(f"{len(winners)} have been told that theirs is there")
        elif (out / "model.safetensors").read_bytes() != wanted[winners[0]]:
            problems.append("what is there is not the winner's")
        if rest := leftovers(folder):
            problems.append(f"left: {rest}")
        tally.check(not problems, f"round {round_}: {'; '.join(problems)}")
    return tally.outcome()


def _merge(models: list[str], number: int, out: Path) -> list[str]:
    return ["merge", *models, "--method", "lerp", "--eta", str(0.1 * number + 0.2), "--out", str(out)]


def _trainings(place: Path, init: Path, rounds: int) -> Outcome:
    tally = Tally(
        "one run started twice",
        promise="P2",
        holds="one trains, the other is refused in one line, and the run is byte for byte that of one alone",
    )
    place.mkdir()
    config = tiny_config(place, init, training={"steps": 3}, warp={"policies": 2})
    (place / "run.toml").write_text(config_to_toml(config), encoding="utf-8")
    alone = start(operations.train, str(place / "alone"), config_to_mapping(config), base=place / "child").ended()
    expected = _content(place / "alone" / "out") if alone.is_done else None
    for round_ in range(rounds):
        resumed = round_ % 2 == 1
        home = place / f"home-{round_}"
        out = home / "out"
        if resumed:
            first = start(operations.train, str(home), config_to_mapping(config), 2, base=place / "first").ended()
            if not first.is_done:
                raise RuntimeError(f"training without a fault: {first}")
        order = ["train", str(place / "run.toml"), "--out", str(out), *(["--resume"] if resumed else [])]
        ended = _together(place / f"round-{round_}", [(command, [order]), (command, [order])])
        problems = _refusals(ended, str(out))
        if not any(one.result == 0 for one in ended):
            problems.append("neither has trained it")
        elif not resumed and sum(one.result == 0 for one in ended) != 1:
            problems.append("both say that they have trained it")
        if any(one.result == 0 for one in ended) and _content(out) != expected:
            problems.append("not the run of one alone")
        if rest := leftovers(home):
            problems.append(f"left: {rest}")
        shutil.rmtree(home, ignore_errors=True)
        tally.check(not problems, f"round {round_}: {'; '.join(problems)}")
    return tally.outcome()


def _content(run: Path) -> tuple[Any, ...]:
    return trained_bytes(run), [metrics(run, 1, policy) for policy in (1, 2)], stored_points(run)


def _geometries(place: Path, models: list[str], rounds: int) -> Outcome:
    tally = Tally(
        "two processes computing one geometry",
        promise="P1",
        holds="both get the numbers of one alone, the cache is whole and is used by the next",
    )
    place.mkdir()
    order = ["geometry", *models, "--json"]
    alone = start(_captured, order, base=place / "alone").ended()
    for round_ in range(rounds):
        shutil.rmtree(cache_root() / "geometry", ignore_errors=True)
        ended = _together(place / f"round-{round_}", [(_captured, [order]), (_captured, [order])])
        ended.append(start(_captured, order, base=place / f"after-{round_}").ended())
        problems = [one.fault or "other numbers" for one in ended if one.fault or one.result != alone.result]
        if rest := leftovers(cache_root()):
            problems.append(f"left: {rest}")
        tally.check(alone.is_done and not problems, f"round {round_}: {'; '.join(problems)}")
    return tally.outcome()


def _captured(argv: list[str]) -> list[Any]:
    """Run a command; its exit code and what it printed on stdout."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        code = command(argv)
    return [code, said.getvalue()]


def _fronts(place: Path, models: list[str], rounds: int) -> Outcome:
    tally = Tally(
        "two processes measuring one front into one store",
        promise="P3",
        holds="both end with the front of one alone, and the store holds each point once with its samples",
    )
    place.mkdir()
    (place / "prompts.txt").write_text("it is\nthe plot\n", encoding="utf-8")
    order = _front(models, place)
    start(command, order, base=place / "child", environment={"WARP_CACHE": str(place / "alone")}).ended()
    expected = _rows(place / "alone")
    for round_ in range(rounds):
        folder = place / f"round-{round_}"
        functions = [(command, [order]), (command, [order])]
        ended = _together(folder, functions, {"WARP_CACHE": str(folder / "target")})
        problems = [one.fault or one.err[-200:] for one in ended if one.fault or one.result != 0]
        found = _rows(folder / "target")
        if not expected or found != expected:
            problems.append(f"{len(found)} points that are not those of one alone ({len(expected)})")
        if rest := leftovers(folder):
            problems.append(f"left: {rest}")
        tally.check(not problems, f"round {round_}: {'; '.join(problems)}")
    return tally.outcome()


def _front(models: list[str], place: Path) -> list[str]:
    options = ["--reward", "length", "--prompts", str(place / "prompts.txt"), "--num-prompts", "2"]
    return ["front", *models, "--etas", "0.3", "0.8", "--max-new-tokens", "4", *options]


def _rows(folder: Path) -> dict[str, Any]:
    """The points of a store with their samples, by key."""
    files = sorted(folder.rglob("results.sqlite"))
    if not files:
        return {}
    with ResultsStore(files[0], read_only=True) as store:
        return {key: (store.get_point(key), store.samples(key)) for key in store.keys()}  # noqa: SIM118 - a store
