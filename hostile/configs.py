"""Configurations of runs, and every JSON file that the product reads, damaged: by hand and by chance."""

import dataclasses
import json
import random
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from hostile.config_scene import Scene, Target
from hostile.input_child import Found, watched
from hostile.input_configs import random_mapping, toml_cases
from hostile.input_damage import damaged_by_chance, damaged_by_hand
from hostile.outcomes import Outcome, Tally
from warp_core.errors import UserError, WarpError
from warp_core.training.config import (
    SECTIONS,
    config_from_mapping,
    config_problems,
    config_to_toml,
    load_config,
)

__all__ = ["attack", "cases"]

ANSWER_S = 60.0
PORTION = 250  # of what hypothesis draws
MOST_S = 3.0
SEED = 4711
LONGEST_LINE = 3000

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec="utf-8"), max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)


def attack(place: Path, *, quick: bool) -> Iterator[Outcome]:
    """See hostile/README.md."""
    tallies = {
        "toml": Tally(
            "TOML files by hand", promise="", holds="read as written, or one line names file or field, in 3 s"
        ),
        "random": Tally(
            "configurations by chance",
            promise="",
            holds="one line per field that is wrong; what is taken is the same after a way through TOML",
        ),
        "files": Tally(
            "JSON files that are read",
            promise="",
            holds="an error in one line, or an answer; of a cache the answer that was right before; in 3 s, no trace",
        ),
        "values": Tally("JSON values that are read back", promise="", holds="an error in one line, or a whole value"),
    }
    slowest = ("", 0.0)
    for found in watched("hostile.configs:cases", {"place": str(place), "quick": quick}, answer_s=ANSWER_S):
        if "problem" in found:
            tallies["files"].check(False, found["problem"])
            continue
        slowest = max(slowest, (found["case"], found["seconds"]), key=lambda one: one[1])
        tallies[found["group"]].check(not found["fault"], f"{found['case']}: {found['fault']}")
    for tally in tallies.values():
        yield tally.outcome()


def cases(place: str, quick: bool) -> Iterator[Found]:
    """Go through all cases, in a process of its own."""
    torch.set_num_threads(1)
    root = Path(place)
    yield from _toml_files(root / "run.toml")
    yield from _random_configurations(300 if quick else 6000)
    scene = Scene(root)
    for target in scene.targets():
        yield from _damaged(target, quick=quick)
    for name, sound, read in scene.values():
        yield from _damaged_values(name, sound, read, number=60 if quick else 1500)


def _toml_files(path: Path) -> Iterator[Found]:
    for case in toml_cases():
        path.write_bytes(case.content)

        def read(case: Any = case) -> str:
            try:
                config = load_config(path)
            except UserError as error:
                if case.expected == "read":
                    return f"refused: {error}"
                return "" if case.named in str(error) else f"does not name {case.named!r}: {error}"
            return (
                "" if case.expected == "read" and config.training.steps == case.steps else f"read as {config.training}"
            )

        yield _found("toml", case.line, read)


def _random_configurations(number: int) -> Iterator[Found]:
    chance = random.Random(SEED)
    sections = {name: tuple(one.name for one in dataclasses.fields(part)) for name, part in SECTIONS.items()}
    for index in range(number):
        mapping = random_mapping(chance, sections)
        yield _configured(f"configuration {index}", mapping)
    fields = sorted({name for names in sections.values() for name in names})
    drawn = st.dictionaries(st.sampled_from([*sections, "runs"]), st.dictionaries(st.sampled_from(fields), JSON) | JSON)
    yield from _drawn(drawn, lambda mapping: _configured("by hypothesis,", mapping), number=number)


def _configured(case: str, mapping: dict[str, Any]) -> Found:
    def read() -> str:
        problems = config_problems(mapping)
        if any("\n" in one or len(one) > LONGEST_LINE for one in problems):
            return f"not one line: {problems!r}"[:400]
        try:
            config = config_from_mapping(mapping)
        except UserError as error:
            return "" if problems and str(error) == problems[0] else f"{error}, but {problems}"
        again = config_from_mapping(tomllib.loads(config_to_toml(config)))
        return f"taken, but {problems}" if problems else "" if again == config else f"{again} is not {config}"

    return _found("random", f"{case} {str(mapping)[:120]}", read)


def _damaged(target: Target, *, quick: bool) -> Iterator[Found]:
    """Damage a file in every way, one after the other, and put it right again."""
    whole = target.file.read_bytes()
    sound = target.read()
    by_hand = [*damaged_by_hand(whole), ("not there", None)]
    chance = 2 if target.heavy else 5
    wanted = len(by_hand)
    if quick:
        wanted = 3 if target.heavy else 9
    elif target.heavy:
        wanted, chance = 100, 40
    else:
        chance = 200
    by_hand = by_hand[:: max(1, len(by_hand) // wanted)]
    for how, content in [*by_hand, *damaged_by_chance(whole, number=chance, seed=SEED)]:
        if content is None:
            target.file.unlink()
        else:
            target.file.write_bytes(content)
        fault: Callable[[], str] = lambda: _difference(target, sound)  # noqa: E731
        yield _found("files", f"{target.name}, {how}", fault)
        target.file.write_bytes(whole)
    if not target.heavy:
        yield from _by_hypothesis(target, sound, number=5 if quick else 150)
        target.file.write_bytes(whole)
    yield _found("files", f"{target.name}, put right again", lambda: _difference(target, sound, must=True))


def _by_hypothesis(target: Target, sound: Any, *, number: int) -> Iterator[Found]:
    """Put any JSON in the place of the document, or of some of its fields."""
    try:
        document = json.loads(target.file.read_bytes())
    except ValueError:  # lines of JSON, or TOML
        return
    values = JSON
    if isinstance(document, dict) and document:
        changes = st.dictionaries(st.sampled_from(sorted(document)), JSON)
        values = changes.map(lambda some: document | some) | JSON

    def one(value: Any) -> Found:
        target.file.write_text(json.dumps(value), encoding="utf-8")
        case = f"{target.name}, hypothesis: {json.dumps(value)[:120]}"
        return _found("files", case, lambda: _difference(target, sound))

    yield from _drawn(values, one, number=number)


def _drawn(values: "st.SearchStrategy[Any]", one: Callable[[Any], Found], *, number: int) -> Iterator[Found]:
    """Go through values that hypothesis draws; a fault is looked for in smaller ones.

    In portions, so that an answer is never long in coming where each of them comes at once.
    """
    for begun in range(0, number, PORTION):
        yield from _portion(values, one, number=min(PORTION, number - begun), seeded=SEED + begun)


def _portion(values: "st.SearchStrategy[Any]", one: Callable[[Any], Found], *, number: int, seeded: int) -> list[Found]:
    found: list[Found] = []

    @seed(seeded)
    @settings(max_examples=number, database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(values)
    def draw(value: Any) -> None:
        found.append(one(value))
        assert not found[-1]["fault"]

    with suppress(AssertionError):
        draw()
    return found


def _difference(target: Target, sound: Any, *, must: bool = False) -> str:
    found = target.read()
    if target.holds == "typed" and not must:
        return ""
    return "" if found == sound else f"answered {str(found)[:150]}, not {str(sound)[:150]}"


def _damaged_values(name: str, sound: dict[str, Any], read: Callable[[Any], Any], *, number: int) -> Iterator[Found]:
    text = json.dumps(sound).encode()
    for how, content in [*damaged_by_hand(text), *damaged_by_chance(text, number=number, seed=SEED)]:
        try:
            value = json.loads(content)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            yield _found("values", f"{name}, {how}", lambda value=value: read(value) and "")  # type: ignore[misc]


def _found(group: str, case: str, action: Callable[[], str]) -> Found:
    """Do it: anything but an answer or one of our errors in one line is a fault."""
    began = time.process_time()
    try:
        fault = action()
    except WarpError as error:
        text = str(error)
        fault = f"not one line: {text[:300]!r}" if "\n" in text or len(text) > LONGEST_LINE else ""
    except Exception as error:
        fault = f"{type(error).__name__}: {error}"
    seconds = time.process_time() - began
    if not fault and seconds > MOST_S:
        fault = f"took {seconds:.1f} s"
    return {"group": group, "case": case[:200], "fault": fault[:400], "seconds": seconds}
