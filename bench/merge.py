"""Policies on disk to a merged model on disk: `warp-core merge` beside mergekit's `nuslerp`, and its passes beside the
limit of the machine.

Every merge is a process of its own, with start-up; the inputs are in the system's cache for both. Ours ends when the
files are on the disk (fdatasync), mergekit when they are written. The hashes of the inputs are known from the first
run, which is measured too; their inner products are computed anew in every run.

    python -m bench.merge SETTINGS.json      the passes of one case, in a process of its own: a line of JSON
"""

import json
import os
import shutil
import statistics
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from bench.models import Inputs, make_inputs
from bench.processes import Done, run_measured, run_peer
from bench.rows import Row
from bench.settings import Settings
from bench.timing import interleaved_s
from warp_core.weights import compute_geometry, make_recipe, merge_to_folder, open_checkpoint, slerp_pair

__all__ = ["measure"]

CASES = (("135M", "float32"), ("135M", "bfloat16"), ("1.1B", "bfloat16"))
QUICK_CASES = (("tiny", "float32"),)
POLICIES = 2  # as many as nuslerp takes
BLOCK_BYTES = 1 << 20
AIMS = {"float32": 6.0, "default": 4.0}
LIMIT = "limit: inputs read twice, output written, fdatasync"


@dataclass(frozen=True, kw_only=True)
class _Case:
    size: str
    dtype: str
    inputs: Inputs

    @property
    def name(self) -> str:
        """What the rows call it."""
        short = {"float32": "fp32", "bfloat16": "bf16"}[self.dtype]
        return f"{self.size} {short}, init and {POLICIES} policies"


def measure(settings: Settings) -> list[Row]:
    """Return wall time and private memory of both, the passes beside their limit, and the error of the results."""
    rows: list[Row] = []
    for size, dtype in QUICK_CASES if settings.quick else CASES:
        inputs = make_inputs(settings.scratch, settings.smollm2, size=size, dtype=dtype, policies=POLICIES)
        case = _Case(size=size, dtype=dtype, inputs=inputs)
        rows += _beside_the_peer(settings, case)
        rows += _beside_the_limit(settings, case)
        if settings.quick or (size, dtype) == ("135M", "bfloat16"):
            rows += _errors(settings, case)
    return rows


def _beside_the_peer(settings: Settings, case: _Case) -> Iterator[Row]:
    """Start-up included, in turns."""
    with _Folders(settings) as folders:
        first = _ours(settings, case, folders)
        ours = [_ours(settings, case, folders) for _ in range(1 if settings.quick else 3)]
        wall_s = statistics.median(done.wall_s for done in ours)
        memory_mb = max(done.private_mb for done in ours)
        small = memory_mb < 300
        yield _row(case, "wall time", wall_s, "s", note="start-up included, inputs hashed before")
        yield _row(case, "wall time, files never seen before", first.wall_s, "s", note="hashes all inputs")
        aim = "< 300 MB at any size"
        yield _row(case, "private memory", memory_mb, "MB", aim=aim, meets=small, note="most RssAnon, torch included")
        if settings.peer_python is None:
            return
        for kind, arithmetic in {"float32": "float32", "default": case.dtype}.items():
            if kind == "default" and case.dtype == "float32":
                continue  # the same as the first
            done = _theirs(settings, case, folders, arithmetic=arithmetic, output=case.dtype)
            ratio = done.wall_s / wall_s
            peer, least = f"mergekit nuslerp, {arithmetic}", AIMS[kind]
            aimed: dict[str, Any] = {"aim": f">= {least:.0f} x", "meets": ratio >= least}
            yield _row(case, "wall time", done.wall_s, "s", peer=peer, ratio=ratio, note="the peer's own time", **aimed)
            yield _row(case, "private memory", done.private_mb, "MB", peer=peer, ratio=done.private_mb / memory_mb)


def _beside_the_limit(settings: Settings, case: _Case) -> Iterator[Row]:
    task = settings.scratch / "merge-task.json"
    names = {"init": str(case.inputs.init), "policies": [str(policy) for policy in case.inputs.policies]}
    sizes = {"scratch": str(settings.scratch), "threads": settings.threads, "repeats": 1 if settings.quick else 3}
    task.write_text(json.dumps(names | sizes), encoding="utf-8")
    try:
        command = [sys.executable, "-m", "bench.merge", str(task)]
        found = run_measured(command, environment=settings.environment()).answer()
    finally:
        task.unlink()
    ratio = found["limit"] / found["merge"]
    yield _row(case, LIMIT, found["limit"], "s", note="median, in turns with the next")
    aim: dict[str, Any] = {"aim": ">= 0.7", "meets": ratio >= 0.7}
    yield _row(case, "the passes", found["merge"], "s", peer=LIMIT, ratio=ratio, note="in one process", **aim)
    yield _row(case, "the passes: inner products", found["geometry"], "s")
    yield _row(case, "the passes: sum and output", found["merge"] - found["geometry"], "s")


def _errors(settings: Settings, case: _Case) -> Iterator[Row]:
    """One angle per tensor, as mergekit has it, written in float32: the error of the arithmetic alone."""
    with _Folders(settings) as folders:
        _ours(settings, case, folders, "--granularity", "tensor", "--dtype", "float32")
        ours = folders.ours.rename(folders.ours.with_name("ours-per-tensor"))
        yield _row(case, "error beside float64", _error(case, ours), "x", note="of the update, per tensor; ours")
        if settings.peer_python is not None:
            for arithmetic in dict.fromkeys(("float32", case.dtype)):
                _theirs(settings, case, folders, arithmetic=arithmetic, output="float32")
                error, peer = _error(case, folders.theirs), f"mergekit nuslerp, {arithmetic}"
                same: dict[str, Any] = (
                    {"aim": "agrees: < 1e-4", "meets": error < 1e-4} if arithmetic == "float32" else {}
                )
                yield _row(case, "error beside float64", error, "x", peer=peer, note="the peer's own error", **same)


def _row(case: _Case, quantity: str, value: float, unit: str, **more: Any) -> Row:
    return Row(bench="merge", case=case.name, quantity=quantity, value=value, unit=unit, **more)


class _Folders:
    """Where merges go, and a cache of our own: a context manager that removes all of it."""

    def __init__(self, settings: Settings) -> None:
        self.root = settings.scratch / "merge"
        self.ours, self.theirs, self.cache = (self.root / name for name in ("ours", "theirs", "cache"))

    def __enter__(self) -> "_Folders":
        shutil.rmtree(self.root, ignore_errors=True)
        self.root.mkdir(parents=True)
        return self

    def __exit__(self, *error: object) -> None:
        shutil.rmtree(self.root, ignore_errors=True)


def _ours(settings: Settings, case: _Case, folders: _Folders, *options: str) -> Done:
    for old in (folders.ours, folders.cache / "geometry"):
        shutil.rmtree(old, ignore_errors=True)
    _into_the_systems_cache(case)
    command: list[str | Path] = [sys.executable, "-m", "warp_core", "merge", "--init", case.inputs.init, "--policies"]
    command += [*case.inputs.policies, "--out", folders.ours, "--eta", "1", *options]
    environment = settings.environment() | {"WARP_CACHE": str(folders.cache)}
    return run_measured(command, environment=environment)


def _theirs(settings: Settings, case: _Case, folders: _Folders, *, arithmetic: str, output: str) -> Done:
    shutil.rmtree(folders.theirs, ignore_errors=True)
    _into_the_systems_cache(case)
    models = [case.inputs.init, *case.inputs.policies]
    return run_peer(settings, "mergekit_nuslerp", *models, folders.theirs, arithmetic, output)


def _files(inputs: Inputs) -> list[Path]:
    return [file for folder in (inputs.init, *inputs.policies) for file in sorted(folder.glob("*.safetensors"))]


def _into_the_systems_cache(case: _Case) -> None:
    buffer = bytearray(BLOCK_BYTES)
    for path in _files(case.inputs):
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def _error(case: _Case, merged: Path) -> float:
    """|merged - SLERP in float64| / |its task vector|, one angle per tensor, over all tensors."""
    wrong = moved = 0.0
    tensors = [_by_name(folder) for folder in (case.inputs.init, *case.inputs.policies, merged)]
    for name in tensors[0]:
        init, first, second, found = (_tensor(table[name], name).double().flatten() for table in tensors)
        first -= init
        second -= init
        cosine = float(torch.cosine_similarity(first, second, dim=0))
        keep, join = slerp_pair(cosine, 0.5)
        update = keep * first + join * second
        wrong += float((found - init - update).square().sum())
        moved += float(update.square().sum())
    return (wrong / moved) ** 0.5


def _by_name(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as opened:
            found |= dict.fromkeys(opened.keys(), path)
    return found


def _tensor(path: Path, name: str) -> torch.Tensor:
    with safe_open(path, framework="pt") as opened:
        tensor: torch.Tensor = opened.get_tensor(name)
    return tensor


def _passes(task: Mapping[str, Any]) -> dict[str, float]:
    """Seconds of the passes and of the limit, medians, in turns."""
    torch.set_num_threads(task["threads"])
    scratch = Path(task["scratch"]) / "merge-passes"
    init, *policies = (open_checkpoint(Path(folder)) for folder in (task["init"], *task["policies"]))
    files = sorted({entry.file for one in (init, *policies) for entry in one.tensors.values()})
    size_bytes = sum(entry.size_bytes for entry in init.tensors.values())
    recipe = make_recipe(init, policies)
    products_s: list[float] = []

    def merge() -> None:
        shutil.rmtree(scratch, ignore_errors=True)
        began = time.perf_counter()
        geometry = compute_geometry(init, policies)
        products_s.append(time.perf_counter() - began)
        merge_to_folder(recipe, init=init, policies=policies, geometry=geometry, out=scratch / "merged")

    def limit() -> None:
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        _read_and_write(files, size_bytes, scratch / "limit.bin", threads=task["threads"])

    try:
        found = interleaved_s({"merge": merge, "limit": limit}, repeats=task["repeats"])
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return {name: statistics.median(times) for name, times in found.items()} | {
        "geometry": statistics.median(products_s[1:])
    }


def _read_and_write(files: list[Path], size_bytes: int, out: Path, *, threads: int) -> None:
    """Read all files twice into small buffers, and write so many bytes to a file whose room is taken first."""

    def read(job: tuple[int, int, int]) -> None:
        buffer = bytearray(BLOCK_BYTES)
        for offset in range(job[1], job[2], BLOCK_BYTES):
            os.preadv(job[0], [buffer], offset)

    def write(job: tuple[int, int, int]) -> None:
        block = memoryview(bytearray(BLOCK_BYTES))
        for offset in range(job[1], job[2], BLOCK_BYTES):
            os.pwrite(job[0], block[: min(BLOCK_BYTES, job[2] - offset)], offset)

    def parts(file: int, size: int) -> Iterator[tuple[int, int, int]]:
        step = -(-size // threads)
        yield from ((file, start, min(start + step, size)) for start in range(0, size, step))

    opened = [os.open(path, os.O_RDONLY) for path in files]
    target = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with ThreadPoolExecutor(threads) as pool:
            for _ in range(2):
                list(pool.map(read, (job for file in opened for job in parts(file, os.fstat(file).st_size))))
            os.posix_fallocate(target, 0, size_bytes)
            list(pool.map(write, parts(target, size_bytes)))
        os.fdatasync(target)
    finally:
        for file in [*opened, target]:
            os.close(file)


if __name__ == "__main__":
    print(json.dumps(_passes(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))))
