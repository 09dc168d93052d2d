"""Slider -> first token: the whole path through a real engine against the sum of its parts.

The engine is a process, asked over HTTP; the parts are measured in the process of the bench, which has the same threads
and models. Both take turns at the same random positions. Panes: the SFT policy, a merge, and the merge at eta 1.
"""

import math
import random
import statistics
import threading
import time
from collections.abc import Sequence
from dataclasses import replace

from bench.engines import KINDS, Seen, ended, places_of, preview, selection_of, served, watched
from bench.preview_parts import Parts, open_parts
from bench.rows import Row
from bench.settings import Settings
from warp_core.service.library import Library
from warp_core.service.protocol import PrepareRequest

__all__ = ["measure"]

TOKENS = 24
MOVES, QUICK_MOVES = 15, 2
STARTS = 3
WARM = 2
AIM = 1.5


def measure(settings: Settings) -> list[Row]:
    """Return the rows of both kinds of policies, and of an engine that was just started."""
    rows = [row for kind in KINDS for row in _rows(kind, *_measured(kind, settings))]
    return rows + _cold_start(settings)


def _measured(kind: str, settings: Settings) -> tuple[list[Seen], list[Parts]]:
    """What was seen of so many moves, and their parts."""
    chance, selection = random.Random(0), selection_of(kind, settings)
    seen: list[Seen] = []
    alone: list[Parts] = []
    with served(settings) as (engine, _):
        ended(engine, PrepareRequest(session="bench", selection=selection))
        parts = open_parts(Library(settings.scratch / "workspace"), selection)
        moves = QUICK_MOVES if settings.quick else MOVES
        for move in range(WARM + moves):
            places = places_of(chance)
            one = watched(engine, preview(selection, places, seed=move, tokens=TOKENS))
            other = parts.measure(places, seed=move, tokens=TOKENS)
            if move >= WARM:
                seen.append(one)
                alone.append(other)
    return seen, alone


def _rows(kind: str, seen: Sequence[Seen], alone: Sequence[Parts]) -> list[Row]:
    case = f"SmolLM2, 3 {kind}, 3 panes"
    first, whole = _ms([one.first_s for one in seen]), _ms([one.all_s for one in seen])
    sum_first = _ms([parts.first_s for parts in alone])
    sum_whole = _ms([parts.first_s + parts.rest_s for parts in alone])
    # Of each move with its own parts: a neighbour on the machine slows both.
    share = statistics.median(parts.first_s / one.first_s for one, parts in zip(seen, alone, strict=True))
    all_share = statistics.median(
        (parts.first_s + parts.rest_s) / one.all_s for one, parts in zip(seen, alone, strict=True)
    )
    rows = [
        replace(
            _row(case, "slider -> first token in all panes", first, peer="sum of the parts", ratio=share),
            aim=f"< {AIM} x the sum of its parts",
            meets=1 / share < AIM,
        ),
        _row(case, "the same, 95th percentile", _p95([one.first_s for one in seen])),
        _row(case, f"slider -> {TOKENS} tokens in all panes", whole, peer="sum of the parts", ratio=all_share),
        _row(case, "part: coefficients and merge", _ms([parts.merge_s for parts in alone])),
        _row(case, "part: prompt", _ms([parts.prefill_s for parts in alone])),
        _row(case, "part: one draw", _ms([parts.draw_s for parts in alone])),
        _row(case, "sum of the parts, first token", sum_first),
        _row(case, f"sum of the parts, {TOKENS} tokens", sum_whole),
    ]
    marks = {name for one in seen for name in one.marks} & {"started", "merged", "first_token"}
    rows += [
        _row(case, f"in the engine: submitted -> {name}", _ms([one.marks[name] for one in seen]))
        for name in sorted(marks, key=lambda name: statistics.median(one.marks[name] for one in seen))
    ]
    return rows


def _cold_start(settings: Settings) -> list[Row]:
    """From the command to its address, the front and three panes of the bundled run, everything in the disk's cache."""
    selection = selection_of(KINDS[0], settings)
    found: dict[str, list[float]] = {}
    for number in range(1 if settings.quick else STARTS):
        began = time.perf_counter()
        with served(settings) as (engine, _):
            times = {"address": time.perf_counter() - began}
            # As `warp-core app` does: the models are on their way before anybody asks for them.
            request = PrepareRequest(session="start", selection=selection)
            threading.Thread(target=engine.submit, args=(request,)).start()
            engine.front(selection)
            times["front"] = time.perf_counter() - began
            asked = time.perf_counter() - began
            seen = watched(engine, preview(selection, places_of(random.Random(number)), seed=number, tokens=TOKENS))
            times["first token in three panes"] = asked + seen.first_s
            times[f"{TOKENS} tokens in three panes"] = asked + seen.all_s
        for name, seconds in times.items():
            found.setdefault(name, []).append(seconds)
    return [_row("cold start of the engine", f"command -> {name}", _ms(one)) for name, one in found.items()]


def _row(case: str, quantity: str, value: float, *, peer: str | None = None, ratio: float | None = None) -> Row:
    return Row(
        bench="first_token", case=case, quantity=quantity, value=round(value, 1), unit="ms", peer=peer, ratio=ratio
    )


def _ms(seconds: Sequence[float]) -> float:
    return 1000 * statistics.median(seconds)


def _p95(seconds: Sequence[float]) -> float:
    return 1000 * sorted(seconds)[math.ceil(0.95 * len(seconds)) - 1]
