"""One streaming pass over all checkpoints gives the Gram matrix of every tensor, in float64; layers are sums of those.

Shape suffixes: M policies, N = 1 + M vectors [theta_init, delta_1, ..., delta_M]; C elements of one piece.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from warp_core.errors import MismatchError, NonFiniteError, WorkspaceError
from warp_core.weights.adapters import FactorStack, read_adapter, stack_adapters, weight_name
from warp_core.weights.checkpoints import Checkpoint, require_mixable, require_unchanged
from warp_core.weights.geometry import Geometry, LayerInfo
from warp_core.weights.headers import TensorEntry
from warp_core.weights.layers import group_of, layer_order
from warp_core.weights.recipes import Granularity
from warp_core.weights.tensor_io import TensorReader, row_chunks
from warp_core.weights.workers import PIECE_NUMEL, Scratch, Workers, blocks_of
from warp_core.workspace.sealed import read_sealed, write_sealed

__all__ = ["FORMAT", "compute_geometry"]

FORMAT = 2  # raise it when the numbers below change their meaning: old cache files are then ignored

Floats = NDArray[np.float64]
Progress = Callable[[int, int], None]
Block = tuple[TensorEntry, int, int]  # elements start..stop of a tensor
TensorGrams = dict[str, tuple[int, Floats]]  # tensor -> (number of elements, gram [N, N]); moved tensors only below


def compute_geometry(
    init: Checkpoint,
    policies: Sequence[Checkpoint],
    *,
    granularity: Granularity = "layer",
    cache_dir: Path | None = None,
    progress: Progress | None = None,
) -> Geometry:
    """Inner products of theta_init and all task vectors, per layer (or tensor, or for the whole model).

    Reads each checkpoint once, in pieces that stay in the cache of a core, with one thread per core. For adapters the
    products of updates come from the factors, <B1 A1, B2 A2> = sum((B1' B2) * (A1 A2')), and only the base is read.
    Policies may be in any float dtype; differences and sums are float64. Rows are the layers that any adapter moves, or
    all layers for full checkpoints.

    cache_dir: the result is kept there under the ids of the checkpoints; all granularities share one file.
    progress: called with (elements done, elements in all).

    Raises MismatchError if the checkpoints do not belong together, NonFiniteError naming tensor and file.
    """
    if not policies:
        raise MismatchError("no policies given; name at least one")
    require_mixable(init, policies)
    require_unchanged([init, *policies])
    grams, moved = _cached(init, policies, cache_dir, progress)
    groups: dict[str, list[str]] = {}
    for name in grams:
        groups.setdefault(group_of(name, granularity=granularity), []).append(name)
    kept = {group_of(name, granularity=granularity) for name in moved}
    names = sorted((name for name in groups if name in kept), key=layer_order)
    width = 1 + len(policies)
    totals = [np.sum([grams[tensor][1] for tensor in groups[name]], axis=0) for name in names]
    sizes = [sum(grams[tensor][0] for tensor in groups[name]) for name in names]
    return Geometry(
        init=init.id,
        policies=tuple(policy.id for policy in policies),
        granularity=granularity,
        layers=tuple(LayerInfo(name=name, num_params=size) for name, size in zip(names, sizes, strict=True)),
        gram_LNN=np.asarray(totals, dtype=np.float64).reshape(len(names), width, width),
    )


def _cached(
    init: Checkpoint, policies: Sequence[Checkpoint], cache_dir: Path | None, progress: Progress | None
) -> tuple[TensorGrams, list[str]]:
    ids = [init.id, *(policy.id for policy in policies)]
    path = (
        cache_dir / f"geometry-{hashlib.sha256(json.dumps([FORMAT, ids]).encode()).hexdigest()}.json"
        if cache_dir
        else None
    )
    if path is not None and (known := read_sealed(path)) is not None:  # a damaged cache is computed again
        return _from_json(known)
    adapted = policies[0].kind == "adapter"
    result = _adapter_grams(init, policies, progress) if adapted else _full_grams(init, policies, progress)
    require_unchanged([init, *policies])  # what was replaced meanwhile would be kept under the ids of before
    if path is not None:
        with suppress(WorkspaceError):  # a cache that cannot be written costs time, never an answer
            write_sealed(path, _to_json(*result))
    return result


def _full_grams(
    init: Checkpoint, policies: Sequence[Checkpoint], progress: Progress | None
) -> tuple[TensorGrams, list[str]]:
    done, total, width, scratch = 0, init.num_params, 1 + len(policies), Scratch()
    blocks = ((entry, start, stop) for entry in _in_file_order(init) for start, stop in blocks_of(entry.numel))
    with TensorReader() as reader, Workers() as workers:

        def work(block: Block) -> tuple[Block, Floats]:
            entry, start, stop = block
            entries = [entry, *(policy.tensors[entry.name] for policy in policies)]
            return block, _gram_of_block(reader, entries, start, stop, scratch)

        grams = {entry.name: (entry.numel, np.zeros((width, width))) for entry in _in_file_order(init)}
        for (entry, start, stop), gram_NN in workers.map(work, blocks):
            grams[entry.name][1][...] += gram_NN
            done += stop - start
            if progress:
                progress(done, total)
    return grams, list(grams)


def _gram_of_block(
    reader: TensorReader, entries: Sequence[TensorEntry], start: int, stop: int, scratch: Scratch
) -> Floats:
    """The Gram of elements start..stop of one tensor, with the differences taken in float64.

    Threads take turns in what Python does between two operations, so there are as few of these as can be.
    """
    width = len(entries)
    gram_NN, part_NN = torch.zeros(2, width, width, dtype=torch.float64)
    cells = [(i, j, part_NN[i, j]) for i in range(width) for j in range(i, width)]
    buffer = scratch.take("gram", width * PIECE_NUMEL, torch.float64)
    stored = [
        reader.read_into(scratch.take(f"stored {k}", stop - start, entry.dtype), entry, start=start)
        for k, entry in enumerate(entries)
    ]
    x_NC, numel = buffer.view(width, PIECE_NUMEL), 0
    for first in range(0, stop - start, PIECE_NUMEL):
        if numel != min(PIECE_NUMEL, stop - start - first):
            numel = min(PIECE_NUMEL, stop - start - first)
            rows, deltas = [row[:numel] for row in x_NC], x_NC[1:, :numel]
        for row, values in zip(rows, stored, strict=True):
            row.copy_(values[first : first + numel])
        deltas.sub_(rows[0])
        for i, j, cell in cells:  # dots beat a thin matrix product, and make the Gram exactly symmetric
            torch.dot(rows[i], rows[j], out=cell)
        gram_NN.add_(part_NN)
    found: Floats = gram_NN.numpy()
    if not np.isfinite(found).all():
        _raise_nonfinite(reader, entries, start, stop)
    return found + np.triu(found, 1).T


def _raise_nonfinite(reader: TensorReader, entries: Sequence[TensorEntry], start: int, stop: int) -> None:
    for entry in entries:
        if not torch.isfinite(reader.read(entry, start=start, stop=stop)).all():
            raise NonFiniteError(f"{entry.file}: tensor {entry.name!r} holds NaN or infinity; use another checkpoint")
    raise NonFiniteError(
        f"{entries[0].file}: the squares of tensor {entries[0].name!r} overflow; use another checkpoint"
    )


def _adapter_grams(
    init: Checkpoint, policies: Sequence[Checkpoint], progress: Progress | None
) -> tuple[TensorGrams, list[str]]:
    """Grams of W, B_0 A_0, ..., B_M A_M per tensor, turned into those of [theta_init, delta_1, ..., delta_M]."""
    stacks = {
        weight_name(module, init.full.tensors) or module: stack
        for module, stack in stack_adapters([read_adapter(c) for c in (init, *policies)]).items()
    }
    width, scratch = 1 + len(policies), Scratch()
    grams: TensorGrams = {}
    done, total = 0, init.num_params
    with TensorReader() as reader, Workers() as workers:

        def work(entry: TensorEntry) -> tuple[TensorEntry, Floats]:
            stack = stacks.get(entry.name)
            if stack is not None:
                return entry, _factor_gram(reader, entry, stack, width)
            gram_NN = np.zeros((width, width))
            for start, stop in blocks_of(entry.numel):
                gram_NN[0, 0] += _gram_of_block(reader, [entry], start, stop, scratch)[0, 0]
            return entry, gram_NN

        for entry, gram_NN in workers.map(work, _in_file_order(init.full)):
            grams[entry.name] = (entry.numel, gram_NN)
            done += entry.numel
            if progress:
                progress(done, total)
    return grams, sorted(stacks)


def _factor_gram(reader: TensorReader, entry: TensorEntry, stack: FactorStack, width: int) -> Floats:
    """The Gram of one adapted tensor: theta_init = W + U_0, delta_m = U_m - U_0, all U = B A over the rows of one A.

    The differences B_m - B_0 are taken before any product, so a small step from init loses no digits where A is shared.
    """
    out, rank = len(stack.b_all), len(stack.a)
    a = stack.a.double()
    b_NOR = torch.zeros(width, out, rank, dtype=torch.float64)
    columns = stack.b_all.double()
    for k in range(width):
        mine = stack.source == k
        b_NOR[k].index_add_(1, stack.row[mine], columns[:, mine])
    b_NOR[1:] -= b_NOR[0].clone()
    aa_RR = a @ a.T
    bb_NNRR = torch.einsum("nor,mos->nmrs", b_NOR, b_NOR)
    gram_NN = torch.einsum("nmrs,rs->nm", bb_NNRR, aa_RR).numpy()
    weight_square, wa_OR = _weight_times_a(reader, entry, a, transposed=stack.transposed)
    cross_N = torch.einsum("nor,or->n", b_NOR, wa_OR).numpy()
    gram_NN[0, :] += cross_N
    gram_NN[:, 0] += cross_N
    gram_NN[0, 0] += weight_square
    return np.asarray((gram_NN + gram_NN.T) / 2)


def _weight_times_a(
    reader: TensorReader, entry: TensorEntry, a: torch.Tensor, *, transposed: bool
) -> tuple[float, torch.Tensor]:
    """|W|^2 and W A' [out, R] (so that <W, B A> = sum(B * W A')), reading W in row pieces."""
    rows, width = entry.shape
    wa = torch.zeros(width if transposed else rows, len(a), dtype=torch.float64)
    square = 0.0
    for start, stop in row_chunks(entry.shape):
        piece = reader.read(entry, start=start, stop=stop).double()
        square += torch.dot(piece, piece).item()
        if not np.isfinite(square):
            _raise_nonfinite(reader, [entry], start, stop)
        block, first, last = piece.view(-1, width), start // width, stop // width
        if transposed:
            wa += block.T @ a[:, first:last].T
        else:
            wa[first:last] = block @ a.T
    return square, wa


def _in_file_order(checkpoint: Checkpoint) -> list[TensorEntry]:
    floats = [entry for entry in checkpoint.tensors.values() if entry.is_float]
    return sorted(floats, key=lambda entry: (entry.file, entry.start))


def _to_json(grams: TensorGrams, moved: Sequence[str]) -> dict[str, Any]:
    tensors = {name: [numel, gram.tolist()] for name, (numel, gram) in grams.items()}
    return {"moved": list(moved), "tensors": tensors}


def _from_json(data: dict[str, Any]) -> tuple[TensorGrams, list[str]]:
    grams = {name: (int(numel), np.asarray(gram, dtype=np.float64)) for name, (numel, gram) in data["tensors"].items()}
    return grams, list(data["moved"])
