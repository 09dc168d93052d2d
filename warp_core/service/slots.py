"""Full checkpoints side by side: the sources of a merge once in memory, and a live model per pane that they move.

Memory: the init, every policy and the SFT policy of one iteration, and up to three live models, made when they are
first needed and as far as the memory allows; with fewer of them than models the panes take turns. The SFT policy's own
pane computes with the weights that the merges hold, where these are of the dtype that is computed in.
"""

import copy
import gc
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import psutil
import torch

from warp_core.policy.model import Policy, load_policy
from warp_core.service.seats import Blend, Seat
from warp_core.training.warp import Sources
from warp_core.weights import Checkpoint, ResidentMerge

__all__ = ["SharedSources", "Slots", "free_bytes"]

MAX_LIVE = 3
_RESERVE_BYTES = 1 << 29  # for activations, logits and everyone else


def free_bytes(device: torch.device) -> int:
    """Return the memory that can still be taken on a device."""
    if device.type == "cuda":
        # What the allocator keeps for later counts as free.
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + kept
    return int(psutil.virtual_memory().available)


class SharedSources:
    """Merges over the same checkpoints hold them in memory once, for as long as one of these merges is in use."""

    def __init__(self) -> None:
        self._merges: dict[tuple[str, ...], weakref.WeakSet[ResidentMerge]] = {}

    def holds(self, sources: Sources) -> bool:
        """Whether the checkpoints are in memory."""
        return bool(self._merges.get(_ids(sources)))

    def merge_on(self, model: torch.nn.Module, *, sources: Sources) -> ResidentMerge:
        """Return what moves a live model; its weights are theta_init then. Raises as `ResidentMerge` does."""
        users = self._merges.setdefault(_ids(sources), weakref.WeakSet())
        known = next(iter(users), None)
        if known is None:
            made = ResidentMerge(model, init=sources.init, policies=sources.policies, towards=sources.towards)
        else:
            made = known.beside(model)
        users.add(made)
        return made


@dataclass(kw_only=True, eq=False)
class _Live:
    """A model whose weights move; `merge` moves them among `sources`, `key` says which blend they are."""

    policy: Policy
    merge: ResidentMerge | None = None
    sources: tuple[str, ...] = ()
    key: str | None = None
    used: int = 0


class Slots:
    """Live models for merges of full checkpoints. Not safe for two threads at once.

    Args:
        sft: the SFT policy, whose architecture and tokenizer all have.
        device: where they live.
        dtype: what they compute in.
        shared: where the sources of merges are held.

    Attributes:
        policy: the SFT policy, which no merge moves.
    """

    def __init__(
        self, sft: Checkpoint, *, device: torch.device, dtype: torch.dtype, shared: SharedSources | None = None
    ) -> None:
        self._sft, self._device = sft, device
        self._shared = shared or SharedSources()
        self._live: list[_Live] = []
        self._calls = 0
        self.policy = load_policy(sft.path, device=device, dtype=dtype)

    @property
    def num_live(self) -> int:
        """How many live models there are."""
        return len(self._live)

    def seats(self, blends: Sequence[Blend]) -> tuple[list[Seat], bool]:
        """Return a seat per blend, in order, and whether all of them can be held at once.

        Where they cannot, `begin` of one seat may take the weights of another away.
        """
        self._calls += 1
        wanted = list(dict.fromkeys(blend.key for blend in blends if not blend.is_sft))
        self._make_room(len(wanted), blends[0])
        chosen = self._assign(wanted)
        for key in wanted:
            chosen[key].used = self._calls
        seats = [self._seat(number, blend, chosen) for number, blend in enumerate(blends)]
        return seats, len(wanted) <= len(self._live)

    def _seat(self, number: int, blend: Blend, chosen: Mapping[str, _Live]) -> Seat:
        if blend.is_sft:
            return Seat(panes=(number,), policy=self.policy, begin=lambda: None, reference=self.policy)
        live = chosen[blend.key]
        return Seat(panes=(number,), policy=live.policy, begin=partial(self._put, live, blend), reference=self.policy)

    def _make_room(self, wanted: int, blend: Blend) -> None:
        """Make more live models where they are wanted and the memory allows, the sources still to be read included."""
        held = {one.full.id: one.full for one in blend.checkpoints}
        if self._shared.holds(blend.sources):
            held = {}
        sources = sum(entry.numel * entry.dtype.itemsize for one in held.values() for entry in one.tensors.values())
        size = sum(tensor.numel() * tensor.element_size() for tensor in self.policy.model.parameters())
        while len(self._live) < min(wanted, MAX_LIVE):
            if self._live and free_bytes(self._device) <= size + sources + _RESERVE_BYTES:
                return
            twin = replace(self.policy, model=copy.deepcopy(self.policy.model))
            self._live.append(_Live(policy=twin))

    def _assign(self, wanted: Sequence[str]) -> dict[str, _Live]:
        """Give every key a live model: the one that is it already, or else the one that was not used for longest."""
        chosen = {live.key: live for live in self._live if live.key in wanted}
        found: dict[str, _Live] = {key: chosen[key] for key in wanted if key in chosen}
        rest = sorted((live for live in self._live if live not in found.values()), key=lambda live: live.used)
        turns = rest or self._live[-1:]
        for number, key in enumerate(key for key in wanted if key not in found):
            found[key] = turns[number % len(turns)]
        return found

    def _put(self, live: _Live, blend: Blend) -> None:
        if live.key == blend.key:
            return
        assert blend.coefficients is not None, "the SFT policy has a seat of its own"
        live.key = None
        self._merge_for(live, blend).move(blend.coefficients)
        live.key = blend.key

    def _merge_for(self, live: _Live, blend: Blend) -> ResidentMerge:
        """What moves a live model among the sources of a blend; those of another iteration are let go of."""
        ids = _ids(blend.sources)
        if live.merge is None or live.sources != ids:
            for other in self._live:
                if other.sources != ids:
                    other.merge = None
            gc.collect()
            live.merge = self._shared.merge_on(live.policy.model, sources=blend.sources)
            live.sources = ids
            self._share(live.merge)
        return live.merge

    def _share(self, merge: ResidentMerge) -> None:
        """Let the SFT policy compute with the weights that a merge holds, which never change."""
        held = merge.parameters_of(self._sft)
        for name, parameter in self.policy.model.named_parameters():
            if held[name].dtype == parameter.dtype:
                parameter.data = held[name]


def _ids(sources: Sources) -> tuple[str, ...]:
    return (sources.sft.id, sources.init.id, *(policy.id for policy in sources.policies))
