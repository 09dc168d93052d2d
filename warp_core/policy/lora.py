"""LoRA on the linear layers of a model in memory, made for WARP.

What peft's own layers lack for this: a frozen part (the init of a later iteration is itself an adapter), a folded mode
that samples from base + B A without touching the base (no drift, so a resume is exact), and factors that can be pointed
at the anchor's. Folders are in peft's format (`warp_core.weights`).

R rank of the trained part, Q rank of the frozen part, O and I output and input features.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from warp_core.errors import ConfigError
from warp_core.policy.sampling import row_seed

__all__ = ["Factors", "LoraLinear", "Mode", "attach_lora", "in_mode", "lora_layers", "target_modules"]

Mode = Literal["base", "lora", "folded"]
Factors = tuple[torch.Tensor, torch.Tensor]


class LoraLinear(nn.Module):
    """A linear layer with weight W + B_frozen A_frozen + scale * B A.

    In mode `base` it computes with W, in mode `lora` with the factors beside W (for gradients), in mode `folded` with
    one dense weight that `fold` has built (for sampling: no extra kernels per token).
    """

    def __init__(self, base: nn.Linear | Conv1D, *, frozen: Factors | None, a_RI: torch.Tensor, scale: float) -> None:
        super().__init__()
        self.base = base
        self.transposed = isinstance(base, Conv1D)
        self.scale = scale
        self.mode: Mode = "lora"
        out_features = base.weight.shape[1] if self.transposed else base.weight.shape[0]
        self.a_RI = nn.Parameter(a_RI)
        self.b_OR = nn.Parameter(a_RI.new_zeros(out_features, a_RI.shape[0]))
        self.frozen = frozen
        self.folded_weight: torch.Tensor | None = None

    def fold(self) -> None:
        """Build the dense weight of the present factors, in float32, kept in the compute dtype."""
        update_OI = self.scale * (self.b_OR.detach() @ self.a_RI.detach())
        if self.frozen is not None:
            update_OI.addmm_(self.frozen[0], self.frozen[1])
        weight = self.base.weight.detach()
        self.folded_weight = (weight.float() + (update_OI.T if self.transposed else update_OI)).to(weight.dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the layer in its present mode."""
        if self.mode == "folded" and self.folded_weight is not None:
            weight = self.folded_weight.T if self.transposed else self.folded_weight
            return functional.linear(x, weight, self.base.bias)
        out: torch.Tensor = self.base(x)
        if self.mode == "base":
            return out
        if self.frozen is not None:
            b, a = (factor.to(x.dtype) for factor in self.frozen)
            out = out + functional.linear(functional.linear(x, a), b)
        inner = functional.linear(x, self.a_RI.to(x.dtype))
        return out + functional.linear(inner, (self.scale * self.b_OR).to(x.dtype))

    def factors(self) -> Factors:
        """Return the whole update as (B, A) in float32, frozen part first, the scale folded into B."""
        b, a = self.scale * self.b_OR.detach(), self.a_RI.detach()
        if self.frozen is not None:
            b, a = torch.cat([self.frozen[0], b], dim=1), torch.cat([self.frozen[1], a], dim=0)
        return b.cpu(), a.cpu()


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
    """Compute in `mode` for the time of the block; entering `folded` builds the dense weights, leaving frees them.

    Within `folded`, `base` may be entered and left again without another fold.
    """
    before = [layer.mode for layer in layers]
    fresh = [layer for layer in layers if mode == "folded" and layer.folded_weight is None]
    try:
        for layer in fresh:
            layer.fold()
        for layer in layers:
            layer.mode = mode
        yield
    finally:
        for layer, mode_before in zip(layers, before, strict=True):
            layer.mode = mode_before
        for layer in fresh:
            layer.folded_weight = None
