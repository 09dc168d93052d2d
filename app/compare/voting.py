"""Blind voting over the completions of a set: which two texts come next, on which side, and how far one has come.

Every pair of models on every row is one *ballot*. A session walks through the ballots without a vote in a random order
that depends on its seed alone, so that a model pinned later, or a vote from elsewhere, does not shuffle the rest.
"""

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from app.compare.models import CompareModel
from app.compare.rows import Row
from app.compare.votes import VoteIndex
from warp_core.service.places import place_text
from warp_core.service.protocol import Session, Vote

__all__ = ["GRADES", "Ballot", "Grade", "Progress", "ballots", "next_ballot", "progress", "vote_of"]


@dataclass(frozen=True, kw_only=True)
class Grade:
    """A button of the scale. `score` > 0 prefers the left text."""

    key: str
    """On the keyboard."""
    label: str
    score: float


GRADES = (
    Grade(key="1", label="Left much better", score=1.5),
    Grade(key="2", label="Left better", score=1.0),
    Grade(key="3", label="Left slightly better", score=0.5),
    Grade(key="4", label="Tie", score=0.0),
    Grade(key="5", label="Right slightly better", score=-0.5),
    Grade(key="6", label="Right better", score=-1.0),
    Grade(key="7", label="Right much better", score=-1.5),
)


@dataclass(frozen=True, kw_only=True)
class Ballot:
    """Two texts to be judged."""

    id: str
    """The same in every session."""
    left: CompareModel
    right: CompareModel
    row: Row

    @property
    def texts(self) -> tuple[str, str]:
        """Left and right completion."""
        return self.row.cells[self.left.letter].completion, self.row.cells[self.right.letter].completion

    def is_voted(self, votes: VoteIndex) -> bool:
        """Whether anybody has judged these two texts."""
        return bool(votes.scores(self.left.letter, self.right.letter, self.row.prompt, self.texts))


def ballots(
    rows: Sequence[Row], pairs: Sequence[tuple[CompareModel, CompareModel]], *, seed: str
) -> tuple[list[Ballot], int]:
    """Return the ballots in the order of a seed, and how many pairs of equal texts were left out."""
    found: list[tuple[bytes, Ballot]] = []
    num_equal = 0
    for first, second in pairs:
        for row in rows:
            if row.cells[first.letter].completion == row.cells[second.letter].completion:
                num_equal += 1
                continue
            name = "|".join([*sorted(place_text(m.place) for m in (first, second)), row.prompt, str(row.sample)])
            toss = hashlib.blake2b(f"{seed}|{name}".encode("utf-8", "surrogatepass"), digest_size=16).digest()
            left, right = (first, second) if toss[-1] % 2 else (second, first)
            found.append((toss, Ballot(id=name, left=left, right=right, row=row)))
    return [ballot for _, ballot in sorted(found, key=lambda item: item[0])], num_equal


def next_ballot(found: Sequence[Ballot], votes: VoteIndex, *, skipped: Sequence[str]) -> Ballot | None:
    """Return the first ballot without a vote; the skipped ones come last, in the order they were skipped."""
    waiting = [ballot for ballot in found if not ballot.is_voted(votes)]
    fresh = next((ballot for ballot in waiting if ballot.id not in skipped), None)
    if fresh is not None:
        return fresh
    return min(waiting, key=lambda ballot: skipped.index(ballot.id), default=None)


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far the set has been voted on."""

    voted: int
    skipped: int
    total: int


def progress(found: Sequence[Ballot], votes: VoteIndex, *, skipped: Collection[str]) -> Progress:
    """Return how many ballots have a vote, of this session or any other, and how many were skipped and have none."""
    waiting = [ballot for ballot in found if not ballot.is_voted(votes)]
    return Progress(
        voted=len(found) - len(waiting),
        skipped=sum(ballot.id in skipped for ballot in waiting),
        total=len(found),
    )


def vote_of(ballot: Ballot, grade: Grade, *, session: Session) -> Vote:
    """Return the vote that a grade is."""
    left_text, right_text = ballot.texts
    return Vote(
        session=session,
        prompt=ballot.row.prompt,
        first=ballot.left.place,
        second=ballot.right.place,
        first_text=left_text,
        second_text=right_text,
        score=grade.score,
        blind=True,
        source="compare",
    )
