"""A model in memory that moves from recipe to recipe in place, as fast as memory allows.

    resident = ResidentMerge(model, init=init, policies=policies)        # model: loaded by transformers
    resident.move(coefficients(recipe, geometry))                        # the same tensors as merge_to_folder writes
    resident.reset()                                                     # theta_init again

Shape suffixes: K sources [init, policies..., towards].
"""

import copy
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from warp_core.errors import GeometryError, MismatchError
from warp_core.weights.adapters import FactorStack, read_adapter, stack_adapters
from warp_core.weights.blend import add_update, blend, working_dtype
from warp_core.weights.checkpoints import Checkpoint, require_mixable
from warp_core.weights.coefficients import Coefficients
from warp_core.weights.layers import layer_of
from warp_core.weights.staging import Staging, place_for
from warp_core.weights.tensor_io import CHUNK_NUMEL, row_chunks
from warp_core.weights.workers import SUM_NUMEL, Scratch, Workers, blocks_of

__all__ = ["ResidentMerge", "parameter_row"]

_RENAMED = {"lm_head": "embed_out"}  # name in memory -> name on disk (GPT-NeoX)
_ACCELERATOR_NUMEL = 1 << 26  # many small kernels would cost more than a temporary of this size
_STAGED_NUMEL = 1 << 24  # elements that travel to a device at once, while those before are merged

Factors = NDArray[np.float64]
Span = tuple[str, int, int]  # elements start..stop of a parameter


class ResidentMerge:
    """Holds all sources of a merge beside a live model and writes merges into the live parameters, in place.

    Memory: for full checkpoints a copy of theta_init and of every policy (and `towards`), in the dtype they have on
    disk; for adapters one copy of the base and the factors. Where full checkpoints do not fit on a CUDA device beside
    the model they are held in pinned memory of the host, from which each move brings them. Tied parameters are moved
    once. The arithmetic is that of `merge_to_folder`: on the CPU a preview equals an export of the same dtype bit for
    bit.

    Not safe to use while another thread runs the model.
    """

    def __init__(
        self, model: nn.Module, *, init: Checkpoint, policies: Sequence[Checkpoint], towards: Checkpoint | None = None
    ) -> None:
        """Take over `model`, a transformers model of the architecture of `init`, and set it to theta_init.

        Raises MismatchError if the checkpoints do not fit each other or the model.
        """
        require_mixable(init, policies, towards=towards)
        self._live = {name: parameter.detach() for name, parameter in model.named_parameters()}
        self._num_policies = len(policies)
        self._sources = (init, *policies, *([towards] if towards else []))
        adapted = any(source.kind == "adapter" for source in self._sources)
        held = self._sources[:1] if adapted else self._sources
        self._device = next(iter(self._live.values())).device
        fits = adapted or place_for(self._device, sum(_size_bytes(source) for source in held)) == self._device
        self._copies = [_parameters_like(model, source.full, pinned=not fits) for source in held]
        self._stacks = _stacks_on(self._live, [read_adapter(s) for s in self._sources]) if adapted else {}
        self._adapted = adapted
        self.reset()

    @property
    def size_bytes(self) -> int:
        """Memory that is held beside the live model."""
        copies = [tensor for copy in self._copies for tensor in copy.values()]
        factors = [tensor for stack in self._stacks.values() for tensor in (stack.b_all, stack.a)]
        return sum(tensor.numel() * tensor.element_size() for tensor in [*copies, *factors])

    def parameters_of(self, source: Checkpoint) -> dict[str, torch.Tensor]:
        """The parameters of a full checkpoint that is held, by name in memory; not copies.

        With adapters the base alone is held. Raises MismatchError for a checkpoint that is not held in full.
        """
        for held, tensors in zip(self._sources, self._copies, strict=False):
            if held.full.id == source.id:
                return tensors
        raise MismatchError(f"{source.path} is not held in memory in full; give it as init, policy or towards")

    def beside(self, model: nn.Module) -> "ResidentMerge":
        """Take over another live model on the same device and set it to theta_init; the sources are held once for both.

        Raises MismatchError if it is a model of another shape.
        """
        live = {name: parameter.detach() for name, parameter in model.named_parameters()}
        if {n: t.shape for n, t in live.items()} != {n: t.shape for n, t in self._live.items()}:
            raise MismatchError("the second model has other parameters than the first; load init's model")
        other = copy.copy(self)
        other._live = live
        other.reset()
        return other

    def reset(self) -> None:
        """Set the live parameters to theta_init."""
        self._write_all(dict.fromkeys(self._live, self._init_factors()))

    def move(self, coefficients: Coefficients) -> None:
        """Set the live parameters to a merge of the policies, in the order they were given.

        Raises MismatchError if the coefficients are of another number of policies or need a `towards` that is not held;
        GeometryError if a parameter has no row, e.g. fused experts with coefficients per tensor. Nothing moves then.
        """
        if coefficients.coef_LM.shape[1] != self._num_policies:
            raise MismatchError(
                f"the coefficients are of {coefficients.coef_LM.shape[1]} policies, the model in memory holds "
                f"{self._num_policies}; give unused policies the weight 0"
            )
        if coefficients.towards_L.any() and len(self._sources) == 1 + self._num_policies:
            raise MismatchError("the recipe needs `towards`, which is not in memory; open the model with it")
        sources_LK = coefficients.sources_LK[:, : len(self._sources)]
        adapted = self._stacks if self._adapted else None
        rows = {name: parameter_row(coefficients, name, init=self._sources[0], adapted=adapted) for name in self._live}
        init_K = self._init_factors()
        self._write_all({name: init_K if row is None else sources_LK[row] for name, row in rows.items()})

    def _init_factors(self) -> Factors:
        factors_K = np.zeros(len(self._sources))
        factors_K[0] = 1.0
        return factors_K

    def _write_all(self, factors: Mapping[str, Factors]) -> None:
        """Write sum_k factors[name][k] * source_k into every live parameter."""
        if self._adapted:
            for name, factors_K in factors.items():
                self._write_adapted(self._live[name], name, factors_K)
        elif all(live.device.type == "cpu" for live in self._live.values()):
            self._write_on_cores(factors)
        else:
            self._write_on_device(factors)

    def _write_on_cores(self, factors: Mapping[str, Factors]) -> None:
        """Every core takes blocks and works through them in pieces that stay in its cache."""
        scratch = Scratch()

        def work(span: Span) -> None:
            name, start, stop = span
            live, (sources, factors_K) = self._live[name].view(-1), self._used(name, factors[name])
            dtype = working_dtype(*(source.dtype for source in sources))
            for first in range(start, stop, SUM_NUMEL):
                last = min(first + SUM_NUMEL, stop)
                straight = live.dtype == dtype
                out = live[first:last] if straight else scratch.take("total", last - first, dtype)
                term = scratch.take("term", last - first, dtype)
                merged = blend([source[first:last] for source in sources], factors_K, out=out, term=term)
                if not straight:
                    live[first:last].copy_(merged)

        with Workers() as workers:
            for _ in workers.map(
                work, ((name, *span) for name in factors for span in blocks_of(self._live[name].numel()))
            ):
                pass

    def _write_on_device(self, factors: Mapping[str, Factors]) -> None:
        """Large pieces; those of sources that are held on the host travel while the ones before are merged."""

        def jobs() -> Iterator[tuple[tuple[Span, Factors], list[torch.Tensor]]]:
            for name, all_K in factors.items():
                sources, factors_K = self._used(name, all_K)
                there = all(source.device == self._device for source in sources)
                numel = _ACCELERATOR_NUMEL if there else _STAGED_NUMEL
                for start, stop in row_chunks((self._live[name].numel(),), numel=numel):
                    yield ((name, start, stop), factors_K), [source[start:stop] for source in sources]

        for ((name, start, stop), factors_K), pieces in Staging(self._device).staged(jobs()):
            self._live[name].view(-1)[start:stop].copy_(blend(pieces, factors_K))

    def _used(self, name: str, factors_K: Factors) -> tuple[list[torch.Tensor], Factors]:
        """The flattened sources of a parameter that have a part in a merge, and their factors."""
        used = [k for k, factor in enumerate(factors_K) if factor != 0] or [0]
        return [self._copies[k][name].reshape(-1) for k in used], factors_K[used]

    def _write_adapted(self, live: torch.Tensor, name: str, factors_K: Factors) -> None:
        scale = float(np.float32(factors_K.sum()))
        base, stack = self._copies[0][name], self._stacks.get(name)
        b = stack.weighted_b(factors_K).to(live.device) if stack is not None else None
        if stack is None or b is None or not b.any():
            live.copy_(base if scale == 1 else blend([base], np.array([scale])))
            return
        width, dtype = live.shape[1], working_dtype(base.dtype)
        for start, stop in row_chunks(tuple(live.shape), numel=_piece_numel(live)):
            first, last = start // width, stop // width
            weight = base[first:last].to(dtype)
            if live.dtype == dtype:
                add_update(weight, b, stack, scale=scale, first=first, out=live[first:last])
            else:
                live[first:last].copy_(add_update(weight, b, stack, scale=scale, first=first))


def parameter_row(
    coefficients: Coefficients, name: str, *, init: Checkpoint, adapted: Collection[str] | None
) -> int | None:
    """The row of the coefficients that moves a parameter, whose name in memory may differ from that on disk.

    adapted: the parameters that any adapter moves; None for full checkpoints. Returns None for a parameter that no
    adapter moves, which stays that of theta_init. Raises GeometryError if a parameter of a full checkpoint has no row.
    """
    layers = {layer: index for index, layer in enumerate(coefficients.layers)}
    if coefficients.granularity == "model":
        return layers.get("model")
    if coefficients.granularity == "tensor" and adapted is not None and name not in adapted:
        return None
    tensor = _disk_name(name, init.full.tensors)
    if tensor is not None:
        row = coefficients.row(tensor)
    elif coefficients.granularity == "layer":
        row = next((layers[x] for x in _aliases(layer_of(name)) if x in layers), None)
    else:
        raise GeometryError(
            f"parameter {name!r} is stored under other names on disk, so it has no angle per tensor; "
            "use --granularity layer"
        )
    if row is None and adapted is None:
        raise GeometryError(f"parameter {name!r} belongs to no layer of the geometry; compute it for this model")
    return row


def _size_bytes(source: Checkpoint) -> int:
    return sum(entry.size_bytes for entry in source.full.tensors.values())


def _parameters_like(model: nn.Module, source: Checkpoint, *, pinned: bool) -> dict[str, torch.Tensor]:
    """The parameters of a full checkpoint under the names they have in memory, in their dtype on disk.

    They are beside the model's, or in pinned memory of the host, from which copies are asynchronous.
    """
    dtypes = Counter(entry.dtype for entry in source.tensors.values() if entry.is_float)
    loader: Any = type(model)
    loaded = loader.from_pretrained(
        source.path,
        dtype=dtypes.most_common(1)[0][0],
        local_files_only=True,
        use_safetensors=True,
        disable_mmap=True,  # a mapped file that somebody truncates kills the process
    )
    live = dict(model.named_parameters())
    found = {name: parameter.detach() for name, parameter in loaded.named_parameters()}
    for name in sorted(live.keys() | found.keys()):
        if name not in live or name not in found or live[name].shape != found[name].shape:
            raise MismatchError(
                f"{source.path}: parameter {name!r} does not fit the model in memory; load init's model"
            )
    return {name: tensor.pin_memory() if pinned else tensor.to(live[name].device) for name, tensor in found.items()}


def _stacks_on(live: dict[str, torch.Tensor], factors: Sequence[Any]) -> dict[str, FactorStack]:
    """The stacked factors by parameter name, on the device of the parameter."""
    stacks = {}
    for module, stack in stack_adapters(factors).items():
        name = f"{module}.weight"
        if name not in live:
            raise MismatchError(f"module {module!r} of an adapter is not in the model in memory; load init's model")
        device = live[name].device
        b_device = "cpu" if device.type == "mps" else device  # Metal has no float64, in which B is weighted
        moved = {field: getattr(stack, field).to(b_device) for field in ("b_all", "source", "row")}
        stacks[name] = replace(stack, a=stack.a.to(device), **moved)
    return stacks


def _disk_name(name: str, tensors: Any) -> str | None:
    """The name on disk of a parameter in memory, if it is stored as one tensor."""
    module, _, leaf = name.rpartition(".")
    return next((f"{alias}.{leaf}" for alias in _aliases(module) if f"{alias}.{leaf}" in tensors), None)


def _aliases(module: str) -> list[str]:
    """The module as it may be called on disk: as is, without the class's prefix, or renamed."""
    parts = module.split(".")
    stripped = [".".join(parts[first:]) for first in range(min(3, len(parts)))]
    return [*stripped, _RENAMED[module]] if module in _RENAMED else stripped


def _piece_numel(live: torch.Tensor) -> int:
    return CHUNK_NUMEL if live.device.type == "cpu" else _ACCELERATOR_NUMEL
