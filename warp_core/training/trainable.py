"""What a run trains, behind one small face: a LoRA adapter on a frozen base, or every weight of the model.

Both keep float32 masters that the optimizer steps, and can turn the model into its anchor or into the SFT policy for
the time of a block without copying the policy away.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Protocol

import torch

from warp_core.policy.inference import fast_inference, plain_inference
from warp_core.policy.lora import Factors, LoraLinear, attach_lora, in_mode
from warp_core.policy.model import Policy, load_policy, pointed_at
from warp_core.training.config import AdapterConfig

__all__ = ["FullTrainable", "LoraTrainable", "Trainable"]

Tensors = dict[str, torch.Tensor]


class Trainable(Protocol):
    """A policy in training."""

    policy: Policy
    masters: Tensors

    def sampling(self) -> AbstractContextManager[None]:
        """Within the block the model samples fast from the policy."""

    def at_anchor(self, ema: Mapping[str, torch.Tensor]) -> AbstractContextManager[None]:
        """Within the block the model is the anchor with the masters `ema`."""

    def at_sft(self) -> AbstractContextManager[None]:
        """Within the block the model is the SFT policy."""

    def holding_sft(self) -> AbstractContextManager[None]:
        """Within the block the SFT policy is at hand, for many short uses of `at_sft`."""

    def spread_masters(self) -> None:
        """After an optimizer step: see that the model computes with the new masters."""


class LoraTrainable:
    """A LoRA adapter over the shared base; on top of `frozen`, the adapter of an earlier iteration's init."""

    def __init__(
        self, policy: Policy, config: AdapterConfig, *, seed: int, frozen: Mapping[str, Factors] | None = None
    ) -> None:
        self.policy = policy
        self.layers: dict[str, LoraLinear] = attach_lora(
            policy.model,
            rank=config.rank,
            scale=config.alpha / config.rank,
            targets=config.targets,
            seed=seed,
            frozen=frozen,
        )
        self.masters: Tensors = {}
        for name, layer in self.layers.items():
            layer.a_RI.requires_grad_(config.train == "both" and layer.a_RI.numel() > 0)
            if layer.a_RI.numel():
                self.masters[f"{name}.b_OR"] = layer.b_OR
            if layer.a_RI.requires_grad:
                self.masters[f"{name}.a_RI"] = layer.a_RI

    @contextmanager
    def sampling(self) -> Iterator[None]:
        """Prepare the factors and the head; the base is held in its fast layout already."""
        with ExitStack() as stack:
            for layer in self.layers.values():
                stack.enter_context(layer.ready())
            stack.enter_context(fast_inference(self.policy))
            yield

    @contextmanager
    def at_anchor(self, ema: Mapping[str, torch.Tensor]) -> Iterator[None]:
        """Point the factors at the EMA's; the base is shared."""
        with pointed_at(self.policy.model, ema), in_mode(list(self.layers.values()), "lora"):
            yield

    def at_sft(self) -> AbstractContextManager[None]:
        """Leave every adapter out: the base is the SFT policy."""
        return in_mode(list(self.layers.values()), "base")

    def holding_sft(self) -> AbstractContextManager[None]:
        """The base is always at hand."""
        return nullcontext()

    def spread_masters(self) -> None:
        """Nothing to do: the masters are what the model computes with."""

    def factors(self) -> dict[str, Factors]:
        """Return the complete adapter over the base, by layer path."""
        return {name: layer.factors() for name, layer in self.layers.items()}

    @property
    def transposed(self) -> frozenset[str]:
        """The layers whose weight is stored as [in, out]."""
        return frozenset(name for name, layer in self.layers.items() if layer.transposed)


class FullTrainable:
    """Every weight of the model; masters beside it where it computes in less than float32.

    Args:
        policy: the model at the init of the iteration, in float32.
        dtype: what it computes in.
        sft_folder: where the SFT policy lies; it is read when it is asked for.
        keep_sft: hold the SFT policy in memory (it is the anchor of every step).
    """

    def __init__(self, policy: Policy, *, dtype: torch.dtype, sft_folder: Callable[[], Path], keep_sft: bool) -> None:
        self.policy = policy
        self.live: Tensors = dict(policy.model.named_parameters())
        self.masters: Tensors = self.live
        for parameter in self.live.values():
            parameter.requires_grad_(True)
        if dtype != torch.float32:
            self.masters = {name: live.detach().clone().requires_grad_(True) for name, live in self.live.items()}
            for name, live in self.live.items():
                # Parameters alone: rotary frequencies stay float32, as in a model that is loaded in `dtype`.
                live.data = live.data.to(dtype)
                hook = _moves_gradient_to(self.masters[name])
                live.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]
        self._sft_folder, self._keep_sft = sft_folder, keep_sft
        self._sft: Tensors | None = None

    def sampling(self) -> AbstractContextManager[None]:
        """Lay the weights out anew for the time of the block, in which there are no gradients."""
        return fast_inference(self.policy)

    @contextmanager
    def at_anchor(self, ema: Mapping[str, torch.Tensor]) -> Iterator[None]:
        """Point the weights at the EMA, cast to the compute dtype where that differs."""
        anchor = {name: ema[name].to(live.dtype) for name, live in self.live.items()}
        with plain_inference(self.policy), pointed_at(self.policy.model, anchor):
            yield

    @contextmanager
    def at_sft(self) -> Iterator[None]:
        """Point the weights at the SFT policy's."""
        if self._sft is None:
            self._sft = self._read_sft()
        try:
            with plain_inference(self.policy), pointed_at(self.policy.model, self._sft):
                yield
        finally:
            if not self._keep_sft:
                self._sft = None

    @contextmanager
    def holding_sft(self) -> Iterator[None]:
        """Read the SFT policy once for the whole block."""
        keep, self._keep_sft = self._keep_sft, True
        try:
            yield
        finally:
            self._keep_sft = keep
            if not keep:
                self._sft = None

    def _read_sft(self) -> Tensors:
        sft = load_policy(self._sft_folder(), device=self.policy.device, dtype=self.policy.dtype)
        return {name: parameter.data for name, parameter in sft.model.named_parameters()}

    @torch.no_grad()
    def spread_masters(self) -> None:
        """Round the masters into the compute dtype."""
        if self.masters is not self.live:
            torch._foreach_copy_(list(self.live.values()), list(self.masters.values()))

    def save(self, folder: Path) -> None:
        """Write config and float32 weights into an existing folder, under the names they have on the Hub."""
        masters = {name: master.detach() for name, master in self.masters.items()}
        with pointed_at(self.policy.model, masters):
            self.policy.model.save_pretrained(folder)


def _moves_gradient_to(master: torch.Tensor) -> Callable[[torch.Tensor], None]:
    """A hook for a low-precision weight: its gradient is added up in float32 and let go of, one weight at a time."""

    def hook(live: torch.Tensor) -> None:
        if live.grad is not None:
            master.grad = live.grad.float() if master.grad is None else master.grad.add_(live.grad)
            live.grad = None

    return hook
