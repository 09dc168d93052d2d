"""The KL of sampled completions to the SFT policy: what the sampler saw against one pass of the anchor.

B completions of M models, C columns (a column is one sample of one prompt, by every model), T completion tokens,
V vocabulary, N positions that predict a token that counts, R of them at a time.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch

from warp_core.evaluation.kl import kl_of_positions, mc_kl
from warp_core.evaluation.points import KlEstimator
from warp_core.policy.inference import completion_states, plain_inference
from warp_core.policy.logprobs import completion_logits
from warp_core.policy.model import Policy
from warp_core.policy.prompts import PromptBatch
from warp_core.policy.sampling import Completions

__all__ = ["Subject", "Within", "completion_kl", "vocabulary_of"]

# Completions that the anchor reads at once: other work waits that long. Where logits over the whole vocabulary have to
# be in memory for all of them, so many numbers at most (a quarter of a GB in float32).
SCORED_ROWS = 16
SCORED_NUMEL = 1 << 26
# Numbers that leave the anchor's head at once: enough rows for a fast product, on a GPU as many as one launch pays for.
_HEAD_NUMEL = {"cpu": 1 << 23}
_HEAD_NUMEL_ELSEWHERE = 1 << 26

Within = Callable[[], AbstractContextManager[None]]
Between = Callable[[], None]
Each = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Subject:
    """The policy to measure and the SFT policy to measure it against: two models, or one that can be both.

    Attributes:
        policy: the model that is measured.
        measured: makes `policy` the measured one for the time of a block.
        reference: the model of the SFT policy; None where `policy` can become it.
        anchor: makes `reference`, or else `policy`, the SFT policy for the time of a block inside `measured`; without
            either, the measured policy is the SFT policy.
        models: how many models `policy` is at once inside `measured`: the rows of a batch are theirs in equal parts, in
            their order. Inside `anchor` every row is the SFT policy.
        sft_models: numbers of the models that are the SFT policy itself, at no distance from it.
    """

    policy: Policy
    measured: Within = nullcontext
    reference: Policy | None = None
    anchor: Within = nullcontext
    models: int = 1
    sft_models: frozenset[int] = frozenset()

    @property
    def is_the_anchor(self) -> bool:
        """Whether everything that is measured is the SFT policy itself, at no distance from it."""
        return (self.reference is None and self.anchor is nullcontext) or not self.moved

    @property
    def moved(self) -> list[int]:
        """Numbers of the models that are not the SFT policy."""
        return [number for number in range(self.models) if number not in self.sft_models]


@torch.no_grad()
def completion_kl(
    subject: Subject,
    completions: Completions,
    *,
    temperature: float,
    kl_estimator: KlEstimator = "exact",
    between: Between | None = None,
) -> torch.Tensor:
    """Return the KL of each completion to the SFT policy, nats, float64 on the CPU [B].

    A few rows at a time, and of them only the tokens up to the end; a prompt that rows share is computed once,
    whichever model they are of. `subject.measured` is the caller's to enter: it is needed for the exact KL where the
    completions do not bring their distributions along.
    """
    kl_B = torch.zeros(len(completions.texts), dtype=torch.float64)
    if subject.is_the_anchor:
        return kl_B
    group = completions.prompts.group
    rows_MC = torch.arange(len(kl_B)).view(subject.models, -1)
    for part_MC in torch.split(rows_MC, _columns_at_once(subject, completions), dim=1):
        if between:
            between()
        unit = group if part_MC.shape[1] % group == 0 else 1
        moved_B = _by_prompt(part_MC[subject.moved], unit)
        rows = _at(completions, moved_B, group=len(subject.moved) * unit)
        if kl_estimator == "mc":
            kl_B[moved_B] = mc_kl(rows.logp_BT, _anchor_logprobs(subject, rows, temperature), rows.mask_BT).cpu()
            continue
        logits_BTV, place_B = completions.logps_BTV, moved_B
        if logits_BTV is None:
            own = _at(completions, part_MC.flatten(), group=unit)
            logits_BTV = completion_logits(subject.policy, own, temperature=temperature)
            place_B = _by_prompt(torch.arange(part_MC.numel()).view(part_MC.shape)[subject.moved], unit)
        kl_B[moved_B] = _exact(subject, rows, logits_BTV, place_B.to(logits_BTV.device), temperature).cpu()
    return kl_B


def vocabulary_of(policy: Policy) -> int:
    """Return V."""
    return int(policy.model.config.get_text_config().vocab_size)


def _columns_at_once(subject: Subject, completions: Completions) -> int:
    group = completions.prompts.group
    row_numel = completions.tokens_BT.shape[1] * vocabulary_of(subject.policy)
    step = max(1, min(SCORED_ROWS, SCORED_NUMEL // row_numel) // subject.models)
    # Whole groups of one prompt, so that the prompt is computed once.
    return step - step % group if step > group else step


def _by_prompt(rows_MC: torch.Tensor, unit: int) -> torch.Tensor:
    """The rows with those of one prompt side by side, of every model: `unit` columns are one prompt's."""
    return rows_MC.reshape(len(rows_MC), -1, unit).transpose(0, 1).flatten()


def _at(completions: Completions, rows_B: torch.Tensor, *, group: int) -> Completions:
    """Some rows without their distributions, cut after the longest; every `group` of them have one prompt."""
    prompts, index_B = completions.prompts, rows_B.to(completions.tokens_BT.device)
    mask_BT = completions.mask_BT[index_B]
    longest = int(mask_BT.sum(dim=1).max())
    batch = PromptBatch(
        texts=tuple(prompts.texts[row] for row in rows_B.tolist()),
        ids_BP=prompts.ids_BP[index_B],
        mask_BP=prompts.mask_BP[index_B],
        group=group,
    )
    return replace(
        completions,
        prompts=batch,
        tokens_BT=completions.tokens_BT[index_B, :longest],
        mask_BT=mask_BT[:, :longest],
        logp_BT=completions.logp_BT[index_B, :longest],
        texts=tuple(completions.texts[row] for row in rows_B.tolist()),
        logps_BTV=None,
    )


def _exact(
    subject: Subject, rows: Completions, logits_BTV: torch.Tensor, place_B: torch.Tensor, temperature: float
) -> torch.Tensor:
    def kl_R(row_R: torch.Tensor, token_R: torch.Tensor, anchor_RV: torch.Tensor) -> torch.Tensor:
        return kl_of_positions(logits_BTV[place_B[row_R], token_R], anchor_RV)

    kl_BT = torch.zeros(rows.mask_BT.shape, dtype=torch.float64, device=rows.mask_BT.device)
    kl_BT[rows.mask_BT] = _at_the_anchor(subject, rows, temperature, kl_R)
    return kl_BT.sum(dim=1)


def _anchor_logprobs(subject: Subject, rows: Completions, temperature: float) -> torch.Tensor:
    def logp_R(row_R: torch.Tensor, token_R: torch.Tensor, anchor_RV: torch.Tensor) -> torch.Tensor:
        drawn_R1 = rows.tokens_BT[row_R, token_R, None]
        return anchor_RV.gather(1, drawn_R1).squeeze(1) - anchor_RV.logsumexp(dim=1)

    logp_BT = torch.zeros_like(rows.logp_BT)
    logp_BT[rows.mask_BT] = _at_the_anchor(subject, rows, temperature, logp_R).to(logp_BT.dtype)
    return logp_BT


def _at_the_anchor(subject: Subject, rows: Completions, temperature: float, each: Each) -> torch.Tensor:
    """What `each` makes of rows, tokens and the anchor's float32 logits [R, V] there, at the N positions that count."""
    policy = subject.reference or subject.policy
    row_N, token_N = rows.mask_BT.nonzero(as_tuple=True)
    limit = _HEAD_NUMEL.get(policy.device.type, _HEAD_NUMEL_ELSEWHERE)
    size = max(1, limit // vocabulary_of(policy))
    # What was laid out for the measured weights is not the anchor's.
    as_it_is = plain_inference(policy) if subject.reference is None else nullcontext()
    with as_it_is, subject.anchor():
        states = completion_states(policy, rows.prompts, tokens_BT=rows.tokens_BT, mask_BT=rows.mask_BT)
        if states is None:
            logits_NV = completion_logits(policy, rows, temperature=temperature)[rows.mask_BT]
            chunks = (logits_RV for logits_RV in torch.split(logits_NV, size))
        else:
            chunks = (states.head(part_RH).float().div_(temperature) for part_RH in torch.split(states.hidden_MH, size))
        parts = zip(torch.split(row_N, size), torch.split(token_N, size), chunks, strict=True)
        return torch.cat([each(row_R, token_R, logits_RV) for row_R, token_R, logits_RV in parts])
