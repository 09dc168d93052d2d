"""How much of some studies is missing, and about how long it takes."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from warp_core.studies.lab import Lab
from warp_core.studies.outcome import Study
from warp_core.studies.plan import Rollout

__all__ = ["Forecast"]

_LENGTH_EXPONENT = 0.7
"""A completion twice as long takes about 2^0.7 times the time: a part of a step does not depend on its length."""


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What is missing.

    Attributes:
        counts: runs and their steps, points, judged points, points with text.
        seconds: about how long it takes.
    """

    counts: dict[str, int]
    seconds: float

    @classmethod
    def of(cls, studies: Sequence[Study], lab: Lab, *, seeds: Sequence[int] | None = None) -> "Forecast":
        """Count what is missing of some studies; what several need counts once."""
        scale = lab.scale
        steps: dict[Rollout, int] = {}
        others: set[tuple[str, object, int]] = set()
        for seed in scale.seeds if seeds is None else seeds:
            for study in studies:
                config = study.measured(scale, seed)
                for piece in lab.pieces(study.curves(scale, seed), config):
                    if piece.rollout is not None:
                        steps[piece.rollout] = lab.trainings.steps_left(piece.rollout)
                    else:
                        others.add((piece.kind, piece.model, config.training.max_new_tokens))
        counts = {kind: sum(one[0] == kind for one in others) for kind in ("point", "judge", "text")}
        usual = scale.config.training.max_new_tokens
        step_s = _step_seconds(lab, steps)
        trained_s = sum(
            left * step_s * (rollout.config.training.max_new_tokens / usual) ** _LENGTH_EXPONENT
            for rollout, left in steps.items()
        )
        # A judge and a text are one pass over what a point takes a pass per token and two more for.
        measured_s = lab.point_seconds() * (counts["point"] + 0.2 * counts["judge"] + 0.5 * counts["text"])
        named = {"runs": len(steps), "steps": sum(steps.values())}
        named |= {"points": counts["point"], "judged": counts["judge"], "texts": counts["text"]}
        return cls(counts=named, seconds=trained_s + measured_s)

    def in_words(self) -> str:
        """Return the counts and the time, for a line."""
        if not any(self.counts.values()):
            return "nothing is missing"
        runs = f"{self.counts['runs']} runs ({self.counts['steps']} steps), {self.counts['points']} points"
        minutes = max(1, round(self.seconds / 60))
        took = f"{minutes} min" if minutes < 90 else f"{minutes / 60:.1f} h"
        return f"{runs}, {self.counts['judged']} to judge, {self.counts['texts']} texts: about {took}"


def _step_seconds(lab: Lab, steps: dict[Rollout, int]) -> float:
    """Return what a step took in the runs that were begun, or the preset's guess."""
    took = [seconds for rollout in steps for seconds in lab.trainings.seconds_per_step(rollout)]
    return median(took) if took else lab.scale.step_guess_s
