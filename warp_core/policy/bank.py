"""One base model in memory that is, row by row, any merge of any number of LoRA adapters over it.

    bank = AdapterBank(policy, base)
    bank.load(adapters)
    table = bank.table([bank.mix(coefficients, sources), None])         # row 0: a merge; row 1: the base itself
    with bank.at(table):
        policy.model(...)                                               # two models, one pass over the weights

Row b computes W x + (sum_k c[b, layer, k] B_k A_k) x, with rows that the A_k have in common applied once: no weight
ever moves, and a move of a slider sums up a few small factors. What a forward pass computes depends on the table of its
own thread alone.

Shape suffixes: P mixes, a batch of B rows holds B / P rows of each, in their order; J linear layers of the model;
C columns of all B factors of a layer, R distinct rows of all A factors; I and O input and output features.
"""

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers.pytorch_utils import Conv1D

from warp_core.errors import MismatchError
from warp_core.policy.kernels import make_kernel
from warp_core.policy.model import Policy
from warp_core.weights import Checkpoint, Coefficients
from warp_core.weights.adapters import FactorStack, read_adapter, stack_adapters
from warp_core.weights.resident import parameter_row

__all__ = ["AdapterBank", "Mix", "Table"]

# Adapters of a few runs. Beyond them only those that are asked for stay: every one that is held is multiplied.
MAX_ADAPTERS = 32

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Mix:
    """A merged model as factors of the adapters, and of the base where the merge scales it (slerp-weights).

    Attributes:
        factors: id of an adapter -> its factor in each of the J linear layers.
        scales: name of a parameter of the base -> its factor, where that is not 1.
    """

    factors: Mapping[str, Floats]
    scales: Mapping[str, float]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Factors:
    """The factors of all adapters for N layers of the same shapes: sum_k B_k A_k = sum_c bt_CO[c] a_IR[:, r(c)]'.

    `rows_NRC` is 1 where r is r(c); None where every column has a row of its own, in order. A product for each layer
    would take longer to start than to compute.
    """

    numbers: tuple[int, ...]
    a_IR: tuple[torch.Tensor, ...]
    bt_NCO: torch.Tensor
    rows_NRC: torch.Tensor | None

    def updates(self, coef_NPC: torch.Tensor, dtype: torch.dtype) -> Iterator[tuple[int, "_Update"]]:
        """Yield the number of each layer with bt_PRO, such that mix p adds (x a_IR) bt_PRO[p]."""
        if self.rows_NRC is None:
            bt_NPRO = coef_NPC[..., None] * self.bt_NCO[:, None]
        else:
            rows_NXC = (self.rows_NRC[:, None] * coef_NPC[:, :, None]).flatten(1, 2)
            bt_NXO = torch.bmm(rows_NXC, self.bt_NCO)
            bt_NPRO = bt_NXO.view(len(bt_NXO), coef_NPC.shape[1], -1, bt_NXO.shape[-1])
        for number, a_IR, bt_PRO in zip(self.numbers, self.a_IR, bt_NPRO.to(dtype), strict=True):
            yield number, _Update(a_IR, bt_PRO)


class _Update(NamedTuple):
    """What the mixes of a table add to a layer: (x a_IR) bt_PRO."""

    a_IR: torch.Tensor
    bt_PRO: torch.Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class _Scale:
    """Factors of a layer's base weight, and what is left of its bias then."""

    weight_P11: torch.Tensor
    bias_P1O: torch.Tensor | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Table:
    """P mixes, ready to be computed.

    Attributes:
        num_mixes: P.
        updates_J: what is added to each linear layer; None where that is nothing.
        scales_J: base factors of each linear layer where they are not all 1.
        others: name of any other module -> base factors [P].
    """

    num_mixes: int
    updates_J: Sequence[_Update | None]
    scales_J: Sequence[_Scale | None]
    others: Mapping[str, torch.Tensor]


class _Now(threading.local):
    """What the forward pass of this thread computes."""

    table: Table | None = None
    num_rows = num_tokens = 0


class _BankLinear(nn.Module):
    """A linear layer of the base that adds what the present table says."""

    def __init__(self, base: nn.Linear | Conv1D, number: int, now: _Now) -> None:
        super().__init__()
        self.transposed = isinstance(base, Conv1D)
        weight = base.weight.detach()
        self.bias = None if base.bias is None else base.bias.detach().clone()
        self.kernel = make_kernel(weight.T if self.transposed else weight, self.bias)
        self.number, self.now = number, now

    @property
    def rows_stay(self) -> bool:
        """Whether the number of a row says which mix it is; every row of the base is the base."""
        return self.now.table is not None

    @property
    def weight(self) -> torch.Tensor:
        """The weight of the base, in its own layout, for model code that looks at it."""
        dense = self.kernel.dense()
        return dense.T if self.transposed else dense

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the layer to the rows of P mixes."""
        y = self.kernel(x)
        table = self.now.table
        if table is None:
            return y
        scale, update = table.scales_J[self.number], table.updates_J[self.number]
        if scale is None and update is None:
            return y
        if x.dim() == 2 and len(x) != self.now.num_tokens:
            # Tokens in one dimension are told apart by their order, which a router of experts changes.
            raise MismatchError("an adapted layer sees some of the tokens only: adapters of experts are not supported")
        y_PNO = y.view(table.num_mixes, -1, y.shape[-1])
        if scale is not None:
            y_PNO.mul_(scale.weight_P11)
            if scale.bias_P1O is not None:
                y_PNO.add_(scale.bias_P1O)
        if update is not None:
            inner = torch.mm(x.reshape(-1, x.shape[-1]), update.a_IR)
            y_PNO.baddbmm_(inner.view(table.num_mixes, -1, inner.shape[-1]), update.bt_PRO)
        return y


class AdapterBank:
    """Takes over a base model and computes merges of adapters over it. For inference alone: no gradients.

    On the CPU the linear weights are laid out anew for few rows at a time (see `kernels`), in place of the old ones.

    Args:
        policy: the base, loaded; the bank changes its modules and is the only one to use it.
        base: its checkpoint.
    """

    def __init__(self, policy: Policy, base: Checkpoint) -> None:
        self.policy, self.base = policy, base
        self._now = _Now()
        model = policy.model
        # A tied head has the name of the embedding: one parameter, one factor.
        self._names = {id(parameter): name for name, parameter in model.named_parameters()}
        self._linears: list[str] = []
        self._parameters: list[tuple[str, str | None]] = []
        for name, module in list(model.named_modules()):
            if type(module) in (nn.Linear, Conv1D):
                bias = None if module.bias is None else self._names[id(module.bias)]
                self._parameters.append((self._names[id(module.weight)], bias))
                model.set_submodule(name, _BankLinear(module, len(self._linears), self._now))
                self._linears.append(name)
        model.get_input_embeddings().register_forward_pre_hook(self._count_tokens)
        if policy.device.type == "cpu":
            for parameter in model.parameters():
                # What is left may be a view of the checkpoint's file, which would be held in memory as a whole.
                parameter.data = parameter.detach().clone()
        self._names = {id(parameter): name for name, parameter in model.named_parameters()}
        self._others_are_hooked = False
        self._lock = threading.Lock()
        self._held: tuple[Checkpoint, ...] = ()
        self._factors: list[_Factors] = []
        self._column_source = self._column_layer = np.empty(0, dtype=np.int64)
        self._widths = [0] * len(self._linears)
        self._adapted: set[str] = set()
        self._rows: dict[tuple[tuple[str, ...], str], dict[str, int | None]] = {}

    @property
    def adapters(self) -> tuple[Checkpoint, ...]:
        """What is loaded."""
        return self._held

    def load(self, checkpoints: Sequence[Checkpoint]) -> None:
        """Load the adapters among `checkpoints` that are not there yet.

        Raises:
            MismatchError: an adapter is over another base, or moves a module that the base does not have.
            CheckpointError: its files are damaged.
        """
        asked = {one.id: one for one in checkpoints if one.kind == "adapter"}
        for one in asked.values():
            if one.full.id != self.base.id:
                raise MismatchError(f"{one.path}: its base is not {self.base.path}; adapters mix over one base only")
        with self._lock:
            known = {one.id: one for one in self._held}
            if asked.keys() <= known.keys():
                return
            union = known | asked
            self._stack(tuple((union if len(union) <= MAX_ADAPTERS else asked).values()))

    def _stack(self, adapters: tuple[Checkpoint, ...]) -> None:
        """Put the factors of all adapters side by side; tables that were made before keep those they have."""
        stacks = stack_adapters([read_adapter(one) for one in adapters])
        unknown = sorted(stacks.keys() - set(self._linears))
        for name in unknown:
            raise MismatchError(f"module {name!r} of an adapter is no linear layer of {self.base.path}")
        alike: dict[tuple[int, ...], list[int]] = {}
        sources, layers, widths = [], [], []
        for number, name in enumerate(self._linears):
            stack = stacks.get(name)
            width = 0 if stack is None else len(stack.source)
            if stack is not None and width:
                alike.setdefault((len(stack.a), *stack.b_all.shape), []).append(number)
                sources.append(stack.source.numpy())
                layers.append(np.full(width, number))
            widths.append(width)
        self._column_source, self._column_layer = (
            np.concatenate(parts) if parts else np.empty(0, dtype=np.int64) for parts in (sources, layers)
        )
        groups = [[(number, stacks[self._linears[number]]) for number in numbers] for numbers in alike.values()]
        self._held, self._factors, self._widths = adapters, [self._together(group) for group in groups], widths
        self._adapted = {f"{name}.weight" for name in stacks}
        self._rows = {}

    def _together(self, group: Sequence[tuple[int, FactorStack]]) -> _Factors:
        device, stacks = self.policy.device, [stack for _, stack in group]
        eyes = [torch.eye(len(stack.a), device=device)[:, stack.row] for stack in stacks]
        return _Factors(
            numbers=tuple(number for number, _ in group),
            a_IR=tuple(stack.a.T.contiguous().to(device, self.policy.dtype) for stack in stacks),
            bt_NCO=torch.stack([stack.b_all.T for stack in stacks]).to(device),
            rows_NRC=None if len(stacks[0].a) == len(stacks[0].row) else torch.stack(eyes),
        )

    def mix(self, coefficients: Coefficients, sources: Sequence[Checkpoint]) -> Mix:
        """Return a merge of [init, policies..., towards] (no `towards` where the coefficients need none)."""
        assert not coefficients.sources_LK[:, len(sources) :].any(), "the coefficients are of more sources"
        sources_LK = coefficients.sources_LK[:, : len(sources)]
        alone_K = np.eye(len(sources))[0]
        rows = self._rows_of(coefficients)
        factors = {name: alone_K if row is None else sources_LK[row] for name, row in rows.items()}
        scales = {name: scale for name, factor in factors.items() if (scale := float(np.float32(factor.sum()))) != 1}
        factors_JK = np.array([factors[weight] for weight, _ in self._parameters])
        of: dict[str, Floats] = {}
        for k, source in enumerate(sources):
            if source.kind == "adapter":
                of[source.id] = of.get(source.id, 0) + factors_JK[:, k]
        return Mix(factors=of, scales=scales)

    def _rows_of(self, coefficients: Coefficients) -> dict[str, int | None]:
        """The row of the coefficients for every parameter of the base, by its name in memory."""
        key = coefficients.layers, coefficients.granularity
        if key not in self._rows:
            weights = [name for pair in self._parameters for name in pair if name is not None]
            self._rows[key] = {
                name: parameter_row(coefficients, name, init=self.base, adapted=self._adapted)
                for name in dict.fromkeys([*weights, *self._names.values()])
            }
        return self._rows[key]

    def table(self, mixes: Sequence[Mix | None]) -> Table | None:
        """Return what computes these mixes in a batch, None among them for the base; None where all are the base.

        Raises:
            MismatchError: an adapter is not loaded, or the architecture has parts that slerp-weights cannot scale.
        """
        with self._lock:
            places = {one.id: number for number, one in enumerate(self._held)}
            factors, widths = self._factors, self._widths
            columns = self._column_source, self._column_layer
        factors_PKJ = np.zeros((len(mixes), len(places), len(self._linears)))
        for p, mix in enumerate(mixes):
            for source, factors_JK in (mix.factors if mix else {}).items():
                if source not in places:
                    raise MismatchError(f"adapter {source[:12]} is not loaded any more: ask again")
                factors_PKJ[p, places[source]] = factors_JK
        scaled = any(mix is not None and mix.scales for mix in mixes)
        if not scaled and not factors_PKJ.any():
            return None
        flat_PC = torch.from_numpy(factors_PKJ[:, columns[0], columns[1]]).float().to(self.policy.device)
        coef_J = torch.split(flat_PC, widths, dim=1)
        updates_J: list[_Update | None] = [None] * len(widths)
        for group in factors:
            coef_NPC = torch.stack([coef_J[number] for number in group.numbers])
            for number, update in group.updates(coef_NPC, self.policy.dtype):
                updates_J[number] = update
        table = Table(
            num_mixes=len(mixes),
            updates_J=updates_J,
            scales_J=[None] * len(self._linears),
            others={},
        )
        return self._scaled(table, [mix.scales if mix else {} for mix in mixes]) if scaled else table

    def supports(self, mix: Mix | None) -> bool:
        """Whether a mix can be computed here: one that scales the base cannot on every architecture."""
        return mix is None or not mix.scales or self._unscalable is None

    @contextmanager
    def at(self, table: Table | None) -> Iterator[None]:
        """Compute the table's mixes in this thread for the time of the block; None computes the base in every row."""
        before = self._now.table
        self._now.table = table
        try:
            yield
        finally:
            self._now.table = before

    def _count_tokens(self, module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        self._now.num_rows, self._now.num_tokens = len(args[0]), args[0].numel()

    def _scaled(self, table: Table, scales: Sequence[Mapping[str, float]]) -> Table:
        """Add the factors of the base, which only slerp-weights has."""
        self._hook_others()
        where: dict[str, Any] = {"device": self.policy.device, "dtype": self.policy.dtype}

        def of(name: str | None) -> torch.Tensor:
            return torch.tensor([1.0 if name is None else one.get(name, 1.0) for one in scales], dtype=torch.float64)

        scales_J: list[_Scale | None] = []
        for name, (weight, bias) in zip(self._linears, self._parameters, strict=True):
            weight_P, bias_P = of(weight), of(bias)
            extra = None
            if bias is not None and not torch.equal(weight_P, bias_P):
                bias_O = self.policy.model.get_submodule(name).bias
                extra = ((bias_P - weight_P).to(**where)[:, None] * bias_O)[:, None]
            moved = not weight_P.eq(1).all() or extra is not None
            scales_J.append(_Scale(weight_P11=weight_P.to(**where)[:, None, None], bias_P1O=extra) if moved else None)
        others: dict[str, torch.Tensor] = {}
        for name in self._names.values():
            factor_P = of(name)
            if not factor_P.eq(1).all():
                others[name.rpartition(".")[0]] = factor_P.to(**where)
        return replace(table, scales_J=scales_J, others=others)

    @cached_property
    def _unscalable(self) -> str | None:
        """The first module whose output is not affine in its parameters, as far as is known here."""
        for name in dict.fromkeys(name.rpartition(".")[0] for name in self._names.values()):
            module = self.policy.model.get_submodule(name)
            is_norm = [parameter.dim() for parameter in module.parameters(recurse=False)] == [1]
            if not isinstance(module, nn.Embedding | nn.LayerNorm) and not is_norm:
                return name
        return None

    def _hook_others(self) -> None:
        """Let norms and embeddings follow a table that scales the base; before the first there is no need to."""
        if self._others_are_hooked:
            return
        if self._unscalable is not None:
            raise MismatchError(
                f"{self.base.path}: a SLERP of full weights of adapters cannot be sampled side by side, because of "
                f"{self._unscalable!r}; use slerp or lerp"
            )
        for name in dict.fromkeys(name.rpartition(".")[0] for name in self._names.values()):
            self.policy.model.get_submodule(name).register_forward_hook(self._scale_other(name))
        self._others_are_hooked = True

    def _scale_other(self, name: str) -> Any:
        """A hook that turns f(w), which is affine in the module's parameters w, into f(s w) = s f(w) + (1 - s) f(0)."""

        def hook(module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
            table = self._now.table
            factor_P = table.others.get(name) if table else None
            if table is None or factor_P is None:
                return output
            with self.at(None):
                zeros = {key: torch.zeros_like(value[:1]).expand_as(value) for key, value in module.named_parameters()}
                at_zero = torch.func.functional_call(module, zeros, args)
            # One row of positions serves every row of the batch.
            rows = len(output) if len(output) > 1 else self._now.num_rows
            factor = factor_P.repeat_interleave(rows // table.num_mixes).view(-1, *[1] * (output.dim() - 1))
            return factor * output + (1 - factor) * at_zero

        return hook
