"""How different the completions of one prompt are from each other. Pure functions."""

from collections import defaultdict
from collections.abc import Hashable, Sequence
from difflib import SequenceMatcher
from itertools import combinations

from warp_core.evaluation.statistics import Estimate, clustered_mean

__all__ = ["diversity", "similarity"]


def similarity(first: str, second: str) -> float:
    """Similarity of two texts in [0, 1]: 2 * (words in matching blocks) / (words of both), 1 when both are empty.

    The ratio of `difflib.SequenceMatcher` on words split at white space. That ratio depends on the order of its
    arguments; the mean of both orders does not.
    """
    a, b = first.split(), second.split()
    there = SequenceMatcher(None, a, b, autojunk=False).ratio()
    back = SequenceMatcher(None, b, a, autojunk=False).ratio()
    return (there + back) / 2


def diversity(completions: Sequence[str], prompts: Sequence[Hashable]) -> Estimate | None:
    """1 - mean over prompts of the mean similarity of two completions of the prompt, with its standard error.

    0: all completions of a prompt are alike; 1: they share no word. Each prompt counts once, and prompts with a single
    completion do not count; None if there is no pair at all. n is the number of prompts that count.
    """
    if len(completions) != len(prompts):
        raise ValueError(f"{len(completions)} completions and {len(prompts)} prompts: need as many of each")
    groups: dict[Hashable, list[str]] = defaultdict(list)
    for completion, prompt in zip(completions, prompts, strict=True):
        groups[prompt].append(completion)
    spread = {}
    for prompt, texts in groups.items():
        pairs = [similarity(a, b) for a, b in combinations(texts, 2)]
        if pairs:
            spread[prompt] = min(1.0, max(0.0, 1 - sum(pairs) / len(pairs)))
    return clustered_mean(list(spread.values()), list(spread)) if spread else None
