"""Can these models be mixed, and would they fit in memory? Every problem at once, in words."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from warp_core.errors import UserError
from warp_core.policy.model import DTYPES, pick_device
from warp_core.service.documents import CheckedModel, CheckReport
from warp_core.service.jobs import Context
from warp_core.service.library import Library
from warp_core.service.protocol import CheckRequest, Selection
from warp_core.service.slots import MAX_LIVE, free_bytes
from warp_core.training.warp import Sources
from warp_core.weights import Checkpoint, adapter_base_name, check_checkpoint, require_mixable
from warp_core.workspace.sources import resolve_model

__all__ = ["check", "needed_bytes"]


@dataclass(frozen=True, kw_only=True)
class _Part:
    """A checkpoint of a selection, opened."""

    role: Literal["init", "policy", "sft"]
    name: str
    checkpoint: Checkpoint


def check(library: Library, request: CheckRequest, context: Context) -> dict[str, Any]:
    """Return a `CheckReport` as JSON. Every weight is read once; what is wrong is in the report and no error.

    Raises:
        ConfigError: the selection is neither a run nor models.
        WorkspaceError: there is no such run.
    """
    selection = request.selection
    config = library.measuring(selection)
    problems: list[str] = []
    parts: dict[str, _Part] = {}
    needed = 0
    for iteration in _iterations(library, selection):
        try:
            context.say("opening the checkpoints")
            sources = library.sources(selection, iteration)
            require_mixable(sources.init, sources.policies, towards=sources.towards)
        except UserError as error:
            problems.append(str(error))
            continue
        for part in _parts(sources, selection, iteration):
            parts.setdefault(part.checkpoint.id, part)
        needed = max(needed, needed_bytes(sources, DTYPES[config.model.dtype]))
    if not parts and selection.run is None:
        problems += _problems_of_folders(selection, context)
    for done, part in enumerate(parts.values()):
        context.checkpoint()
        context.progress(done, len(parts), f"reading {part.name}")
        one = part.checkpoint
        problems += check_checkpoint(one.path, base=one.base.path if one.base else None)
    device = pick_device()
    return CheckReport(
        ok=not problems,
        problems=tuple(dict.fromkeys(problems)),
        models=tuple(map(_described, parts.values())),
        needed_bytes=needed,
        available_bytes=free_bytes(device),
        device=str(device),
    ).model_dump(mode="json")


def needed_bytes(sources: Sources, dtype: torch.dtype) -> int:
    """Estimate what exploring takes in memory: previews and measurements have models of their own.

    Adapters: a base for the previews, a base and a model that moves for the measurements, and the factors for each.
    Full checkpoints: init, policies and SFT policy for each, a model that moves for every pane and one that is
    measured; with less, the panes take turns.
    """
    policies = [*sources.policies, sources.init]
    live = sources.sft.num_params * dtype.itemsize
    if any(policy.kind == "adapter" for policy in policies):
        factors = sum(_num_params(one) for one in policies if one.kind == "adapter") * torch.float32.itemsize
        return _size_bytes(sources.sft) + 2 * (live + factors)
    held = [*policies, *([sources.towards] if sources.towards else [])]
    return 2 * sum(map(_size_bytes, held)) + (MAX_LIVE + 1) * live


def _iterations(library: Library, selection: Selection) -> list[int]:
    run = library.run_of(selection)
    return (run.finished_iterations(library.measuring(selection).warp.policies) if run else []) or [1]


def _parts(sources: Sources, selection: Selection, iteration: int) -> Iterator[_Part]:
    run = selection.run is not None
    if run or sources.towards is not None:
        yield _Part(role="sft", name=sources.sft.path.name, checkpoint=sources.sft)
    if not run or iteration > 1:
        name = f"init of iteration {iteration}" if run else str(selection.init)
        yield _Part(role="init", name=name, checkpoint=sources.init)
    for number, policy in enumerate(sources.policies, start=1):
        name = f"policy {number} of iteration {iteration}" if run else selection.policies[number - 1]
        yield _Part(role="policy", name=name, checkpoint=policy)


def _described(part: _Part) -> CheckedModel:
    one = part.checkpoint
    dtypes = Counter(str(entry.dtype).removeprefix("torch.") for entry in one.tensors.values() if entry.is_float)
    return CheckedModel(
        role=part.role,
        name=part.name,
        id=one.id,
        kind=one.kind,
        num_params=_num_params(one),
        size_bytes=_size_bytes(one),
        dtype=" and ".join(name for name, _ in dtypes.most_common()),
    )


def _num_params(one: Checkpoint) -> int:
    """Parameters that the folder itself holds: of an adapter, its factors."""
    return sum(entry.numel for entry in one.tensors.values() if entry.is_float)


def _size_bytes(one: Checkpoint) -> int:
    return sum(entry.numel * entry.dtype.itemsize for entry in one.tensors.values())


def _problems_of_folders(selection: Selection, context: Context) -> list[str]:
    """Look at each model by itself where they could not be opened together."""
    problems: list[str] = []
    for name in (selection.init or "", *selection.policies):
        context.checkpoint()
        try:
            folder = resolve_model(name)
            problems += check_checkpoint(folder, base=_base_of(folder, selection))
        except UserError as error:
            problems.append(str(error))
    return problems


def _base_of(folder: Path, selection: Selection) -> Path | None:
    """The base of an adapter as `open_all` finds it; None for a full checkpoint."""
    named = adapter_base_name(folder)
    if named is None:
        return None
    is_here = bool(named) and Path(named).expanduser().is_dir()
    return resolve_model(selection.base or (named if is_here else selection.init or ""))
