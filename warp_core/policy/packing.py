"""Score completions in one pass: each prompt once, its completions behind it, no padding between.

A tree is a prompt with some of its completions in one row: prompt, first completion, second completion, ... A mask lets
each completion see its prompt and itself, and positions count from the prompt's end for each. One forward pass of
ordinary shape computes them all; gradients of all completions flow into the one prompt.

B completions, T completion tokens, K trees, L tokens of the longest tree, N completion tokens that count.
"""

from dataclasses import dataclass
from itertools import accumulate, pairwise
from weakref import WeakKeyDictionary

import torch
from torch import nn

from warp_core.policy.differentiable import forward_hidden
from warp_core.policy.llama import is_like_llama
from warp_core.policy.model import Policy
from warp_core.policy.sampling import Completions

__all__ = ["Trees", "hidden_states", "packs", "plant"]

SMALL = 256  # a tree may grow to so many tokens whatever its prompt: attention costs little there


@dataclass(frozen=True, kw_only=True)
class Trees:
    """Completions as trees.

    Attributes:
        ids_KL: int64 tokens, padded at the end.
        positions_KL: int64.
        sees_KLL: bool, whether query token (first L) sees key token (second L).
        source_N: where in the K * L tokens each completion token that counts is predicted, row after row.
        token_N: the completion tokens that count.
    """

    ids_KL: torch.Tensor
    positions_KL: torch.Tensor
    sees_KLL: torch.Tensor
    source_N: torch.Tensor
    token_N: torch.Tensor


def plant(completions: Completions) -> Trees:
    """Lay completions out as trees; the rows of a tree share a prompt."""
    prompts, lengths = completions.prompts, completions.num_tokens
    lengths_P = [int(n) for n in prompts.mask_BP.sum(dim=1)]
    per_tree = _completions_per_tree(prompts.group, max(lengths_P), max(lengths))
    firsts = range(0, len(lengths), per_tree)
    # The last token of a completion predicts nothing that is scored.
    parts = [[lengths_P[first], *(n - 1 for n in lengths[first : first + per_tree])] for first in firsts]
    longest = max(sum(part) for part in parts)
    shape = (len(parts), longest)
    ids, positions, segment = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.int64), None
    segment = torch.full(shape, -1)
    sources: list[torch.Tensor] = []
    cpu_P, cpu_T = prompts.ids_BP.cpu(), completions.tokens_BT.cpu()
    for tree, (first, part) in enumerate(zip(firsts, parts, strict=True)):
        ends = list(accumulate(part))
        ids[tree, : part[0]] = cpu_P[first, cpu_P.shape[1] - part[0] :]
        positions[tree, : part[0]] = torch.arange(part[0])
        segment[tree, : part[0]] = 0
        for number, (start, end) in enumerate(pairwise(ends), start=1):
            ids[tree, start:end] = cpu_T[first + number - 1, : end - start]
            positions[tree, start:end] = torch.arange(part[0], part[0] + end - start)
            segment[tree, start:end] = number
            here = torch.tensor([part[0] - 1, *range(start, end)])
            sources.append(tree * longest + here)
    same = segment[:, :, None] == segment[:, None, :]
    sees = (same | (segment == 0)[:, None, :]) & torch.ones(longest, longest, dtype=torch.bool).tril()
    device = prompts.ids_BP.device
    return Trees(
        ids_KL=ids.to(device),
        positions_KL=positions.to(device),
        sees_KLL=sees.to(device),
        source_N=torch.cat(sources).to(device),
        token_N=completions.tokens_BT[completions.mask_BT],
    )


def _completions_per_tree(group: int, prompt: int, completion: int) -> int:
    """How many completions stand in one tree: attention is quadratic in it, so not many long ones."""
    most = max(1, max(prompt, SMALL) // completion)
    return max(size for size in range(1, group + 1) if group % size == 0 and size <= most)


def hidden_states(policy: Policy, trees: Trees) -> torch.Tensor:
    """Return what the head is given for each completion token that counts [N, H], in the caller's gradient mode."""
    if is_like_llama(policy.model):
        found = forward_hidden(policy.model, trees.ids_KL, positions_KL=trees.positions_KL, sees_KLL=trees.sees_KLL)
        return found.index_select(0, trees.source_N)
    blocked = torch.finfo(policy.dtype).min
    mask = torch.zeros(trees.sees_KLL.shape, dtype=policy.dtype, device=policy.device)
    mask.masked_fill_(~trees.sees_KLL, blocked)
    out = policy.model.base_model(
        input_ids=trees.ids_KL, attention_mask=mask[:, None], position_ids=trees.positions_KL, use_cache=False
    )
    return out.last_hidden_state.flatten(0, 1).index_select(0, trees.source_N)


_known: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def packs(policy: Policy) -> bool:
    """Whether this model computes trees rightly, and its logits are its head's output and nothing more.

    What its configuration says is not enough (positions may be ignored, logits scaled or capped): a few tokens are
    computed both ways, once per model.
    """
    if policy.model not in _known:
        _known[policy.model] = _sees_everything(policy) and _agrees(policy)
    return _known[policy.model]


def _sees_everything(policy: Policy) -> bool:
    """Whether every layer attends to all that is before a token, as far as the configuration says."""
    config = policy.model.config
    kinds = getattr(config, "layer_types", None)
    if kinds is not None:
        everywhere = all(kind == "full_attention" for kind in kinds)
    else:
        everywhere = getattr(config, "sliding_window", None) is None
    head = policy.model.get_output_embeddings()
    return everywhere and policy.takes_positions and policy.shares_prefix and hasattr(head, "weight")


@torch.no_grad()
def _agrees(policy: Policy) -> bool:
    """Compare a tree of two completions with two ordinary rows."""
    vocabulary = policy.model.get_input_embeddings().weight.shape[0]
    generator = torch.Generator().manual_seed(0)
    prompt, one, other = (torch.randint(vocabulary, (n,), generator=generator) for n in (3, 4, 4))
    ids = torch.cat([prompt, one, other])[None].to(policy.device)
    segment = torch.tensor([0] * 3 + [1] * 4 + [2] * 4, device=policy.device)
    sees = ((segment[:, None] == segment) | (segment == 0)) & torch.ones(11, 11, device=policy.device).tril().bool()
    positions = torch.tensor([[*range(3), *range(3, 7), *range(3, 7)]], device=policy.device)
    source = torch.tensor([3, 4, 5, 6, 7, 8, 9, 10], device=policy.device)
    trees = Trees(ids_KL=ids, positions_KL=positions, sees_KLL=sees[None], source_N=source, token_N=source)
    try:
        logits = policy.model.get_output_embeddings()(hidden_states(policy, trees))
    except (TypeError, ValueError, RuntimeError, AttributeError):  # another signature, or another kind of mask
        return False
    rows = torch.stack([torch.cat([prompt, part]) for part in (one, other)]).to(policy.device)
    expected = policy.model(input_ids=rows, use_cache=False).logits[:, 3:].flatten(0, 1)
    error = float((logits.float() - expected.float()).square().mean().sqrt() / expected.float().std())
    # A token that is seen or not, or logits that are scaled, make a difference of the order of 1.
    return error < (1e-3 if policy.dtype == torch.float32 else 0.1)
