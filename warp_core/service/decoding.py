"""Draw completions token by token, so that several models can take turns and every token can be seen at once.

Shape suffixes: P prompts (one text, once per model), k copies of each, B = P k rows, V vocabulary.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from transformers import PreTrainedTokenizerBase

from warp_core.evaluation.evaluate import KEPT_NUMEL
from warp_core.policy.decoding import Decoder
from warp_core.policy.inference import make_decoder
from warp_core.policy.model import Policy
from warp_core.policy.prompts import PromptBatch
from warp_core.policy.sampling import Completions, GumbelSampler, completion_mask

__all__ = ["GrowingText", "TokenStream"]


class GrowingText:
    """The text of tokens that come one by one; a character whose bytes are not all there is not shown yet."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._tokens: list[int] = []
        self._start = self._read = 0
        self.text = ""

    def add(self, token: int) -> None:
        """Take the next token in."""
        self._tokens.append(token)
        # Tokenizers write a token differently at the start of a text (the space on its left): hence with the ones
        # before it, and only what it adds to them.
        before = self._decoded(self._tokens[self._start : self._read])
        now = self._decoded(self._tokens[self._start :])
        if len(now) > len(before) and not now.endswith("\N{REPLACEMENT CHARACTER}"):
            self.text += now[len(before) :]
            self._start, self._read = self._read, len(self._tokens)

    def finish(self) -> None:
        """Decode the whole once more: there is nothing to wait for."""
        self.text = self._decoded(self._tokens)

    def _decoded(self, tokens: list[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True))


class TokenStream:
    """The completions of one prompt, drawn as `warp_core.policy.sampling.sample` draws them, one token per `step`.

    Args:
        policy: the model.
        prompt: the prompt as P equal rows; row p is computed by the p-th of the models that `within` makes of `policy`.
        seeds: k seeds: the same random numbers for every model.
        max_new_tokens: at most.
        temperature: > 0.
        within: entered for the time of each forward pass.

    Attributes:
        texts: of the B rows, as far as they have come; row p k + n is the n-th completion of the p-th model.
        num_tokens: drawn in each row.
        has_ended: whether a row is complete.
    """

    def __init__(
        self,
        policy: Policy,
        prompt: PromptBatch,
        *,
        seeds: Sequence[int],
        max_new_tokens: int,
        temperature: float,
        within: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._policy, self._prompt, self._within = policy, prompt, within
        self._copies, self._max_new_tokens = len(seeds), max_new_tokens
        rows = len(prompt.texts) * len(seeds)
        numel = rows * max_new_tokens * policy.model.config.get_text_config().vocab_size
        self._sampler = GumbelSampler(
            list(seeds) * len(prompt.texts), temperature=temperature, keep=numel <= KEPT_NUMEL
        )
        self._columns: list[torch.Tensor] = []
        self._decoder: Decoder | None = None
        self._ended_B = torch.zeros(rows, dtype=torch.bool, device=policy.device)
        self._eos = torch.tensor(policy.eos_ids, dtype=torch.int64, device=policy.device)
        self._texts = [GrowingText(policy.tokenizer) for _ in range(rows)]
        self.num_tokens = [0] * rows
        self.has_ended = [False] * rows

    @property
    def texts(self) -> tuple[str, ...]:
        """The completions so far."""
        return tuple(text.text for text in self._texts)

    @property
    def is_complete(self) -> bool:
        """Whether every row has ended."""
        return all(self.has_ended)

    @torch.no_grad()
    def step(self) -> None:
        """Draw one token in every row that has not ended."""
        with self._within():
            logits_BV = self._next_logits()
        token_B = self._sampler(self._prompt.ids_BP, logits_BV).argmax(dim=-1)
        token_B = token_B.masked_fill(self._ended_B, self._policy.pad_id)
        self._columns.append(token_B)
        self._ended_B = self._ended_B | torch.isin(token_B, self._eos)
        is_last = len(self._columns) == self._max_new_tokens
        for row, (token, ended) in enumerate(zip(token_B.tolist(), self._ended_B.tolist(), strict=True)):
            if self.has_ended[row]:
                continue
            self._texts[row].add(token)
            self.num_tokens[row] += 1
            if ended or is_last:
                self._texts[row].finish()
                self.has_ended[row] = True

    def _next_logits(self) -> torch.Tensor:
        """Logits of the next token."""
        prompt = self._prompt
        if not self._columns:
            # Made within, where it is known whether the rows of a batch are different models.
            self._decoder = make_decoder(self._policy, max_new_tokens=self._max_new_tokens)
            if self._decoder is not None:
                return self._decoder.prefill(prompt.ids_BP, prompt.mask_BP, copies=self._copies)
        if self._decoder is not None:
            return self._decoder.step(self._columns[-1])
        # A model with a memory of its own kind: it reads everything again, which is slow and right.
        ids_BP = prompt.ids_BP.repeat_interleave(self._copies, dim=0)
        ids_BS = torch.cat([ids_BP, *(column[:, None] for column in self._columns)], dim=1)
        extra = {"logits_to_keep": 1} if self._policy.keeps_logits else {}
        logits_BSV: torch.Tensor = self._policy.model(input_ids=ids_BS, use_cache=False, **extra).logits
        return logits_BSV[:, -1]

    def completions(self) -> Completions:
        """Return what was drawn; all rows are the one prompt, which may be computed once for all of them."""
        self._decoder = None
        tokens_BT = torch.stack(self._columns, dim=1)
        mask_BT = completion_mask(tokens_BT, self._policy.eos_ids)
        rows = len(tokens_BT)
        kept = self._sampler.kept
        return Completions(
            prompts=PromptBatch(
                texts=self._prompt.texts[:1] * rows,
                ids_BP=self._prompt.ids_BP[:1].expand(rows, -1),
                mask_BP=self._prompt.mask_BP[:1].expand(rows, -1),
                group=rows,
            ),
            tokens_BT=tokens_BT,
            mask_BT=mask_BT,
            logp_BT=torch.stack(self._sampler.logps, dim=1).masked_fill(~mask_BT, 0.0),
            texts=self.texts,
            logps_BTV=torch.stack(kept, dim=1) if kept else None,
        )
