"""What a preview is made of, each part alone in this process: coefficients and merge, reading the prompt, a draw.

B rows, one per pane where adapters are sampled side by side, one in all where each pane is a model of its own.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial

import torch

from bench.engines import PROMPT
from warp_core.policy.bank import AdapterBank
from warp_core.policy.decoding import Decoder
from warp_core.policy.inference import make_decoder
from warp_core.policy.model import Policy, load_policy
from warp_core.policy.prompts import PromptBatch, encode_prompts
from warp_core.policy.sampling import GumbelSampler
from warp_core.service.library import Library
from warp_core.service.places import is_sft
from warp_core.service.protocol import Place, Selection
from warp_core.training.warp import Sources
from warp_core.weights import Coefficients, Geometry, ResidentMerge, coefficients, compute_geometry
from warp_core.workspace.paths import cache_root

__all__ = ["AdapterParts", "FullParts", "Parts", "open_parts"]

Within = Callable[[], AbstractContextManager[None]]


@dataclass(kw_only=True)
class Parts:
    """Seconds of each part of one preview.

    Attributes:
        merge_s: from slider positions to weights, or to what stands for them.
        prefill_s: the prompt in all panes.
        draw_s: a token in all panes.
        rest_s: the other tokens: steps and draws.
    """

    merge_s: float = 0.0
    prefill_s: float = 0.0
    draw_s: float = 0.0
    rest_s: float = 0.0

    @property
    def first_s(self) -> float:
        """Up to the first token."""
        return self.merge_s + self.prefill_s + self.draw_s


@dataclass(kw_only=True, eq=False)
class _Opened:
    """Checkpoints and their geometry, ready to be merged."""

    library: Library
    selection: Selection
    sources: Sources = field(init=False)
    geometry: Geometry = field(init=False)

    def __post_init__(self) -> None:
        self.sources = self.library.sources(self.selection, 1)
        granularity = self.library.measuring(self.selection).merge.granularity
        self.geometry = compute_geometry(
            self.sources.init, self.sources.policies, granularity=granularity, cache_dir=cache_root() / "geometry"
        )

    def coefficients(self, place: Place) -> Coefficients:
        return coefficients(self.library.recipe(self.selection, place), self.geometry)


class AdapterParts:
    """Three adapters over one base; the panes are rows of a batch."""

    def __init__(self, opened: _Opened) -> None:
        self._opened = opened
        sft = opened.sources.sft
        self._bank = AdapterBank(load_policy(sft.path, device=torch.device("cpu")), sft)
        self._bank.load(opened.sources.policies)

    def measure(self, places: Sequence[Place], *, seed: int, tokens: int) -> Parts:
        """Do all parts once."""
        parts, sources = Parts(), self._opened.sources
        began = time.perf_counter()
        checkpoints = (sources.init, *sources.policies)
        mixes = [
            None if is_sft(place) else self._bank.mix(self._opened.coefficients(place), checkpoints) for place in places
        ]
        table = self._bank.table(mixes)
        parts.merge_s = time.perf_counter() - began
        policy = self._bank.policy
        rows = _prompt(policy).repeat(len(places))
        _decode(policy, rows, parts, seed=seed, tokens=tokens, within=partial(self._bank.at, table))
        return parts


class FullParts:
    """Three whole checkpoints; each pane is a model whose weights are moved. The SFT policy's is there already."""

    def __init__(self, opened: _Opened) -> None:
        self._opened = opened
        cpu, sources = torch.device("cpu"), opened.sources
        self._sft = load_policy(sources.sft.path, device=cpu)
        self._live = [load_policy(sources.sft.path, device=cpu) for _ in range(2)]
        first = ResidentMerge(self._live[0].model, init=sources.init, policies=sources.policies)
        self._merges = [first, first.beside(self._live[1].model)]

    def measure(self, places: Sequence[Place], *, seed: int, tokens: int) -> Parts:
        """Do all parts once."""
        parts = Parts()
        began = time.perf_counter()
        for merge, place in zip(self._merges, places[1:], strict=True):
            merge.move(self._opened.coefficients(place))
        parts.merge_s = time.perf_counter() - began
        for policy in (self._sft, *self._live):
            _decode(policy, _prompt(policy), parts, seed=seed, tokens=tokens)
        return parts


def open_parts(library: Library, selection: Selection) -> AdapterParts | FullParts:
    """Load what a selection needs."""
    opened = _Opened(library=library, selection=selection)
    return AdapterParts(opened) if opened.sources.policies[0].kind == "adapter" else FullParts(opened)


def _prompt(policy: Policy) -> PromptBatch:
    return encode_prompts([PROMPT], policy.tokenizer, chat_template=False, device=policy.device)


@torch.no_grad()
def _decode(
    policy: Policy, prompt: PromptBatch, parts: Parts, *, seed: int, tokens: int, within: Within = nullcontext
) -> None:
    """Add the times of the prompt, a draw and the tokens after it."""
    sampler = GumbelSampler([seed] * len(prompt.texts), temperature=1.0)
    began = time.perf_counter()
    with within():
        decoder = make_decoder(policy, max_new_tokens=tokens)
        assert decoder is not None
        logits_BV = decoder.prefill(prompt.ids_BP, prompt.mask_BP)
    filled = time.perf_counter()
    token_B = sampler(prompt.ids_BP, logits_BV).argmax(dim=-1)
    drawn = time.perf_counter()
    _rest(decoder, sampler, token_B, prompt, tokens=tokens, within=within)
    parts.prefill_s += filled - began
    parts.draw_s += drawn - filled
    parts.rest_s += time.perf_counter() - drawn


def _rest(
    decoder: Decoder, sampler: GumbelSampler, token_B: torch.Tensor, prompt: PromptBatch, *, tokens: int, within: Within
) -> None:
    for _ in range(tokens - 1):
        with within():
            logits_BV = decoder.step(token_B)
        token_B = sampler(prompt.ids_BP, logits_BV).argmax(dim=-1)
