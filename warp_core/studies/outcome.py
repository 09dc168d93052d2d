"""What a study is, what it has to go by, and what it found, as JSON that says by itself what it is."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from typing import Any, Literal

import numpy as np

from warp_core.evaluation.diversity import similarity
from warp_core.evaluation.points import Sample
from warp_core.studies.asking import number
from warp_core.studies.claims import Claim, Readings, Verdict, verdict_of
from warp_core.studies.figures import Panel
from warp_core.studies.lab import Found, Lab
from warp_core.studies.plan import Curve
from warp_core.studies.scales import Scale
from warp_core.training.config import WarpConfig

__all__ = ["Evidence", "Outcome", "Study", "gather", "judge_claims", "sentence_of"]

Axis = Literal["at", "kl", "reward", "length", "similarity", "judge"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Evidence:
    """Everything that was measured for a study.

    Attributes:
        curves: of each seed, in order.
        found: what is known of each model of each curve; None where it is still to be measured.
        tables: of each seed the curves that are complete.
        lab: for geometry.
    """

    scale: Scale
    curves: dict[int, list[Curve]]
    found: dict[tuple[int, str], list[Found | None]]
    tables: list[dict[str, Readings]]
    lab: Lab

    def complete(self, seed: int, name: str) -> list[Found] | None:
        """Return what was found along a curve, or None while a part of it is missing."""
        known = [one for one in self.found.get((seed, name), []) if one is not None]
        return known if known and len(known) == len(self.found[seed, name]) else None


@dataclass(frozen=True, kw_only=True)
class Study:
    """A figure or table of the paper.

    Attributes:
        figure: of the paper.
        observation: what is tested, in words.
        curves: what has to be measured for a seed.
        claims: what the measurements say.
        axes: (x, y) of each panel that is drawn.
        measured: how models are measured, for a seed.
        panels: panels beside those of `axes`.
        numbers: more for the JSON.
        needs_text: whether held-out text is needed.
        sampled: what intervals resample.
    """

    name: str
    title: str
    figure: str
    observation: str
    curves: Callable[[Scale, int], list[Curve]]
    claims: Callable[[Evidence], list[Claim]]
    axes: tuple[tuple[Axis, Axis], ...] = (("kl", "reward"),)
    measured: Callable[[Scale, int], WarpConfig] = Scale.seeded
    panels: Callable[[Evidence], list[Panel]] = lambda evidence: []
    numbers: Callable[[Evidence], dict[str, Any]] = lambda evidence: {}
    needs_text: bool = False
    sampled: str = "prompts"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a study found, complete or not."""

    study: Study
    evidence: Evidence
    claims: list[Claim]
    judge: list[Claim]
    """Whether the second judge says that the reward gained is real."""
    missing: dict[str, int]
    about: dict[str, Any] = field(default_factory=dict)
    """Where, when and by what it was made."""

    @property
    def verdict(self) -> Verdict:
        """The verdict on the observation; what is not all measured is not decided."""
        decisive = [claim for claim in self.claims if claim.counts]
        return verdict_of(decisive) if decisive and not any(self.missing.values()) else "undecided"

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return {
            "format": 1,
            "study": self.study.name,
            "title": self.study.title,
            "paper": {"arxiv": "2406.16768", "figure": self.study.figure},
            "observation": self.study.observation,
            "complete": not any(self.missing.values()),
            "missing": self.missing,
            "verdict": self.verdict,
            "sentence": sentence_of(self),
            "claims": [asdict(claim) for claim in self.claims],
            "judge": [asdict(claim) for claim in self.judge],
            "numbers": self.study.numbers(self.evidence),
            "points": point_rows(self.evidence),
            **self.about,
        }


def gather(study: Study, lab: Lab, seeds: Sequence[int]) -> Evidence:
    """Collect what is stored for a study; nothing is trained or measured."""
    curves = {seed: study.curves(lab.scale, seed) for seed in seeds}
    found = {
        (seed, curve.name): [lab.found(model, study.measured(lab.scale, seed)) for model in curve.models]
        for seed in seeds
        for curve in curves[seed]
    }
    tables = [
        {curve.name: readings for curve in curves[seed] if (readings := _readings(curve, found[seed, curve.name]))}
        for seed in seeds
    ]
    return Evidence(scale=lab.scale, curves=curves, found=found, tables=tables, lab=lab)


def _readings(curve: Curve, found: Sequence[Found | None]) -> Readings | None:
    known = [one for one in found if one is not None]
    if len(known) < len(found) or (curve.judged and any(one.judge is None for one in known)):
        return None

    def grid(read: Callable[[Found], list[float]]) -> Any:
        num = len({sample.prompt for sample in known[0].samples})
        return np.array([np.asarray(read(one), dtype=np.float64).reshape(num, -1).mean(axis=1) for one in known])

    return Readings(
        at_P=np.array(curve.at, dtype=np.float64),
        kl_PG=grid(lambda one: [sample.kl for sample in one.samples]),
        reward_PG=grid(lambda one: [sample.reward for sample in one.samples]),
        length_PG=grid(lambda one: [float(sample.num_tokens) for sample in one.samples]),
        similarity_PG=np.array([_similarities(one.samples) for one in known]),
        judge_PG=grid(lambda one: list(one.judge or ())) if curve.judged else None,
    )


def _similarities(samples: Sequence[Sample]) -> list[float]:
    """Mean similarity of the completions of each prompt."""
    texts: dict[str, list[str]] = {}
    for sample in samples:
        texts.setdefault(sample.prompt, []).append(sample.completion)
    return [
        float(np.mean([similarity(a, b) for a, b in combinations(group, 2)])) if len(group) > 1 else float("nan")
        for group in texts.values()
    ]


def judge_claims(evidence: Evidence) -> list[Claim]:
    """Return, per judged curve of several points, whether the second judge sees a gain where the reward should rise."""
    first = next(iter(evidence.curves.values()))
    return [
        number(
            f"judge-{curve.name}",
            evidence.tables,
            lambda means, name=curve.name, gain=gain: gain(means[name].judge_P),  # type: ignore[misc]
            curves=(curve.name,),
            says=f"second judge, {where.format(curve.name)}",
            unit="log-odds",
        )
        for curve in first
        if curve.judged and len(curve.models) > 1
        for where, gain in [_BETWEEN if curve.axis == "lambda" else _ALONG]
    ]


_ALONG = ("end of {} against its start", lambda judge_P: float(judge_P[-1] - judge_P[0]))
# Both ends of such a curve are trained policies.
_BETWEEN = ("inside of {} against its ends", lambda judge_P: float(judge_P[1:-1].mean() - judge_P[[0, -1]].mean()))


def sentence_of(outcome: Outcome) -> str:
    """One sentence with the numbers: the verdict and each claim."""
    intervals = [claim.interval for claim in outcome.claims if claim.interval is not None]
    seeds = max((one.num_seeds for one in intervals), default=0)
    prompts = max((one.num_prompts for one in intervals), default=0)
    left = {kind: count for kind, count in outcome.missing.items() if count}
    partial = f"; not finished, missing {', '.join(f'{n} {kind}' for kind, n in left.items())}" if left else ""
    claims = [f"{claim.sentence}: {claim.verdict}" for claim in outcome.claims if claim.counts]
    told = "; ".join(claims) or "nothing measured yet"
    what = outcome.study.sampled
    size = f"{prompts} {what}, {seeds} seed{'s' if seeds != 1 else ''}"
    over = f", intervals over {what}{' and seeds' if seeds >= 3 else ''}"
    return f"{outcome.verdict.capitalize()}: {told} ({size}{over}{partial})."


def point_rows(evidence: Evidence) -> list[dict[str, Any]]:
    """Return one flat row per model that was measured: all its means with their errors."""
    rows = []
    for (seed, name), found in evidence.found.items():
        curve = next(curve for curve in evidence.curves[seed] if curve.name == name)
        for at, one in zip(curve.at, found, strict=True):
            if one is not None:
                rows.append({"seed": seed, "curve": name, "axis": curve.axis, "at": at} | _row(one))
    return rows


def _row(found: Found) -> dict[str, Any]:
    names = ("reward", "reward_se", "kl", "kl_se", "length", "length_se", "diversity", "diversity_se", "n")
    row = {name: getattr(found.point, name) for name in names}
    row["judge"] = float(np.mean(found.judge)) if found.judge else None
    row["nll"] = float(np.mean(found.text["nll"])) if found.text else None
    return row
