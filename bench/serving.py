"""Serving: the engine's memory with three policies loaded, and whether it stays; round trips; the bank; exports."""

import math
import random
import statistics
import time
from collections.abc import Sequence

import torch

from bench.engines import KINDS, ended, places_of, preview, selection_of, served
from bench.processes import private_bytes
from bench.rows import Row
from bench.settings import Settings
from bench.timing import interleaved_s
from warp_core.policy.bank import AdapterBank
from warp_core.policy.inference import fast_inference, make_decoder
from warp_core.policy.model import Policy, load_policy
from warp_core.service.client import HttpEngine
from warp_core.service.library import Library
from warp_core.service.protocol import ExportRequest, Place, PrepareRequest, Selection
from warp_core.weights import coefficients, compute_geometry
from warp_core.workspace.paths import cache_root

__all__ = ["measure"]

PREVIEWS, QUICK_PREVIEWS = 200, 4
TOKENS = 2
ROUND_TRIPS, QUICK_ROUND_TRIPS = 2000, 50
STEPS, QUICK_STEPS = 24, 3
ROWS = 3
MB = 1e6


def measure(settings: Settings) -> list[Row]:
    """Return all rows."""
    rows = []
    for kind in KINDS:
        with served(settings) as (engine, pid):
            rows += _memory(kind, settings, engine, pid)
            if kind == "adapters":
                rows += _round_trips(settings, engine) + _exports(settings, engine)
    return rows + _bank(settings)


def _memory(kind: str, settings: Settings, engine: HttpEngine, pid: int) -> list[Row]:
    """Anonymous memory: with nothing loaded, with a preview of three panes, and after many previews."""
    selection, case = selection_of(kind, settings), f"SmolLM2, 3 {kind}, 3 panes"
    engine.runs()  # which is answered when everything is imported
    empty = private_bytes(pid)
    ended(engine, PrepareRequest(session="bench", selection=selection))
    chance = random.Random(0)
    held = []
    for number in range(QUICK_PREVIEWS if settings.quick else PREVIEWS):
        ended(engine, preview(selection, places_of(chance), seed=number, tokens=TOKENS))
        held.append(private_bytes(pid))
    weights = _size_bytes(selection)
    settled = statistics.median(held[: max(1, len(held) // 10)])
    late = statistics.median(held[-max(1, len(held) // 10) :])
    return [
        _row(case, "memory of the engine, nothing loaded", empty / MB, "MB"),
        _row(
            case,
            "memory of the engine, models loaded",
            late / MB,
            "MB",
            peer=f"sum of the weights on disk, {weights / MB:.0f} MB",
            ratio=weights / late,
            note="the policies, and a live copy for each pane that is a merge" if kind != KINDS[0] else "",
        ),
        _row(case, f"growth from the first to the last of {len(held)} previews", (late - settled) / MB, "MB"),
    ]


def _size_bytes(selection: Selection) -> int:
    """What the SFT policy and the policies take on the disk; an init that is the SFT policy counts once."""
    sources = Library().sources(selection, 1)
    sizes = {
        one.id: sum((one.path / file.name).stat().st_size for file in one.files)
        for one in (sources.sft, *sources.policies)
    }
    return sum(sizes.values())


def _round_trips(settings: Settings, engine: HttpEngine) -> list[Row]:
    """`GET /job` of a job that has ended, as a page polls it."""
    job = engine.jobs()[0]
    seconds = []
    for _ in range(QUICK_ROUND_TRIPS if settings.quick else ROUND_TRIPS):
        began = time.perf_counter()
        engine.job(job.id)
        seconds.append(time.perf_counter() - began)
    return [
        _row("three panes", "GET /job, median", 1000 * statistics.median(seconds), "ms"),
        _row("three panes", "GET /job, 99th percentile", 1000 * _at(seconds, 0.99), "ms"),
    ]


def _at(values: Sequence[float], share: float) -> float:
    return sorted(values)[math.ceil(share * len(values)) - 1]


def _exports(settings: Settings, engine: HttpEngine) -> list[Row]:
    """A merge of SmolLM2 from the run's adapters, as a folder; read back and compared, or not."""
    rows = []
    for verify in (False,) if settings.quick else (False, True):
        request = ExportRequest(
            session="bench",
            selection=Selection(run="demo-run"),
            place=Place(eta=0.5),
            name=f"bench-{verify}".lower(),
            form="full",
            verify=verify,
        )
        began = time.perf_counter()
        ended(engine, request)
        name = "export, read back and compared" if verify else "export"
        rows.append(_row("SmolLM2 fp32, 3 adapters", name, time.perf_counter() - began, "s"))
    return rows


def _bank(settings: Settings) -> list[Row]:
    """A step of three rows that are three merges of adapters, beside a step of three rows of the bare base."""
    library, selection = Library(settings.scratch / "workspace"), Selection(run="demo-run")
    sources = library.sources(selection, 1)
    checkpoints = (sources.init, *sources.policies)
    geometry = compute_geometry(sources.init, sources.policies, cache_dir=cache_root() / "geometry")
    base, own = (load_policy(sources.sft.path, device=torch.device("cpu")) for _ in range(2))
    bank = AdapterBank(own, sources.sft)
    bank.load(sources.policies)
    places = [Place(eta=eta) for eta in (0.3, 0.6, 1.0)]
    merges = [coefficients(library.recipe(selection, place), geometry) for place in places]
    table = bank.table([bank.mix(merge, checkpoints) for merge in merges])
    steps = QUICK_STEPS if settings.quick else STEPS

    def with_adapters() -> None:
        with bank.at(table):
            _decode(bank.policy, steps=steps)

    with fast_inference(base):
        found = interleaved_s(
            {"bank": with_adapters, "base": lambda: _decode(base, steps=steps)}, repeats=1 if settings.quick else 7
        )
    bank_ms, base_ms = (1000 * statistics.median(found[name]) / steps for name in ("bank", "base"))
    case = "SmolLM2 fp32, 3 rows, prompt and steps"
    return [
        _row(
            case,
            "time per token, three merges of 3 adapters",
            bank_ms,
            "ms",
            peer="base alone",
            ratio=base_ms / bank_ms,
        )
    ]


@torch.no_grad()
def _decode(policy: Policy, *, steps: int) -> None:
    decoder = make_decoder(policy, max_new_tokens=steps)
    assert decoder is not None
    ids_BP = torch.arange(8).repeat(ROWS, 1) + 100
    token_B = decoder.prefill(ids_BP, torch.ones_like(ids_BP)).argmax(dim=-1)
    for _ in range(steps - 1):
        token_B = decoder.step(token_B).argmax(dim=-1)


def _row(
    case: str,
    quantity: str,
    value: float,
    unit: str,
    *,
    peer: str | None = None,
    ratio: float | None = None,
    note: str = "",
) -> Row:
    digits = 1 if unit == "MB" else 2
    return Row(
        bench="serving",
        case=case,
        quantity=quantity,
        value=round(value, digits),
        unit=unit,
        peer=peer,
        ratio=ratio,
        note=note,
    )
