"""The table of completions: the stored samples of several models put in line, filtered, sorted and sliced.

Models that were measured alike share prompts and seeds, so the k-th completion of a prompt of one stands beside the
k-th of another. Everything here is about *rows* of such completions; B counts them. No Streamlit.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from app.compare.votes import VoteIndex
from warp_core.evaluation.preferences import Estimate, paired_difference
from warp_core.service.documents import SampleRow

__all__ = [
    "Chip",
    "Pair",
    "Row",
    "Slice",
    "SliceSummary",
    "Sort",
    "aligned",
    "chosen",
    "lines_of",
    "shown_text",
    "slices",
    "sort_rows",
    "summary",
]

_CHARS_PER_LINE = 70
_LINES = (3, 14)


@dataclass(frozen=True, kw_only=True)
class Row:
    """The completions that all models gave to one prompt with one seed."""

    number: int
    """From 0, in the order of the prompt set."""
    prompt: str
    sample: int
    """1 for the first completion of the prompt."""
    cells: Mapping[str, SampleRow]
    """By letter of the model."""
    index: Mapping[str, int]
    """Place of the cell among the samples of its point, by letter of the model."""


def aligned(samples: Mapping[str, Sequence[SampleRow]]) -> list[Row]:
    """Put samples in line, by letter of the model; what not every model has is left out. In the first one's order."""
    if not samples:
        return []
    numbered = {letter: _numbered(rows) for letter, rows in samples.items()}
    first = next(iter(numbered.values()))
    common = [key for key in first if all(key in of for of in numbered.values())]
    return [
        Row(
            number=number,
            prompt=prompt,
            sample=sample,
            cells={letter: samples[letter][of[prompt, sample]] for letter, of in numbered.items()},
            index={letter: of[prompt, sample] for letter, of in numbered.items()},
        )
        for number, (prompt, sample) in enumerate(common)
    ]


def _numbered(rows: Sequence[SampleRow]) -> dict[tuple[str, int], int]:
    """Where the k-th completion of a prompt is, k from 1."""
    counts: dict[str, int] = {}
    found = {}
    for place, row in enumerate(rows):
        counts[row.prompt] = counts.get(row.prompt, 0) + 1
        found[row.prompt, counts[row.prompt]] = place
    return found


def shown_text(completion: str) -> str:
    """Return a completion without the space that parts it from its prompt: on its own it would look indented."""
    return completion.removeprefix(" ")


def lines_of(num_chars: int) -> int:
    """Return how many lines a text takes in one of two columns, within what a page has room for."""
    return min(_LINES[1], max(_LINES[0], 1 + num_chars // _CHARS_PER_LINE))


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two of the models: everything that is filtered and sorted by is about these."""

    model: str
    reference: str

    def gain(self, row: Row) -> float:
        """Reward of the model less that of the reference."""
        return row.cells[self.model].reward - row.cells[self.reference].reward

    def longer(self, row: Row) -> int:
        """Tokens by which the model's completion is longer."""
        return row.cells[self.model].num_tokens - row.cells[self.reference].num_tokens

    def vote(self, row: Row, votes: VoteIndex) -> float | None:
        """Mean vote for the model over the reference on these two texts; None where nobody voted."""
        return votes.score(self.model, self.reference, row.prompt, self._texts(row))

    def _texts(self, row: Row) -> tuple[str, str]:
        return row.cells[self.model].completion, row.cells[self.reference].completion


class Chip(StrEnum):
    """What rows can be filtered by. Chips of one line of `_GROUPS` are alternatives; the lines all have to hold."""

    HIGHER = "Reward higher"
    LOWER = "Reward lower"
    LONGER = "Longer"
    SHORTER = "Shorter"
    VOTED = "Voted"
    UNVOTED = "Not voted"
    DISAGREE = "Judge against vote"


_GROUPS = (
    {Chip.HIGHER, Chip.LOWER},
    {Chip.LONGER, Chip.SHORTER},
    {Chip.VOTED, Chip.UNVOTED},
    {Chip.DISAGREE},
)


def chosen(
    rows: Sequence[Row],
    *,
    pair: Pair,
    chips: Collection[Chip],
    votes: VoteIndex,
    judge: Callable[[Row], float],
    text: str = "",
) -> list[Row]:
    """Return the rows that pass the chips and contain a text, in prompt or any completion, whatever its case.

    judge: how much better a judge finds the model than the reference, per row.
    """
    wanted = text.casefold().strip()
    found = []
    for row in rows:
        passed = _chips_of(row, pair=pair, votes=votes, judge=judge)
        if not all(group & passed for group in (group & set(chips) for group in _GROUPS) if group):
            continue
        texts = [row.prompt, *(cell.completion for cell in row.cells.values())]
        if not wanted or any(wanted in each.casefold() for each in texts):
            found.append(row)
    return found


def _chips_of(row: Row, *, pair: Pair, votes: VoteIndex, judge: Callable[[Row], float]) -> set[Chip]:
    vote, gain, longer = pair.vote(row, votes), pair.gain(row), pair.longer(row)
    holds = {
        Chip.HIGHER: gain > 0,
        Chip.LOWER: gain < 0,
        Chip.LONGER: longer > 0,
        Chip.SHORTER: longer < 0,
        Chip.VOTED: vote is not None,
        Chip.UNVOTED: vote is None,
        Chip.DISAGREE: vote is not None and vote * judge(row) < 0,
    }
    return {chip for chip, held in holds.items() if held}


class Sort(StrEnum):
    """Orders of the table."""

    PROMPTS = "As in the prompt set"
    GAIN = "Reward difference, largest first"
    LOSS = "Reward difference, smallest first"
    LONGER = "Length difference, largest first"
    KL = "KL of the model, largest first"


def sort_rows(rows: Sequence[Row], *, sort: Sort, pair: Pair) -> list[Row]:
    """Return the rows in an order; equal ones stay as they were."""
    keys: dict[Sort, Callable[[Row], float]] = {
        Sort.PROMPTS: lambda row: 0.0,
        Sort.GAIN: lambda row: -pair.gain(row),
        Sort.LOSS: pair.gain,
        Sort.LONGER: lambda row: -pair.longer(row),
        Sort.KL: lambda row: -row.cells[pair.model].kl,
    }
    return sorted(rows, key=keys[sort])


@dataclass(frozen=True, kw_only=True)
class Slice:
    """A part of the rows with a name."""

    name: str
    rows: tuple[Row, ...]


def slices(rows: Sequence[Row], *, pair: Pair) -> list[Slice]:
    """Return thirds of the rows by what does not depend on the model: the reference's reward and length, the prompt's.

    Thirds are by rank; rows of one value stay together, where their mean rank is. A third without rows is left out.
    """
    measures: dict[str, tuple[Callable[[Row], float], tuple[str, str, str]]] = {
        "Reference reward": (lambda row: row.cells[pair.reference].reward, ("low", "middle", "high")),
        "Reference length": (lambda row: row.cells[pair.reference].num_tokens, ("short", "middle", "long")),
        "Prompt": (lambda row: len(row.prompt.split()), ("short", "middle", "long")),
    }
    found = []
    for name, (value, thirds) in measures.items():
        ordered = sorted(value(row) for row in rows)
        if not ordered or ordered[0] == ordered[-1]:
            continue
        place = {each: _third(ordered, each) for each in set(ordered)}
        for third, word in enumerate(thirds):
            inside = tuple(row for row in rows if place[value(row)] == third)
            if inside:
                found.append(Slice(name=f"{name}: {word}", rows=inside))
    return found


def _third(ordered: Sequence[float], value: float) -> int:
    middle = (bisect_left(ordered, value) + bisect_right(ordered, value)) / 2
    return min(2, int(3 * middle / len(ordered)))


@dataclass(frozen=True, kw_only=True)
class SliceSummary:
    """How the model does against the reference on some rows."""

    name: str
    num_rows: int
    gain: Estimate
    """Difference of the mean rewards, error over prompts."""
    share_higher: float
    """Of the rows, those on which the model's reward is higher."""
    vote: float | None
    """Mean vote, where there are any."""


def summary(part: Slice, *, pair: Pair, votes: VoteIndex) -> SliceSummary:
    """Return how the model does on a slice, which has at least one row."""
    prompts = [row.prompt for row in part.rows]
    rewards = [[row.cells[letter].reward for row in part.rows] for letter in (pair.model, pair.reference)]
    cast = [vote for row in part.rows if (vote := pair.vote(row, votes)) is not None]
    return SliceSummary(
        name=part.name,
        num_rows=len(part.rows),
        gain=paired_difference(rewards[0], prompts, rewards[1], prompts),
        share_higher=sum(pair.gain(row) > 0 for row in part.rows) / len(part.rows),
        vote=sum(cast) / len(cast) if cast else None,
    )
