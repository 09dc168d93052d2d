"""LoRA on the linear layers of a model in memory, made for WARP.

What peft's own layers lack for this: a frozen part (the init of a later iteration is itself an adapter), a base that is
held once and in the layout in which it is multiplied fastest, and factors that can be pointed at the anchor's. Folders
are in peft's format (`warp_core.weights`).

R rank of the trained part, Q rank of the frozen part, O and I output and input features.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from warp_core.errors import ConfigError
from warp_core.policy.kernels import Kernel, make_kernel
from warp_core.policy.sampling import row_seed

__all__ = ["Factors", "LoraLinear", "Mode", "attach_lora", "in_mode", "lora_layers", "target_modules"]

Mode = Literal["base", "lora"]
Factors = tuple[torch.Tensor, torch.Tensor]


class LoraLinear(nn.Module):
    """A linear layer with weight W + B_frozen A_frozen + scale * B A.

    In mode `base` it computes with W, in mode `lora` with the factors beside W. W is held once, by `kernel`, in the
    layout that it is multiplied in; gradients flow through it and never to it.
    """

    def __init__(self, base: nn.Linear | Conv1D, *, frozen: Factors | None, a_RI: torch.Tensor, scale: float) -> None:
        super().__init__()
        self.transposed = isinstance(base, Conv1D)
        weight = base.weight.detach()
        bias = None if base.bias is None else base.bias.detach()
        self.dtype = weight.dtype
        self.kernel: Kernel = make_kernel(weight.T if self.transposed else weight, bias)
        self.scale = scale
        self.mode: Mode = "lora"
        out_features = weight.shape[1] if self.transposed else weight.shape[0]
        self.a_RI = nn.Parameter(a_RI)
        self.b_OR = nn.Parameter(a_RI.new_zeros(out_features, a_RI.shape[0]))
        self.frozen = frozen
        self._ready: tuple[Kernel, Kernel] | None = None

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Compute without gradients by the factors as they are at entry, joined and laid out once.

        A step of decoding is little work, and preparing the factors in each would cost more than it.
        """
        dtype = self.dtype
        b_OC, a_CI = ((self.scale * self.b_OR).detach(), self.a_RI.detach())
        if self.frozen is not None:
            b_OC, a_CI = torch.cat([self.frozen[0], b_OC], dim=1), torch.cat([self.frozen[1], a_CI], dim=0)
        self._ready = make_kernel(b_OC.to(dtype), None), make_kernel(a_CI.to(dtype), None)
        try:
            yield
        finally:
            self._ready = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the layer in its present mode."""
        out = _through(x, self.kernel)
        if self.mode == "base":
            return out
        if self._ready is not None:
            widen, narrow = self._ready
            return out.add_(widen(narrow(x)))
        if self.frozen is not None:
            b, a = (factor.to(x.dtype) for factor in self.frozen)
            out = _add_product(out, functional.linear(x, a), b)
        return _add_product(out, functional.linear(x, self.a_RI.to(x.dtype)), (self.scale * self.b_OR).to(x.dtype))

    def factors(self) -> Factors:
        """Return the whole update as (B, A) in float32, frozen part first, the scale folded into B."""
        b, a = self.scale * self.b_OR.detach(), self.a_RI.detach()
        if self.frozen is not None:
            b, a = torch.cat([self.frozen[0], b], dim=1), torch.cat([self.frozen[1], a], dim=0)
        return b.cpu(), a.cpu()


class _Frozen(torch.autograd.Function):
    """A kernel with a gradient to its input; it keeps nothing but the kernel."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, kernel: Kernel) -> torch.Tensor:
        ctx.kernel = kernel
        return kernel(x)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradients[0] @ ctx.kernel.dense(), None


def _through(x: torch.Tensor, kernel: Kernel) -> torch.Tensor:
    if torch.is_grad_enabled() and x.requires_grad:
        result: torch.Tensor = _Frozen.apply(x, kernel)  # type: ignore[no-untyped-call]
        return result
    return kernel(x)


def _add_product(out: torch.Tensor, inner: torch.Tensor, b_OR: torch.Tensor) -> torch.Tensor:
    """Return out + inner B' without holding the product."""
    return torch.addmm(out.flatten(0, -2), inner.flatten(0, -2), b_OR.T).view_as(out)


def target_modules(model: nn.Module, targets: Sequence[str]) -> dict[str, nn.Linear | Conv1D]:
    """Return the layers to adapt by their path; `all-linear` is every linear layer but the output head.

    Raises:
        ConfigError: nothing in the model goes by one of the names.
    """
    head = getattr(model, "get_output_embeddings", lambda: None)()
    linear = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head
    }
    if list(targets) == ["all-linear"]:
        return linear
    chosen = {name: module for name, module in linear.items() if name.rsplit(".", 1)[-1] in targets}
    for target in targets:
        if not any(name.rsplit(".", 1)[-1] == target for name in chosen):
            known = ", ".join(sorted({name.rsplit(".", 1)[-1] for name in linear}))
            raise ConfigError(f"adapter.targets: no linear layer is called {target!r}; this model has {known}")
    return chosen


def attach_lora(
    model: nn.Module,
    *,
    rank: int,
    scale: float,
    targets: Sequence[str],
    seed: int,
    frozen: Mapping[str, Factors] | None = None,
) -> dict[str, LoraLinear]:
    """Put a LoraLinear around each target, B = 0 and A uniform in +-1/sqrt(I) as peft starts it.

    A depends on `seed` and the layer's path alone, so that runs which share the seed share A. The layers of `frozen`
    (an earlier iteration's adapter) are adapted whether or not they are targets.

    Returns:
        The new layers by path.
    """
    modules = target_modules(model, targets)
    frozen = dict(frozen or {})
    named = dict(model.named_modules())
    layers = {}
    for name in sorted({*modules, *frozen}):
        base = named[name]
        weight = base.weight
        in_features = weight.shape[0] if isinstance(base, Conv1D) else weight.shape[1]
        generator = torch.Generator().manual_seed(row_seed("lora-a", seed, name))
        bound = 1.0 / math.sqrt(in_features)
        rows = rank if name in modules else 0
        a_RI = torch.empty(rows, in_features).uniform_(-bound, bound, generator=generator).to(weight.device)
        part = frozen.get(name)
        kept = None if part is None else (part[0].float().to(weight.device), part[1].float().to(weight.device))
        layer = LoraLinear(base, frozen=kept, a_RI=a_RI, scale=scale)
        model.set_submodule(name, layer)
        layers[name] = layer
    return layers


def lora_layers(model: nn.Module) -> list[LoraLinear]:
    """Return the LoraLinear modules of a model."""
    return [module for module in model.modules() if isinstance(module, LoraLinear)]


@contextmanager
def in_mode(layers: Sequence[LoraLinear], mode: Mode) -> Iterator[None]:
    """Compute in `mode` for the time of the block."""
    before = [layer.mode for layer in layers]
    try:
        for layer in layers:
            layer.mode = mode
        yield
    finally:
        for layer, mode_before in zip(layers, before, strict=True):
            layer.mode = mode_before
