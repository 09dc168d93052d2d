"""Attack: four processes write into one store and are killed, round after round; nothing acknowledged may be lost."""

import random
import shutil
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

from hostile import crash_operations as operations
from hostile.crash_child import start
from hostile.outcomes import Outcome, Tally
from warp_core.workspace.store import ResultsStore
from warp_core.workspace.votes import VotesStore

SEED = 20260108
WRITERS = 4
ROUNDS, QUICK_ROUNDS = 25, 3
MANY = 100_000
FIRST_ROW_S = 60.0


def attack(place: Path, *, quick: bool) -> Iterator[Outcome]:
    """Points first, then votes."""
    rounds = QUICK_ROUNDS if quick else ROUNDS
    yield _points(place / "points", rounds)
    yield _votes(place / "votes", rounds)


def _killed(place: Path, round_: int, draw: random.Random, *, votes: bool) -> dict[str, Path]:
    """Start writers, kill each at a moment of its own; the files of what was acknowledged, by writer."""
    told = {f"{round_}.{number}": place / f"told-{round_}-{number}" for number in range(WRITERS)}
    children = []
    try:
        for name, file in told.items():
            base = place / f"child-{name.replace('.', '-')}"
            arguments = (str(place), MANY, str(file)) if votes else (str(place), str(file), name, MANY)
            children.append(start(operations.vote if votes else operations.put, *arguments, base=base))
        until = time.monotonic() + FIRST_ROW_S
        while not all(file.exists() and file.stat().st_size for file in told.values()):
            if dead := [child.ended() for child in children if child.code is not None]:
                raise RuntimeError(f"round {round_}: a writer that nobody has killed ended: {dead[0]}")
            if time.monotonic() > until:
                raise TimeoutError(f"round {round_}: a writer stored nothing within {FIRST_ROW_S:.0f} s")
            time.sleep(0.005)
        for child in children:
            time.sleep(draw.uniform(0, 0.08))
            child.kill()
    finally:
        for child in children:
            child.kill()
    return told


def _lines(file: Path) -> list[str]:
    """The whole lines of a file."""
    return file.read_text(encoding="ascii").rpartition("\n")[0].splitlines()


def _integrity(file: Path) -> list[str]:
    db = sqlite3.connect(file)
    try:
        said = db.execute("PRAGMA integrity_check").fetchall()
    finally:
        db.close()
    return [] if said == [("ok",)] else [f"integrity_check: {said}"]


def _points(place: Path, rounds: int) -> Outcome:
    tally = Tally(
        f"{WRITERS} processes storing points, kill -9",
        promise="P3",
        holds="every acknowledged point is there with its samples, in order, and SQLite finds the file sound",
    )
    place.mkdir()
    draw, promised = random.Random(SEED), dict[str, int]()
    for round_ in range(rounds):
        told = _killed(place, round_, draw, votes=False)
        promised |= {name: len(_lines(file)) for name, file in told.items()}
        problems = _integrity(place / "results.sqlite")
        with ResultsStore(place / "results.sqlite") as store:
            points = store.list_points()
            by_writer = {name: [point["i"] for point in points if point["writer"] == name] for name in promised}
            for name, count in promised.items():
                rows = by_writer[name]
                if rows != list(range(len(rows))) or len(rows) < count:
                    problems.append(f"writer {name}: {count} acknowledged, {len(rows)} there, or in another order")
            for name in told:
                last = f"{name}-{promised[name] - 1}"
                if len(store.samples(last)) != operations.SAMPLES:
                    problems.append(f"{last} has lost its samples")
        tally.check(not problems, f"round {round_}: {'; '.join(problems)}")
    return tally.outcome(f"{sum(promised.values()):,} acknowledged points")


def _votes(place: Path, rounds: int) -> Outcome:
    tally = Tally(
        f"{WRITERS} processes storing votes, kill -9",
        promise="P3",
        holds="every acknowledged vote is there, in the order of its writer, and SQLite finds the file sound",
    )
    draw, total = random.Random(SEED), 0
    place.mkdir()
    for round_ in range(rounds):
        told = _killed(place, round_, draw, votes=True)
        problems = _integrity(place / "votes.sqlite")
        with VotesStore(place / "votes.sqlite") as store:
            order = {vote["id"]: number for number, vote in enumerate(store.list())}
        for name, file in told.items():
            ids = _lines(file)
            total += len(ids)
            places = [order.get(one, -1) for one in ids]
            if -1 in places or places != sorted(places):
                problems.append(f"writer {name}: {places.count(-1)} of {len(ids)} votes lost, or in another order")
        tally.check(not problems, f"round {round_}: {'; '.join(problems)}")
    shutil.rmtree(place)
    return tally.outcome(f"{total:,} acknowledged votes")
