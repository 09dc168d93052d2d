"""Small rewards on the text alone, by name; the neural one ("sentiment") is in classifier.py.

They serve as parts of a sum (`--reward sentiment --reward length:-0.0005`, the paper's appendix E) or, with
weight 0, as measurements of what training does to the text.
"""

from collections.abc import Callable
from dataclasses import dataclass

from warp_core.rewards.base import RewardBatch

__all__ = ["BUILT_IN_REWARDS", "FormulaReward", "ascii_share", "finished", "repetition", "uppercase_share"]


def repetition(text: str) -> float:
    """Return the share of word trigrams that occurred before in the text, 0 (none) to 1; lower-cased.

    "a b c a b c": the trigrams are abc, bca, cab, abc, of which one is a repeat: 0.25.
    """
    words = text.lower().split()
    trigrams = list(zip(words, words[1:], words[2:], strict=False))
    return 1.0 - len(set(trigrams)) / len(trigrams) if trigrams else 0.0


def ascii_share(text: str) -> float:
    """Return the share of characters that are ASCII; 1 for empty text."""
    return sum(character.isascii() for character in text) / len(text) if text else 1.0


def uppercase_share(text: str) -> float:
    """Return the share of letters that are upper-case; 0 where there is no letter."""
    letters = [character for character in text if character.isalpha()]
    return sum(character.isupper() for character in letters) / len(letters) if letters else 0.0


def finished(text: str) -> float:
    """Return 1 where the text ends a sentence (. ! ? or such a mark inside closing quotes or brackets), else 0."""
    return float(text.rstrip().rstrip("\"')]*").endswith((".", "!", "?")))


@dataclass(frozen=True, kw_only=True)
class FormulaReward:
    """A reward that is a formula of the completion and its number of tokens."""

    name: str
    formula: Callable[[str, int], float]
    """Of the completion and its number of tokens."""
    help: str
    version: int = 1
    """Raised when the formula changes, so that stored results are not mistaken for new ones."""

    @property
    def id(self) -> str:
        """Name and version."""
        return f"{self.name}-v{self.version}"

    def __call__(self, batch: RewardBatch) -> list[float]:
        """Return B numbers."""
        return [self.formula(text, count) for text, count in zip(batch.completions, batch.num_tokens, strict=True)]


_FORMULAS = (
    FormulaReward(
        name="length",
        formula=lambda text, num_tokens: float(num_tokens),
        help="tokens of the completion, the end token included",
    ),
    FormulaReward(
        name="words",
        formula=lambda text, num_tokens: float(len(text.split())),
        help="words of the completion",
    ),
    FormulaReward(
        name="repetition",
        formula=lambda text, num_tokens: repetition(text),
        help="share of word trigrams that are repeats, 0 to 1; give it a negative weight",
    ),
    FormulaReward(
        name="finished",
        formula=lambda text, num_tokens: finished(text),
        help="1 if the completion ends a sentence, else 0",
    ),
    FormulaReward(
        name="ascii",
        formula=lambda text, num_tokens: ascii_share(text),
        help="share of ASCII characters, 0 to 1",
    ),
    FormulaReward(
        name="uppercase",
        formula=lambda text, num_tokens: uppercase_share(text),
        help="share of letters that are upper-case, 0 to 1",
    ),
)

BUILT_IN_REWARDS: dict[str, FormulaReward] = {reward.name: reward for reward in _FORMULAS}
