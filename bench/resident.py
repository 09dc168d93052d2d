"""A slider position to the weights of SmolLM2 in memory: full checkpoints in place, adapters in place and in the bank.

The limit of the full merge is the bytes of base and task vectors read and of the model written, at the rate of a copy
of the same memory by the same threads, measured in turns. Adapters have two ways: `ResidentMerge` folds them into the
base's weights (what an export writes), the bank moves no weights and sums up small factors (what the app does).
"""

import ctypes
import itertools
import statistics
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from bench.models import make_inputs
from bench.rows import Row
from bench.settings import Settings
from bench.timing import interleaved_s
from warp_core.policy.bank import AdapterBank
from warp_core.policy.model import DTYPES, load_policy
from warp_core.weights import (
    Checkpoint,
    Coefficients,
    ResidentMerge,
    coefficients,
    compute_geometry,
    make_recipe,
    open_checkpoint,
)

__all__ = ["measure"]

DEMO = Path(__file__).resolve().parents[1] / "assets" / "demo-run" / "iteration-1"
ETAS = (0.2, 0.4, 0.6, 0.8)
LIMIT = "limit: bytes / copy bandwidth"


def measure(settings: Settings) -> list[Row]:
    """Return the milliseconds of a move, and their share of the limit."""
    torch.set_num_threads(settings.threads)
    repeats = 4 if settings.quick else 12
    rows: list[Row] = []
    for dtype in ("float32", "bfloat16"):
        rows += _full(settings, dtype, repeats)
    return [*rows, *_adapters(settings, repeats)]


def _full(settings: Settings, dtype: str, repeats: int) -> list[Row]:
    size = "tiny" if settings.quick else "135M"
    inputs = make_inputs(settings.scratch, settings.smollm2, size=size, dtype=dtype, policies=2)
    init, *policies = (open_checkpoint(folder) for folder in (inputs.init, *inputs.policies))
    model = load_policy(inputs.init, dtype=DTYPES[dtype]).model
    resident = ResidentMerge(model, init=init, policies=policies)
    size_bytes = 4 * init.num_params * DTYPES[dtype].itemsize  # three checkpoints read, one written
    move = _moves(resident, _positions(init, policies))
    copy, copied_bytes = _copier(size_bytes // 4, settings.threads)
    found = interleaved_s({"move": move, "copy": copy}, repeats=repeats, warm=2)
    move_s, copy_s = (statistics.median(found[name]) for name in ("move", "copy"))
    limit_s = copy_s * size_bytes / copied_bytes
    ratio = limit_s / move_s
    case = f"{size} {dtype}, init and 2 policies"
    note = "read and written bytes of a copy in the same threads, in turns"
    aim: dict[str, Any] = {"aim": ">= 0.7", "meets": ratio >= 0.7}
    return [
        _row(case, LIMIT, 1e3 * limit_s, note=note),
        _row(case, "slider to weights, full", 1e3 * move_s, peer=LIMIT, ratio=ratio, note="bitwise an export", **aim),
    ]


def _adapters(settings: Settings, repeats: int) -> list[Row]:
    base = open_checkpoint(settings.smollm2)
    adapters = [open_checkpoint(folder, base=settings.smollm2) for folder in sorted(DEMO.glob("policy-*/checkpoint"))]
    positions = _positions(base, adapters)
    folded = load_policy(settings.smollm2)
    move = _moves(ResidentMerge(folded.model, init=base, policies=adapters), positions)
    bank = AdapterBank(load_policy(settings.smollm2), base)
    bank.load(adapters)
    sources = [base, *adapters]
    ends = [None, bank.mix(positions[-1], sources)]
    turns = [itertools.cycle(positions) for _ in range(2)]
    calls: dict[str, Callable[[], object]] = {
        "one": lambda: bank.table([bank.mix(next(turns[0]), sources)]),
        "three": lambda: bank.table([bank.mix(next(turns[1]), sources), *ends]),
    }
    found = interleaved_s(calls, repeats=10 * repeats, warm=5)
    folds = interleaved_s({"fold": move}, repeats=repeats, warm=2)["fold"]
    case = f"SmolLM2 float32, {len(adapters)} adapters of the bundled run"
    rows = []
    for name, what in {"one": "one model", "three": "three panes"}.items():
        value = 1e3 * statistics.median(found[name])
        meets = value < 5
        rows.append(_row(case, f"slider to weights, bank, {what}", value, aim="< 5 ms", meets=meets, note="the app's"))
    value = 1e3 * statistics.median(folds)
    return [
        *rows,
        _row(case, "slider to weights, folded into the base", value, note="ResidentMerge; writes all weights"),
    ]


def _positions(init: Checkpoint, policies: list[Checkpoint]) -> list[Coefficients]:
    geometry = compute_geometry(init, policies)
    return [coefficients(make_recipe(init, policies, eta=eta), geometry) for eta in ETAS]


def _moves(resident: ResidentMerge, positions: list[Coefficients]) -> Callable[[], None]:
    turns = itertools.cycle(positions)
    return lambda: resident.move(next(turns))


def _copier(size_bytes: int, threads: int) -> tuple[Callable[[], None], int]:
    """A copy of so many bytes by threads, and the bytes that it reads and writes."""
    source, target = (torch.ones(size_bytes, dtype=torch.uint8) for _ in range(2))
    step = -(-size_bytes // threads)

    def part(start: int) -> None:
        length = min(step, size_bytes - start)
        ctypes.memmove(target.data_ptr() + start, source.data_ptr() + start, length)

    def copy() -> None:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(part, range(0, size_bytes, step)))

    return copy, 2 * size_bytes


def _row(case: str, quantity: str, value: float, **more: Any) -> Row:
    return Row(bench="resident", case=case, quantity=quantity, value=value, unit="ms", **more)
