"""Votes as the comparison needs them: by the letters of the models, and by the two texts that were judged."""

from collections.abc import Iterable, Sequence

from app.compare.models import CompareModel
from warp_core.evaluation.preferences import Judgement
from warp_core.service.places import same_place
from warp_core.service.protocol import Place, Vote

__all__ = ["VoteIndex"]


class VoteIndex:
    """The votes of a selection that are about two of the compared models."""

    def __init__(self, votes: Iterable[Vote], models: Sequence[CompareModel]) -> None:
        self.num_others = 0
        """Votes that are about other models."""
        self.judgements: list[Judgement] = []
        """All votes by letter."""
        self._scores: dict[tuple[str, str, str, tuple[str, str]], list[float]] = {}
        for vote in votes:
            first, second = _letter(vote.first, models), _letter(vote.second, models)
            if first is None or second is None or first == second:
                self.num_others += 1
                continue
            self.judgements.append(Judgement(first=first, second=second, score=vote.score, prompt=vote.prompt))
            texts = vote.first_text, vote.second_text
            self._scores.setdefault((first, second, vote.prompt, texts), []).append(vote.score)

    def scores(self, first: str, second: str, prompt: str, texts: tuple[str, str]) -> list[float]:
        """Return all votes on two texts of a prompt, by (first, second); > 0 prefers the first model's."""
        there = self._scores.get((first, second, prompt, texts), [])
        back = self._scores.get((second, first, prompt, texts[::-1]), [])
        return [*there, *(0.0 - score for score in back)]

    def score(self, first: str, second: str, prompt: str, texts: tuple[str, str]) -> float | None:
        """Return their mean, None without any."""
        found = self.scores(first, second, prompt, texts)
        return sum(found) / len(found) if found else None


def _letter(place: Place, models: Sequence[CompareModel]) -> str | None:
    return next((model.letter for model in models if same_place(model.place, place)), None)
