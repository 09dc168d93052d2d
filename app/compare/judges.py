"""Reward models as judges beside the human votes: what they score, which grades that makes, how far they agree."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import combinations

from app.compare.models import CompareModel
from app.compare.rows import Pair, Row
from app.compare.votes import VoteIndex
from warp_core.evaluation.preferences import Agreement, Judgement, Thresholds, agreement, graded, judged, quartiles
from warp_core.service.documents import JudgeReport, SampleRow

__all__ = ["Grading", "Judge", "agreement_with", "from_report", "judge_names", "judgements_of", "stored", "thresholds"]

REWARD = "Stored reward"


class Grading(StrEnum):
    """How a difference of scores becomes a grade."""

    QUARTERS = "Quarters"
    SIGN = "Better or worse"


@dataclass(frozen=True, kw_only=True)
class Judge:
    """Scores of all rows by one judge."""

    name: str
    scores: Mapping[str, Sequence[float]]
    """By letter of the model, in the order of the rows."""

    def gain(self, row: Row, pair: Pair) -> float:
        """How much better the judge finds the model's completion than the reference's."""
        return self.scores[pair.model][row.number] - self.scores[pair.reference][row.number]


def judge_names(rows: Sequence[Row]) -> list[str]:
    """Return the judges that are stored with the completions: the reward, and its parts where it has several."""
    cells = [cell for row in rows for cell in row.cells.values()]
    if not cells:
        return [REWARD]
    parts = set.intersection(*(set(cell.rewards) for cell in cells))
    return [REWARD, *sorted(parts)] if len(parts) > 1 else [REWARD]


def stored(rows: Sequence[Row], models: Sequence[CompareModel], name: str) -> Judge:
    """Return a judge that `judge_names` names."""

    def score(cell: SampleRow) -> float:
        return cell.reward if name == REWARD else cell.rewards[name]

    return Judge(name=name, scores={model.letter: [score(row.cells[model.letter]) for row in rows] for model in models})


def from_report(rows: Sequence[Row], models: Sequence[CompareModel], report: JudgeReport) -> Judge | None:
    """Return the judge of a report; None where it lacks one of the models."""
    scores: dict[str, list[float]] = {}
    for model in models:
        found = report.scores.get(model.point.key) if model.point else None
        if found is None:
            return None
        scores[model.letter] = [found[row.index[model.letter]] for row in rows]
    return Judge(name=report.judge, scores=scores)


def thresholds(judge: Judge, grading: Grading) -> Thresholds | None:
    """Return the score differences at which the grades begin: quartiles over all pairs and rows; None: sign alone."""
    if grading is Grading.SIGN:
        return None
    differences = [
        a - b
        for first, second in combinations(judge.scores, 2)
        for a, b in zip(judge.scores[first], judge.scores[second], strict=True)
    ]
    return quartiles(differences) if differences else None


def judgements_of(judge: Judge, rows: Sequence[Row], limits: Thresholds | None) -> list[Judgement]:
    """Return the judge's verdict on every pair of models on every row."""
    return judged([row.prompt for row in rows], judge.scores, limits)


def agreement_with(judge: Judge, rows: Sequence[Row], votes: VoteIndex, limits: Thresholds | None) -> Agreement:
    """Return how far the votes on these completions agree with the judge; every vote counts."""
    human: list[float] = []
    scored: list[float] = []
    for first, second in combinations(judge.scores, 2):
        for row in rows:
            texts = row.cells[first].completion, row.cells[second].completion
            cast = votes.scores(first, second, row.prompt, texts)
            human += cast
            scored += [judge.gain(row, Pair(model=first, reference=second))] * len(cast)
    return agreement(human, graded(scored, limits))
