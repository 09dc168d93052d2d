"""What the crash attacks interrupt: functions that write into one folder, run in children of their own."""

import json
import os
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from tests.training.runs import CPU
from warp_core.training.config import config_from_mapping
from warp_core.training.state import RunState, save_state
from warp_core.training.warp import train_warp
from warp_core.weights import compute_geometry, make_recipe, merge_to_folder, open_checkpoint
from warp_core.workspace.publish import publish_folder
from warp_core.workspace.store import ResultsStore
from warp_core.workspace.votes import VotesStore

__all__ = ["digests", "merge", "publish", "put", "save", "train", "vote"]

SAMPLES = 3


def publish(folder: str, text: str) -> None:
    """Replace a folder by another one."""
    with publish_folder(Path(folder) / "out", replace=True, manifest=True) as temp:
        (temp / "deep").mkdir()
        (temp / "deep" / "a").write_text(text, encoding="utf-8")
        (temp / "b").write_text(text, encoding="utf-8")


def save(folder: str, step: int) -> None:
    """Save the state of a training."""
    parts = {
        part: {"w": torch.full((64, 64), float(10 * step + number))}
        for number, part in enumerate(("masters", "ema", "exp_avg", "exp_avg_sq"))
    }
    state = RunState(step=step, fingerprint="f", **parts)
    save_state(Path(folder) / "out", state)


def train(folder: str, mapping: dict[str, Any], stop_after: int = 0) -> None:
    """Train a run to its end, or until so many steps are done, from wherever it stands."""
    out = Path(folder) / "out"
    left = [stop_after]

    def should_stop() -> bool:
        left[0] -= 1
        return left[0] == 0

    try:
        train_warp(
            config_from_mapping(mapping),
            out,
            resume=(out / "run.json").exists(),
            devices=[CPU],
            should_stop=should_stop,
        )
    except KeyboardInterrupt:
        if not stop_after:
            raise


def merge(folder: str, init: str, policies: list[str], kind: str) -> None:
    """Export a merge."""
    start = open_checkpoint(Path(init))
    ends = [open_checkpoint(Path(policy), base=Path(init)) for policy in policies]
    merge_to_folder(
        make_recipe(start, ends, method="slerp", eta=0.5),
        init=start,
        policies=ends,
        geometry=compute_geometry(start, ends),
        out=Path(folder) / "out",
        kind="adapter" if kind == "adapter" else "full",
    )


def put(folder: str, acknowledged: str, writer: str, rows: int) -> None:
    """Store points; the number of each is appended to `acknowledged` once it is stored."""
    _write(acknowledged, rows, lambda store, i: store.put_point(*_point(writer, i)), Path(folder))


def _point(writer: str, i: int) -> tuple[str, dict[str, Any], list[dict[str, Any]]]:
    return f"{writer}-{i}", {"writer": writer, "i": i}, [{"n": n, "text": "x" * 50} for n in range(SAMPLES)]


def _write(acknowledged: str, rows: int, one: Callable[[ResultsStore, int], object], folder: Path) -> None:
    told = os.open(acknowledged, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    with ResultsStore(folder / "results.sqlite") as store:
        for i in range(rows):
            one(store, i)
            os.write(told, f"{i}\n".encode())


def vote(folder: str, votes: int, acknowledged: str = "") -> list[str]:
    """Store votes; their ids, which are appended to `acknowledged` as well where that is given."""
    ids = []
    told = os.open(acknowledged, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644) if acknowledged else None
    with VotesStore(Path(folder) / "votes.sqlite") as store:
        for number in range(votes):
            ids.append(store.put({"prompt": "p" * 200, "number": number})["id"])
            if told is not None:
                os.write(told, f"{ids[-1]}\n".encode())
    return ids


def digests(folder: Path) -> dict[str, str]:
    """Every file below a folder by the hash of its bytes, JSON by what it says without clocks."""
    found = {}
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            found[str(file.relative_to(folder))] = sha256(_without_clocks(file)).hexdigest()
    return found


def _without_clocks(file: Path) -> bytes:
    data = file.read_bytes()
    if file.suffix != ".json":
        return data
    document = json.loads(data)
    return json.dumps({name: value for name, value in document.items() if name not in ("created", "time")}).encode()
