"""Compute one token after another: a prompt once for all of its completions, the cache in place, rows leave when done.

decoder = make_decoder(runner, policy, max_new_tokens=24)
logits_BV = decoder.prefill(ids_GP, mask_GP, copies=4)      # B = 4 G rows, the copies of a prompt side by side
logits_BV = decoder.step(token_B)
decoder.keep([0, 1, 3])                                     # row 2 leaves; step takes three tokens from now on

G prompts, P prompt tokens, k copies, B = G k rows, T new tokens at a time, S slots of the cache, V vocabulary.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from transformers import DynamicCache

from warp_core.policy.llama import FusedLlama, KeyValues, Place, rows_stay
from warp_core.policy.model import Policy

__all__ = ["Decoder", "LlamaDecoder", "TransformersDecoder", "positions_of"]


class Decoder(Protocol):
    """The state of B completions that are being drawn; without gradients."""

    @property
    def can_keep(self) -> bool:
        """Whether rows may leave; where a row's number says what it is, they stay."""

    def prefill(self, ids_GP: torch.Tensor, mask_GP: torch.Tensor, *, copies: int = 1) -> torch.Tensor:
        """Read the prompts, padded on the left, each for `copies` rows; return logits_BV of the first new token."""

    def step(self, token_B: torch.Tensor) -> torch.Tensor:
        """Take one more token in every row; return logits_BV of the next."""

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows alone, in this order."""


def positions_of(mask_BS: torch.Tensor) -> torch.Tensor:
    """Return positions that count from the first token that is not padding."""
    return (mask_BS.cumsum(dim=1) - 1).clamp_min(0)


class LlamaDecoder:
    """Decodes by `FusedLlama`.

    Args:
        model: the model.
        max_new_tokens: slots of the cache after the prompt.
    """

    def __init__(self, model: FusedLlama, *, max_new_tokens: int) -> None:
        self.model, self.max_new_tokens = model, max_new_tokens
        self._in_rows = model.rows_stay
        self._cache: KeyValues
        self._rotations: tuple[torch.Tensor, torch.Tensor]
        self._mask_BS: torch.Tensor
        self._slot: int
        self._next_B: torch.Tensor
        self._bias_B1TS: torch.Tensor | None

    @property
    def can_keep(self) -> bool:
        """Whether rows may leave; see `Decoder`."""
        return not self._in_rows

    def prefill(self, ids_GP: torch.Tensor, mask_GP: torch.Tensor, *, copies: int = 1) -> torch.Tensor:
        """Read the prompts; see `Decoder`."""
        logits_GV = self.model.logits(self._prompts(ids_GP, mask_GP, copies=copies))
        self._decoding()
        return logits_GV.repeat_interleave(copies, dim=0)

    def score(
        self, ids_GP: torch.Tensor, mask_GP: torch.Tensor, tokens_BT: torch.Tensor, mask_BT: torch.Tensor
    ) -> torch.Tensor:
        """Return the hidden states [M, H] that the M tokens under `mask_BT` are predicted from, in the mask's order.

        Args:
            ids_GP: the prompts, padded on the left.
            mask_GP: 0 on padding.
            tokens_BT: completions, those of a prompt side by side.
            mask_BT: true from the first token up to one of them.
        """
        copies = len(tokens_BT) // len(ids_GP)
        first_BH = self._prompts(ids_GP, mask_GP, copies=copies).repeat_interleave(copies, dim=0)
        # A token is read where the next one is asked for.
        read_BT = mask_BT[:, 1:]
        if not read_BT.any():
            return first_BH
        self._mask_BS = torch.cat([self._mask_BS, read_BT.to(self._mask_BS.dtype)], dim=1)
        rest_NH = self._read(tokens_BT[:, :-1], start=ids_GP.shape[1])
        if self._all_are_computed(read_BT):
            rest_NH = rest_NH[read_BT.flatten()]
        states_BTH = first_BH.new_zeros(*mask_BT.shape, first_BH.shape[1])
        states_BTH[:, 0] = first_BH
        states_BTH[:, 1:][read_BT] = rest_NH
        return states_BTH[mask_BT]

    def _prompts(self, ids_GP: torch.Tensor, mask_GP: torch.Tensor, *, copies: int) -> torch.Tensor:
        """Read the prompts into a cache for all rows; return the hidden state [G, H] of each one's last token."""
        self._in_rows = self.model.rows_stay
        rows, length = ids_GP.shape
        slots = length + self.max_new_tokens
        self._cache = KeyValues(self.model, rows=rows, slots=slots if copies == 1 else length)
        self._rotations = self.model.rotations(slots)
        self._mask_BS = mask_GP
        hidden_NH = self._read(ids_GP, start=0)
        if copies > 1:
            self._cache = self._cache.repeated(copies, slots=slots)
            self._mask_BS = mask_GP.repeat_interleave(copies, dim=0)
        return hidden_NH[self._last_G(mask_GP)]

    def step(self, token_B: torch.Tensor) -> torch.Tensor:
        """Take one token in every row; see `Decoder`."""
        slot = self._slot
        cos_LD, sin_LD = self._rotations
        place = Place(
            start=slot,
            shape=(len(token_B), 1),
            in_rows=self._in_rows,
            real_N=None,
            cos_N1D=cos_LD[self._next_B, None],
            sin_N1D=sin_LD[self._next_B, None],
            bias_B1TS=None if self._bias_B1TS is None else self._bias_B1TS[..., : slot + 1],
        )
        hidden_BH = self.model.hidden(token_B[:, None], self._cache, place)
        self._slot, self._next_B = slot + 1, self._next_B + 1
        return self.model.logits(hidden_BH)

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows; see `Decoder`."""
        self._cache.keep(rows)
        index = torch.tensor(rows, device=self._next_B.device)
        self._next_B = self._next_B[index]
        if self._bias_B1TS is not None:
            self._bias_B1TS = self._bias_B1TS[index]

    def _decoding(self) -> None:
        """Prepare what every step needs: its position, and which slots of the prompt are padding."""
        mask_BP = self._mask_BS
        self._slot, self._next_B = mask_BP.shape[1], mask_BP.sum(dim=1)
        self._bias_B1TS = None
        if not mask_BP.all():
            padding_BP = mask_BP == 0
            bias_BS = torch.zeros(len(mask_BP), self._slot + self.max_new_tokens, device=mask_BP.device)
            bias_BS[:, : self._slot].masked_fill_(padding_BP, -torch.inf)
            self._bias_B1TS = bias_BS.to(self.model.attention_dtype)[:, None, None]

    def _last_G(self, mask_GT: torch.Tensor) -> torch.Tensor:
        """The index of each row's last token among those that are computed; the padding is on the left."""
        if self._all_are_computed(mask_GT):
            return torch.arange(1, len(mask_GT) + 1, device=mask_GT.device) * mask_GT.shape[1] - 1
        return mask_GT.sum(dim=1).cumsum(dim=0) - 1

    def _all_are_computed(self, mask_BT: torch.Tensor) -> bool:
        return self._in_rows or bool(mask_BT.all())

    def _read(self, ids_BT: torch.Tensor, *, start: int) -> torch.Tensor:
        """Run T new tokens of each row, which stand from slot `start`."""
        mask_BS, (rows, tokens) = self._mask_BS, ids_BT.shape
        new_BT = mask_BS[:, start:]
        real_N = None if self._all_are_computed(new_BT) else new_BT.flatten().nonzero().squeeze(1)
        position_N = positions_of(mask_BS)[:, start:].flatten()
        if real_N is not None:
            position_N = position_N[real_N]
        column_S = torch.arange(mask_BS.shape[1], device=mask_BS.device)
        own_TS = column_S[start:, None] == column_S
        # A token of padding sees itself: a softmax over nothing would not be a number.
        seen_BTS = (column_S[start:, None] >= column_S) & (mask_BS[:, None].bool() | own_TS)
        bias_BTS = torch.zeros(seen_BTS.shape, dtype=self.model.attention_dtype, device=mask_BS.device)
        cos_LD, sin_LD = self._rotations
        place = Place(
            start=start,
            shape=(rows, tokens),
            in_rows=self._in_rows,
            real_N=real_N,
            cos_N1D=cos_LD[position_N, None],
            sin_N1D=sin_LD[position_N, None],
            bias_B1TS=bias_BTS.masked_fill_(~seen_BTS, -torch.inf)[:, None],
        )
        return self.model.hidden(ids_BT, self._cache, place)


class TransformersDecoder:
    """Decodes by the model's own forward pass and cache, whatever its architecture.

    Args:
        policy: a model whose keys and values are all that it remembers (`shares_prefix`).
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._cache = DynamicCache(config=policy.model.config)
        self._last = {"logits_to_keep": 1} if policy.keeps_logits else {}
        self._mask_BS: torch.Tensor

    @property
    def can_keep(self) -> bool:
        """Whether rows may leave; see `Decoder`."""
        return not rows_stay(self._policy.model)

    def prefill(self, ids_GP: torch.Tensor, mask_GP: torch.Tensor, *, copies: int = 1) -> torch.Tensor:
        """Read the prompts; see `Decoder`."""
        self._mask_BS = mask_GP
        logits_GV = self._forward(ids_GP)
        if copies > 1:
            self._cache.batch_repeat_interleave(copies)
            self._mask_BS = mask_GP.repeat_interleave(copies, dim=0)
            logits_GV = logits_GV.repeat_interleave(copies, dim=0)
        return logits_GV

    def step(self, token_B: torch.Tensor) -> torch.Tensor:
        """Take one token in every row; see `Decoder`."""
        self._mask_BS = torch.cat([self._mask_BS, self._mask_BS.new_ones(len(token_B), 1)], dim=1)
        return self._forward(token_B[:, None])

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows; see `Decoder`."""
        index = torch.tensor(rows, device=self._mask_BS.device)
        self._cache.batch_select_indices(index)
        self._mask_BS = self._mask_BS[index]

    def _forward(self, ids_BT: torch.Tensor) -> torch.Tensor:
        extra: dict[str, Any] = {**self._last}
        if self._policy.takes_positions:
            extra["position_ids"] = positions_of(self._mask_BS)[:, -ids_BT.shape[1] :]
        out = self._policy.model(
            input_ids=ids_BT, attention_mask=self._mask_BS, past_key_values=self._cache, use_cache=True, **extra
        )
        logits_BTV: torch.Tensor = out.logits
        return logits_BTV[:, -1]
