"""LoRA adapters as low-rank factors: reading, exact merging, writing.

An update is B A. A sum of updates is one update whose factors are stacked:
    sum_k f_k B_k A_k = [f_1 B_1, f_2 B_2] [A_1; A_2]

Rows of A that are bitwise equal are stored once and their columns of B added up, so adapters with one frozen A keep
their rank. Factors are never averaged one by one: mean(B) mean(A) is not mean(B A).

Shape suffixes: R rank; K sources [init, policies..., towards].
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from warp_core.errors import CheckpointError, NonFiniteError, RecipeError
from warp_core.weights.checkpoints import Checkpoint, require_mixable
from warp_core.weights.coefficients import Coefficients
from warp_core.weights.headers import TensorEntry
from warp_core.weights.lora_config import is_left_out
from warp_core.weights.tensor_io import TensorReader

__all__ = ["AdapterFactors", "FactorStack", "merge_adapters", "read_adapter", "stack_adapters", "weight_name"]

_PREFIX = "base_model.model."
_SUFFIX_A, _SUFFIX_B = ".lora_A.weight", ".lora_B.weight"


@dataclass(frozen=True, kw_only=True, eq=False)
class AdapterFactors:
    """The updates of an adapter: weight + B A, or weight + (B A)^T for modules in `transposed`.

    Attributes:
        modules: module name -> (B [out, R], A [R, in]), float32, the scaling folded into B.
        transposed: modules whose weight is stored as [in, out] (GPT-2's Conv1D; fan_in_fan_out in PEFT).
    """

    modules: Mapping[str, tuple[torch.Tensor, torch.Tensor]]
    transposed: frozenset[str] = frozenset()

    @property
    def fan_in_fan_out(self) -> bool:
        """Whether any module stores its weight as [in, out]."""
        return bool(self.transposed)

    def delta(self, module: str) -> torch.Tensor:
        """The dense float32 update of one module in the layout of its weight; zero rank gives zeros."""
        b, a = self.modules[module]
        return (b @ a).T if module in self.transposed else b @ a


def read_adapter(checkpoint: Checkpoint) -> AdapterFactors:
    """The factors of an adapter; a full checkpoint has none (it is the zero adapter over itself).

    Raises CheckpointError, naming tensor and file, for tensors that are not LoRA factors of linear layers, for a
    missing partner, a wrong shape, or a module that the base does not have; NonFiniteError for NaN or infinity.
    """
    if checkpoint.base is None or checkpoint.lora is None:
        return AdapterFactors(modules={})
    pairs = _pairs(checkpoint)
    modules, transposed = {}, set()
    with TensorReader() as reader:
        for module, (entry_b, entry_a) in sorted(pairs.items()):
            if _orientation(checkpoint, module, entry_b, entry_a):
                transposed.add(module)
            a = _finite(reader, entry_a)
            b = _finite(reader, entry_b).mul_(checkpoint.lora.scaling(module)).float()
            modules[module] = (b, a.float())
    return AdapterFactors(modules=modules, transposed=frozenset(transposed))


def weight_name(module: str, names: Mapping[str, TensorEntry]) -> str | None:
    """The tensor on disk that is the weight of a module in memory; None if there is none.

    Old folders store the bare model ("h.0.attn.c_attn") under a class that says "transformer.h.0.attn.c_attn".
    """
    parts = f"{module}.weight".split(".")
    for first in range(min(3, len(parts) - 1)):
        name = ".".join(parts[first:])
        if name in names:
            return name
    return None


@dataclass(frozen=True, kw_only=True, eq=False)
class FactorStack:
    """The factors of K sources for one module, ready to be weighted: built once, then weighted per merge.

    b_all [out, sum of ranks] float32 holds the columns of all sources; column c belongs to source source[c] and to row
    row[c] of a [R, in], where equal rows of the sources' A fell together.
    """

    b_all: torch.Tensor
    a: torch.Tensor
    source: torch.Tensor
    row: torch.Tensor
    transposed: bool

    def weighted_b(self, factors_K: NDArray[np.float64]) -> torch.Tensor:
        """B [out, R] float32 such that B A = sum_k factors[k] B_k A_k; sums in float64."""
        scale = torch.as_tensor(np.ascontiguousarray(factors_K), device=self.b_all.device)[self.source]
        columns = self.b_all.double() * scale
        if len(self.a) == columns.shape[1]:
            return columns.float()  # no equal rows: column c is row c
        b = columns.new_zeros(len(columns), len(self.a))
        return b.index_add_(1, self.row, columns).float()


def stack_adapters(sources: Sequence[AdapterFactors]) -> dict[str, FactorStack]:
    """One FactorStack per module that any source adapts."""
    return {
        module: _stack(module, sources) for module in sorted({name for source in sources for name in source.modules})
    }


def merge_adapters(
    coefficients: Coefficients,
    *,
    init: Checkpoint,
    policies: Sequence[Checkpoint],
    towards: Checkpoint | None = None,
) -> AdapterFactors:
    """The merged adapter over the common base, exact up to float32.

    With f_k the factors of the sources [init, policies..., towards] (`Coefficients.sources_LK`) the merge is
    W + sum_k f_k B_k A_k, where a full init stands for a zero update. Factors that are 0 in every source drop out.

    Raises MismatchError for different bases, RecipeError if the merge is no adapter: `slerp-weights` scales the base.
    """
    require_mixable(init, policies, towards=towards)
    scale_L = coefficients.init_L + coefficients.towards_L
    if len(scale_L) and np.abs(scale_L - 1).max() > 1e-9:
        raise RecipeError(
            "the merge scales the base weights (slerp-weights), so it is not an adapter; write a full model instead"
        )
    sources = [read_adapter(c) for c in (init, *policies, *([towards] if towards else []))]
    sources_LK = coefficients.sources_LK[:, : len(sources)]
    modules, transposed = {}, set()
    for module, stack in stack_adapters(sources).items():
        row = coefficients.row(weight_name(module, init.full.tensors) or "")
        assert row is not None, f"no coefficients for the adapted module {module}"
        modules[module] = _used(stack, sources_LK[row])
        if stack.transposed:
            transposed.add(module)
    return AdapterFactors(modules=modules, transposed=frozenset(transposed))


def _used(stack: FactorStack, factors_K: NDArray[np.float64]) -> tuple[torch.Tensor, torch.Tensor]:
    """Weighted (B, A) without the rows whose factors are all zero; at least one row stays, PEFT knows no rank 0."""
    b = stack.weighted_b(factors_K)
    used = torch.zeros(len(stack.a), dtype=torch.bool)
    used[stack.row[torch.as_tensor(factors_K != 0)[stack.source]]] = True
    used[0] |= not used.any()
    return b[:, used].contiguous(), stack.a[used].contiguous()


def _stack(module: str, sources: Sequence[AdapterFactors]) -> FactorStack:
    columns: list[torch.Tensor] = []
    rows: list[torch.Tensor] = []
    source: list[int] = []
    row_of: list[int] = []
    seen: dict[bytes, int] = {}
    for index, factors in enumerate(sources):
        if module not in factors.modules:
            continue
        b, a = factors.modules[module]
        columns.append(b)
        for line in a:
            key = line.numpy().tobytes()
            if key not in seen:
                seen[key] = len(rows)
                rows.append(line)
            row_of.append(seen[key])
            source.append(index)
    return FactorStack(
        b_all=torch.cat(columns, dim=1),
        a=torch.stack(rows),
        source=torch.tensor(source),
        row=torch.tensor(row_of),
        transposed=any(module in factors.transposed for factors in sources),
    )


def _pairs(checkpoint: Checkpoint) -> dict[str, tuple[TensorEntry, TensorEntry]]:
    """module -> entries of B and A. Every tensor of the file must be one of them."""
    halves: dict[str, dict[str, TensorEntry]] = {}
    for name, entry in checkpoint.tensors.items():
        suffix = next((s for s in (_SUFFIX_A, _SUFFIX_B) if name.endswith(s)), None)
        if suffix is None or not name.startswith(_PREFIX) or not entry.is_float or len(entry.shape) != 2:
            raise CheckpointError(
                f"{entry.file}: tensor {name!r} is not a LoRA factor of a linear layer; "
                "such an adapter cannot be merged exactly, merge it into its base first"
            )
        halves.setdefault(name[len(_PREFIX) : -len(suffix)], {})[suffix] = entry
    for module, half in halves.items():
        if len(half) != 2:
            entry = next(iter(half.values()))
            raise CheckpointError(f"{entry.file}: module {module!r} has only {entry.name!r}; get the adapter again")
        if is_left_out(module, checkpoint.config):
            raise CheckpointError(
                f"{next(iter(half.values())).file}: module {module!r} is not among the target_modules of "
                "adapter_config.json, so PEFT leaves its factors out; get the adapter again"
            )
    return {module: (half[_SUFFIX_B], half[_SUFFIX_A]) for module, half in halves.items()}


def _orientation(checkpoint: Checkpoint, module: str, b: TensorEntry, a: TensorEntry) -> bool:
    """Check the shapes of a pair against the base weight; True if that is stored as [in, out]."""
    assert checkpoint.base is not None
    assert checkpoint.lora is not None
    name = weight_name(module, checkpoint.base.tensors)
    if name is None:
        raise CheckpointError(
            f"{a.file}: module {module!r} is not in the base {checkpoint.base.path}; name its own base"
        )
    rank = checkpoint.lora.rank_of(module)
    if a.shape[0] != rank or b.shape[1] != rank:
        raise CheckpointError(f"{a.file}: module {module!r} has rank {a.shape[0]}, adapter_config.json says {rank}")
    shape, update = checkpoint.base.tensors[name].shape, (b.shape[0], a.shape[1])
    # PEFT applies the flag to Conv1D only; a head beside it is an ordinary linear layer
    if checkpoint.lora.fan_in_fan_out and shape == update[::-1] and not module.endswith("lm_head"):
        return True
    if shape != update:
        raise CheckpointError(
            f"{a.file}: module {module!r} updates a weight of shape {update}, the base has {shape}; name its own base"
        )
    return False


def _finite(reader: TensorReader, entry: TensorEntry) -> torch.Tensor:
    tensor = reader.read_whole(entry).double()
    if not torch.isfinite(tensor).all():
        raise NonFiniteError(f"{entry.file}: tensor {entry.name!r} holds NaN or infinity; use another checkpoint")
    return tensor
