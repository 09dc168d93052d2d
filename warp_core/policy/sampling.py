"""Sample completions, by a draw that depends on seed and row alone.

B completions, P prompt tokens, T completion tokens, V vocabulary.

Each row has a random stream of its own, and its token is argmax(log p + Gumbel noise), which is an exact draw from p
(Gumbel-max). So a completion does not depend on the rows beside it, and two policies that are given the same seeds see
the same noise: common random numbers along a front.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from warp_core.policy.decoding import Decoder
from warp_core.policy.inference import make_decoder
from warp_core.policy.model import Policy
from warp_core.policy.prompts import PromptBatch

__all__ = ["Completions", "GumbelSampler", "completion_mask", "row_seed", "sample"]


@dataclass(frozen=True, kw_only=True)
class Completions:
    """Sampled completions and what was known when they were drawn.

    Attributes:
        prompts: the B prompts, one row a completion.
        tokens_BT: int64 tokens, padding after the end.
        mask_BT: bool, true up to and including the end token.
        logp_BT: float32 log-probabilities under the sampling distribution, as the sampler saw them; 0 where masked.
        texts: the decoded completions, without special tokens.
        logps_BTV: float32, the whole distributions that the tokens were drawn from, where they were asked for.
    """

    prompts: PromptBatch
    tokens_BT: torch.Tensor
    mask_BT: torch.Tensor
    logp_BT: torch.Tensor
    texts: tuple[str, ...]
    logps_BTV: torch.Tensor | None = None

    @property
    def num_tokens(self) -> tuple[int, ...]:
        """Length of each completion in tokens, the end token included."""
        return tuple(int(n) for n in self.mask_BT.sum(dim=1))

    def rows(self, start: int, stop: int) -> "Completions":
        """Return the rows start..stop-1."""
        return Completions(
            prompts=self.prompts.rows(start, stop),
            tokens_BT=self.tokens_BT[start:stop],
            mask_BT=self.mask_BT[start:stop],
            logp_BT=self.logp_BT[start:stop],
            texts=self.texts[start:stop],
            logps_BTV=None if self.logps_BTV is None else self.logps_BTV[start:stop],
        )


def row_seed(*parts: object) -> int:
    """Return a seed that depends on every part: randomness is derived, never carried, so that a resume repeats it."""
    digest = hashlib.sha256("/".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


class GumbelSampler(LogitsProcessor):
    """Adds each row's own Gumbel noise, so that the greedy choice is a draw; remembers the log-probability.

    Args:
        seeds: one random stream per row.
        temperature: > 0.
        keep: also remember the whole distributions.
        between: called before each draw; what it raises ends the sampling.

    Attributes:
        logps: logp_B of the token drawn, one entry per draw.
        kept: logp_BV, one entry per draw, where they are to be kept.
    """

    def __init__(
        self,
        seeds: Sequence[int],
        *,
        temperature: float,
        keep: bool = False,
        between: Callable[[], None] | None = None,
    ) -> None:
        self.between = between
        self.generators = [np.random.Generator(np.random.SFC64(seed)) for seed in seeds]
        self.temperature = temperature
        self.logps: list[torch.Tensor] = []
        self.kept: list[torch.Tensor] | None = [] if keep else None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return log-probabilities with noise, whose argmax is the draw; `scores` are the logits of the B rows."""
        if self.between:
            self.between()
        logp_BV = (scores.float() / self.temperature).log_softmax(dim=-1)
        # Drawn on the CPU on every device: the same seeds give the same noise everywhere.
        noise_BV = torch.empty(logp_BV.shape, dtype=torch.float32)
        for row, generator in zip(noise_BV.numpy(), self.generators, strict=True):
            generator.standard_exponential(out=row, dtype=np.float32)
        # An exponential of exactly 0 is a rounding artefact that would make an impossible token certain.
        drawn_BV = logp_BV - noise_BV.clamp_min_(2.0**-25).log_().to(logp_BV.device)
        token_B1 = drawn_BV.argmax(dim=-1, keepdim=True)
        if self.kept is not None:
            self.kept.append(logp_BV)
        self.logps.append(logp_BV.gather(1, token_B1).squeeze(1))
        return drawn_BV


def completion_mask(tokens_BT: torch.Tensor, eos_ids: Sequence[int]) -> torch.Tensor:
    """Return a bool mask, true up to and including the first end token: what comes after it counts for nothing."""
    ended_BT = torch.isin(tokens_BT, torch.tensor(eos_ids, dtype=tokens_BT.dtype, device=tokens_BT.device))
    return (ended_BT.cumsum(dim=1) - ended_BT.long()) == 0


@torch.no_grad()
def sample(
    policy: Policy,
    prompts: PromptBatch,
    *,
    seeds: Sequence[int],
    max_new_tokens: int,
    temperature: float,
    keep_distributions: bool = False,
    between: Callable[[], None] | None = None,
) -> Completions:
    """Draw one completion per row of `prompts`, from softmax(logits / temperature) over the whole vocabulary.

    Args:
        policy: the model; its weights are used as they are.
        prompts: B prompts, padded on the left.
        seeds: B seeds, one random stream per row.
        max_new_tokens: T at most.
        temperature: > 0.
        keep_distributions: also return what each token was drawn from, B T V numbers, which saves scoring them again.
        between: called before each token; what it raises ends the sampling.
    """
    if len(seeds) != len(prompts.texts):
        raise ValueError(f"{len(seeds)} seeds for {len(prompts.texts)} prompts: one per row is needed")
    sampler = GumbelSampler(seeds, temperature=temperature, keep=keep_distributions, between=between)
    decoder = make_decoder(policy, max_new_tokens=max_new_tokens)
    if decoder is None:
        tokens_BT = _generated(policy, prompts, sampler, max_new_tokens=max_new_tokens)
    else:
        tokens_BT = _decoded(policy, prompts, sampler, decoder, max_new_tokens=max_new_tokens)
    mask_BT = completion_mask(tokens_BT, policy.eos_ids)
    logp_BT = torch.stack(sampler.logps, dim=1).masked_fill(~mask_BT, 0.0)
    texts = [
        policy.tokenizer.decode(row[keep], skip_special_tokens=True)
        for row, keep in zip(tokens_BT, mask_BT, strict=True)
    ]
    return Completions(
        prompts=prompts,
        tokens_BT=tokens_BT,
        mask_BT=mask_BT,
        logp_BT=logp_BT,
        texts=tuple(texts),
        logps_BTV=torch.stack(sampler.kept, dim=1) if sampler.kept else None,
    )


def _decoded(
    policy: Policy, prompts: PromptBatch, sampler: GumbelSampler, decoder: Decoder, *, max_new_tokens: int
) -> torch.Tensor:
    """Draw tokens_BT one after another; padding after the end."""
    group = prompts.group
    eos = torch.tensor(policy.eos_ids, dtype=torch.int64, device=prompts.ids_BP.device)
    logits_BV = decoder.prefill(prompts.ids_BP[::group], prompts.mask_BP[::group], copies=group)
    ended_B = torch.zeros(len(logits_BV), dtype=torch.bool, device=logits_BV.device)
    columns: list[torch.Tensor] = []
    while True:
        token_B = sampler(prompts.ids_BP, logits_BV).argmax(dim=-1).masked_fill(ended_B, policy.pad_id)
        columns.append(token_B)
        ended_B = ended_B | torch.isin(token_B, eos)
        if len(columns) == max_new_tokens or bool(ended_B.all()):
            return torch.stack(columns, dim=1)
        logits_BV = decoder.step(token_B)


def _generated(policy: Policy, prompts: PromptBatch, sampler: GumbelSampler, *, max_new_tokens: int) -> torch.Tensor:
    """Draw tokens_BT by transformers' own loop, for models with a memory of their own kind."""
    settings = GenerationConfig(
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=list(policy.eos_ids) or None,
        pad_token_id=policy.pad_id,
    )
    sequences: torch.Tensor = policy.model.generate(
        input_ids=prompts.ids_BP,
        attention_mask=prompts.mask_BP,
        generation_config=settings,
        logits_processor=LogitsProcessorList([sampler]),
    )
    return sequences[:, prompts.ids_BP.shape[1] :].clone()
