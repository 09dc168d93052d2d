"""Write a merged model to disk piece by piece: memory stays at a few pieces, whatever the size of the model.

init = open_checkpoint(...); policies = [open_checkpoint(...), ...]
recipe = make_recipe(init, policies, eta=0.3)
merge_to_folder(recipe, init=init, policies=policies, geometry=compute_geometry(init, policies), out=Path("merged"))
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from warp_core.errors import CheckpointError, GeometryError, MismatchError, NonFiniteError, RecipeError
from warp_core.weights.adapter_folder import write_adapter
from warp_core.weights.adapters import merge_adapters, read_adapter, stack_adapters, weight_name
from warp_core.weights.blend import add_update, blend, working_dtype
from warp_core.weights.checkpoints import Checkpoint, require_mixable, require_unchanged
from warp_core.weights.coefficients import Coefficients, coefficients
from warp_core.weights.folders import weight_table
from warp_core.weights.geometry import Geometry
from warp_core.weights.headers import TensorEntry
from warp_core.weights.layers import layer_of, layer_order
from warp_core.weights.model_files import write_card, write_model_files, write_recipe_file
from warp_core.weights.recipes import Recipe
from warp_core.weights.shards import Shard, parse_dtype, parse_size, plan_shards, write_index
from warp_core.weights.tensor_io import ShardWriter, TensorReader, row_chunks
from warp_core.weights.workers import SUM_NUMEL, Scratch, Workers, blocks_of
from warp_core.workspace.publish import publish_folder

__all__ = ["MergeReport", "merge_to_folder"]

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class MergeReport:
    """What a merge wrote, and how long it took (wall_s seconds)."""

    out: Path
    recipe: Recipe
    coefficients: Coefficients
    num_params: int
    size_bytes: int
    wall_s: float

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary; the coefficients as {layer: [M]}."""
        return {
            "out": str(self.out),
            "recipe": self.recipe.to_json(),
            "coefficients": self.coefficients.to_json(),
            "num_params": self.num_params,
            "size_bytes": self.size_bytes,
            "wall_s": round(self.wall_s, 3),
        }


def merge_to_folder(
    recipe: Recipe,
    *,
    init: Checkpoint,
    policies: Sequence[Checkpoint],
    geometry: Geometry,
    out: Path,
    towards: Checkpoint | None = None,
    dtype: torch.dtype | str | None = None,
    max_shard_size: int | str = "5GB",
    kind: Literal["full", "adapter"] = "full",
    base_name: str | None = None,
    progress: Progress | None = None,
) -> MergeReport:
    """Publish the merged model as a complete Hugging Face folder (kind="full") or PEFT folder (kind="adapter").

    out: a folder that does not exist yet; it appears whole or not at all.
    dtype: of the weights, e.g. "bfloat16"; default: that of init, tensor by tensor (float32 for an adapter).
    max_shard_size: bytes, or "5GB", "200MB".
    base_name: what the card (and an adapter's config) call the base model; default: the name that the sources give.
    progress: called with (elements done, elements in all).

    Arithmetic is float32 at least. eta = 0 gives init (or `towards`) bitwise; a single policy with eta = 1 is that
    policy bitwise when the dtypes agree.

    Raises RecipeError if recipe and checkpoints disagree or sizes make no sense, MismatchError, GeometryError,
    NonFiniteError if a value does not fit `dtype`, WorkspaceError if `out` exists or the disk fails.
    """
    started = time.monotonic()
    _check_ids(recipe, init, policies, towards)
    require_mixable(init, policies, towards=towards)
    require_unchanged([init, *policies, *([towards] if towards else [])])
    target, limit = parse_dtype(dtype), parse_size(max_shard_size)
    coefs = coefficients(recipe, geometry)
    sources = (init, *policies, *([towards] if towards else []))
    with publish_folder(Path(out)) as folder:
        if kind == "adapter":
            _write_adapter_weights(folder, coefs, sources, towards, target or torch.float32, base_name)
        else:
            _write_full_weights(folder, _Merge(coefs, sources), target, limit, progress)
        write_model_files(folder, sources, dtype=target, kind=kind)
        write_recipe_file(folder, recipe, coefs, sources)
        write_card(folder, recipe, sources, kind=kind, base_name=base_name)
        require_unchanged(sources)  # a file that changed while it was read gives a mix of two models
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        stem = "adapter_model" if kind == "adapter" else "model"
        num_params = sum(entry.numel for entry in weight_table(folder, stem=stem).values())
    return MergeReport(
        out=Path(out),
        recipe=recipe,
        coefficients=coefs,
        num_params=num_params,
        size_bytes=size,
        wall_s=time.monotonic() - started,
    )


class _Merge:
    """The merged tensors of a set of sources, piece by piece."""

    def __init__(self, coefs: Coefficients, sources: Sequence[Checkpoint]) -> None:
        self.base = sources[0].full
        self.tensors = self.base.tensors
        self._coefs = coefs
        self._sources = sources
        self._sources_LK = coefs.sources_LK[:, : len(sources)]
        self._scratch = Scratch()
        self._adapted = any(source.kind == "adapter" for source in sources)
        if not self._adapted:
            require_rows(coefs, [entry.name for entry in self.tensors.values() if entry.is_float])
        factors = [read_adapter(source) for source in sources] if self._adapted else []
        self._stacks = {weight_name(name, self.tensors): stack for name, stack in stack_adapters(factors).items()}

    def is_elementwise(self, entry: TensorEntry) -> bool:
        """Whether `block` gives the tensor; else `adapted_pieces` does."""
        return self._coefs.row(entry.name) is None or not entry.is_float or not self._adapted

    def block(self, reader: TensorReader, entry: TensorEntry, start: int, stop: int) -> Iterator[torch.Tensor]:
        """1-D pieces of elements start..stop, each good until the next; masks and position ids are those of init.

        From any number of threads, each of which has its own memory.
        """
        row = self._coefs.row(entry.name)
        if row is None or not entry.is_float:
            entries, factors_K = [entry], np.ones(1)
        else:
            factors_K = self._sources_LK[row]
            used = [k for k, factor in enumerate(factors_K) if factor != 0] or [0]
            entries, factors_K = [self._sources[k].tensors[entry.name] for k in used], factors_K[used]
        dtype = working_dtype(*(one.dtype for one in entries))
        for first in range(start, stop, SUM_NUMEL):
            numel = min(SUM_NUMEL, stop - first)
            pieces = [
                reader.read_into(self._scratch.take(f"source {k}", numel, one.dtype), one, start=first)
                for k, one in enumerate(entries)
            ]
            if row is None or not entry.is_float:
                yield pieces[0]
            else:
                out, term = (self._scratch.take(name, numel, dtype) for name in ("total", "term"))
                yield blend(pieces, factors_K, out=out, term=term)

    def adapted_pieces(self, reader: TensorReader, entry: TensorEntry) -> Iterator[tuple[int, torch.Tensor]]:
        """(start, 1-D piece) of a tensor in the rows of an adapter, in the pieces in which a resident merge does it.

        How a matrix product is rounded depends on its shape and its threads: both must be the same there.
        """
        row = self._coefs.row(entry.name)
        assert row is not None, entry.name
        scale = float(np.float32(self._sources_LK[row].sum()))
        stack = self._stacks.get(entry.name)
        b = stack.weighted_b(self._sources_LK[row]) if stack is not None else None
        width = entry.shape[-1] if entry.shape else 1
        for start, stop in row_chunks(entry.shape):
            stored = reader.read(entry, start=start, stop=stop)
            if stack is not None and b is not None and b.any():
                weight = stored.to(working_dtype(entry.dtype)).view(-1, width)
                yield start, add_update(weight, b, stack, scale=scale, first=start // width).reshape(-1)
            else:
                yield start, blend([stored], np.array([scale]))


def require_rows(coefs: Coefficients, names: Sequence[str]) -> None:
    """Raise GeometryError unless every tensor has a row: nothing is silently left as it was."""
    lacking = [name for name in names if coefs.row(name) is None]
    if lacking:
        raise GeometryError(f"tensor {lacking[0]!r} belongs to no layer of the geometry; compute it for this model")


def _write_full_weights(
    folder: Path, merge: _Merge, dtype: torch.dtype | None, limit: int, progress: Progress | None
) -> None:
    entries = sorted(merge.tensors.values(), key=lambda entry: (layer_order(layer_of(entry.name)), entry.name))
    specs = {entry.name: (dtype if dtype and entry.is_float else entry.dtype, entry.shape) for entry in entries}
    shards = plan_shards(specs, limit=limit)
    done, total = 0, sum(entry.numel for entry in entries)
    with TensorReader() as reader, Workers() as workers:
        for shard in shards:
            with ShardWriter(folder / shard.file, shard.tensors) as writer:
                for numel in _written(writer, merge, reader, workers, shard):
                    done += numel
                    if progress:
                        progress(done, total)
    write_index(folder, shards)
    written = {name: entry.shape for name, entry in weight_table(folder).items()}
    if written != {entry.name: entry.shape for entry in entries}:
        raise CheckpointError(f"{folder}: the merged weights are not those of init; please report this")


def _written(writer: ShardWriter, merge: _Merge, reader: TensorReader, workers: Workers, shard: Shard) -> Iterator[int]:
    """Write the tensors of a shard; yields the numbers of elements that are done."""
    entries = [merge.tensors[name] for name in writer.names]
    blocks = ((one, *span) for one in entries if merge.is_elementwise(one) for span in blocks_of(one.numel))

    def work(block: tuple[TensorEntry, int, int]) -> int:
        entry, start, stop = block
        for piece in merge.block(reader, entry, start, stop):
            writer.write(entry.name, _cast(entry.name, piece, shard.tensors[entry.name][0]), start=start)
            start += piece.numel()
        return stop - block[1]

    yield from workers.map(work, blocks)
    for entry in entries:
        if not merge.is_elementwise(entry):
            for start, piece in merge.adapted_pieces(reader, entry):
                writer.write(entry.name, _cast(entry.name, piece, shard.tensors[entry.name][0]), start=start)
            yield entry.numel


def _cast(name: str, piece: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The piece in the dtype that is written. Raises NonFiniteError if a value is not finite there."""
    cast = piece.to(dtype)
    if dtype.is_floating_point:
        low, high = (float(end) for end in torch.aminmax(piece))  # NaN if there is one, and then not in the range
        largest = torch.finfo(dtype).max
        if not (-largest <= low and high <= largest) and not torch.isfinite(cast).all():
            short = str(dtype).removeprefix("torch.")
            raise NonFiniteError(
                f"tensor {name!r}: a merged value is NaN or too large for {short}; choose another dtype"
            )
    return cast


def _write_adapter_weights(
    folder: Path,
    coefs: Coefficients,
    sources: Sequence[Checkpoint],
    towards: Checkpoint | None,
    dtype: torch.dtype,
    base_name: str | None,
) -> None:
    policies = sources[1 : len(sources) - (towards is not None)]
    if any(policy.kind != "adapter" for policy in policies):
        raise MismatchError("the policies are full checkpoints, so their merge is no adapter; write a full model")
    factors = merge_adapters(coefs, init=sources[0], policies=policies, towards=towards)
    name = base_name or str(policies[0].config.get("base_model_name_or_path") or policies[0].full.path)
    write_adapter(factors, folder, base_name=name, dtype=dtype)


def _check_ids(recipe: Recipe, init: Checkpoint, policies: Sequence[Checkpoint], towards: Checkpoint | None) -> None:
    given = (init.id, tuple(policy.id for policy in policies), towards.id if towards else None)
    if given != (recipe.init, recipe.policies, recipe.towards):
        raise RecipeError(
            "recipe: init, policies or towards are not the checkpoints given; pass them in the same order"
        )
