"""Sample completions, by a draw that depends on seed and row alone.

B completions, P prompt tokens, T completion tokens, V vocabulary.

Each row has a random stream of its own, and its token is argmax(log p + Gumbel noise), which is an exact draw from p
(Gumbel-max). So a completion does not depend on the rows beside it, and two policies that are given the same seeds see
the same noise: common random numbers along a front.
"""

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from warp_core.policy.decoding import Decoder
from warp_core.policy.inference import make_decoder
from warp_core.policy.model import Policy
from warp_core.policy.prompts import PromptBatch

__all__ = ["Completions", "GumbelSampler", "completion_mask", "row_seed", "sample"]

_WORTH_THREADS = 1 << 17  # random numbers; below, waking a thread costs more than it draws


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
    """Draws each row's token with the row's own Gumbel noise; remembers the log-probability.

    Args:
        seeds: one random stream per row; rows of the same seed share one, which is drawn once.
        temperature: > 0.
        keep: also remember the whole distributions.
        between: called before each draw; what it raises ends the sampling.

    Attributes:
        logps: logp_B of the token drawn, one entry per draw; 0 in rows that have left.
        kept: logp_BV, one entry per draw, where they are to be kept; 0 in rows that have left.
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
        self.temperature = temperature
        self.logps: list[torch.Tensor] = []
        self.kept: list[torch.Tensor] | None = [] if keep else None
        self._num_rows = len(seeds)
        self._rows = list(range(len(seeds)))
        self._stream_of = {seed: _Stream(seed) for seed in seeds}
        self._seeds = list(seeds)
        self._pool: ThreadPoolExecutor | None = None
        self.keep(self._rows)

    def keep(self, rows: Sequence[int]) -> None:
        """Draw for these of the present rows alone from now on, in this order."""
        self._rows = [self._rows[row] for row in rows]
        places: dict[int, list[int]] = {}
        for place, row in enumerate(self._rows):
            places.setdefault(self._seeds[row], []).append(place)
        self._streams = [self._stream_of[seed] for seed in places]
        self._places = list(places.values())

    def draw(self, logits_BV: torch.Tensor) -> torch.Tensor:
        """Return token_B: one draw from softmax(logits / temperature) for each of the present rows."""
        if self.between:
            self.between()
        scaled_BV = logits_BV.float() / self.temperature
        chance_BV = scaled_BV.softmax(dim=-1)
        token_B = self._race(chance_BV)
        if self.kept is None:
            logp_B = chance_BV.gather(1, token_B[:, None]).squeeze(1).log()
        else:
            logp_BV = scaled_BV.log_softmax(dim=-1)
            self.kept.append(self._of_all_rows(logp_BV))
            logp_B = logp_BV.gather(1, token_B[:, None]).squeeze(1)
        self.logps.append(self._of_all_rows(logp_B))
        return token_B

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return log-probabilities with noise, whose argmax is the draw, for loops that choose the token themselves."""
        if self.between:
            self.between()
        logp_BV = (scores.float() / self.temperature).log_softmax(dim=-1)
        noise_BV = self._exponentials(logp_BV.shape[1]).log_().to(logp_BV.device)
        drawn_BV = logp_BV - noise_BV
        if self.kept is not None:
            self.kept.append(logp_BV)
        self.logps.append(logp_BV.gather(1, drawn_BV.argmax(dim=-1, keepdim=True)).squeeze(1))
        return drawn_BV

    def _race(self, chance_BV: torch.Tensor) -> torch.Tensor:
        """The argmax of log p + Gumbel noise is that of p / E with E exponential, without a logarithm."""
        if chance_BV.device.type != "cpu":
            return (chance_BV / self._exponentials(chance_BV.shape[1]).to(chance_BV.device)).argmax(dim=-1)
        chances = chance_BV.numpy()
        tokens = np.empty(len(chances), dtype=np.int64)

        def race(part: slice) -> None:
            time, ratio = np.empty((2, chances.shape[1]), dtype=np.float32)
            for stream, places in zip(self._streams[part], self._places[part], strict=True):
                stream.fill(time)
                for place in places:
                    tokens[place] = np.divide(chances[place], time, out=ratio).argmax()

        self._in_parallel(race, numel=len(self._streams) * chances.shape[1])
        return torch.from_numpy(tokens)

    def _exponentials(self, width: int) -> torch.Tensor:
        """One row of noise for each present row, on the CPU on every device: same seeds, same noise everywhere."""
        noise_BV = torch.empty((len(self._rows), width), dtype=torch.float32)
        rows = noise_BV.numpy()

        def fill(part: slice) -> None:
            for stream, places in zip(self._streams[part], self._places[part], strict=True):
                stream.fill(rows[places[0]])
                rows[places[1:]] = rows[places[0]]

        self._in_parallel(fill, numel=noise_BV.numel())
        return noise_BV

    def _in_parallel(self, work: Callable[[slice], None], *, numel: int) -> None:
        """Call `work` for disjoint parts of the streams, as many as torch has threads: numpy lets go of Python."""
        parts = min(torch.get_num_threads(), len(self._streams)) if numel >= _WORTH_THREADS else 1
        if parts > 1 and self._pool is None:
            self._pool = ThreadPoolExecutor(torch.get_num_threads() - 1)
        others = [self._pool.submit(work, slice(part, None, parts)) for part in range(1, parts)] if self._pool else []
        work(slice(0, None, parts))
        for other in others:
            other.result()

    def _of_all_rows(self, values: torch.Tensor) -> torch.Tensor:
        if self._rows == list(range(self._num_rows)):
            return values
        everything = values.new_zeros(self._num_rows, *values.shape[1:])
        everything[self._rows] = values
        return everything


class _Stream:
    """A stream of exponential random numbers."""

    def __init__(self, seed: int) -> None:
        self._generator = np.random.Generator(np.random.SFC64(seed))

    def fill(self, row: NDArray[np.float32]) -> None:
        """Draw the next numbers into `row`."""
        self._generator.standard_exponential(out=row, dtype=np.float32)
        # Exactly 0 is a rounding artefact that would make an impossible token certain.
        np.maximum(row, 2.0**-25, out=row)


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
    """Draw tokens_BT one after another; padding after the end. Rows that have ended leave the batch."""
    group, ends = prompts.group, set(policy.eos_ids)
    logits_BV = decoder.prefill(prompts.ids_BP[::group], prompts.mask_BP[::group], copies=group)
    present = list(range(len(logits_BV)))
    drawn = [[policy.pad_id] * max_new_tokens for _ in present]
    has_ended = [False] * len(present)
    for number in range(max_new_tokens):
        token_B = sampler.draw(logits_BV)
        for row, token in zip(present, token_B.tolist(), strict=True):
            if not has_ended[row]:
                drawn[row][number] = token
                has_ended[row] = token in ends
        if all(has_ended) or number + 1 == max_new_tokens:
            break
        if decoder.can_keep and any(has_ended[row] for row in present):
            places = _without([has_ended[row] for row in present])
            decoder.keep(places)
            sampler.keep(places)
            present = [present[place] for place in places]
            token_B = token_B[places]
        logits_BV = decoder.step(token_B)
    return torch.tensor(drawn, device=prompts.ids_BP.device)[:, : number + 1]


def _without(leaves: Sequence[bool]) -> list[int]:
    """Places of the rows that stay; those at the end move to where others leave, so that few have to be moved."""
    staying = [place for place, gone in enumerate(leaves) if not gone]
    late = [place for place in staying if place >= len(staying)]
    return [late.pop() if leaves[place] else place for place in range(len(staying))]


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
