"""Fig. 10c, 11: angles of task vectors and of full weights, and what SLERP does on full weights."""

from typing import Any

import numpy as np

from warp_core.studies.asking import above, alike
from warp_core.studies.claims import Claim, Floats, Interval, decide
from warp_core.studies.common import stages
from warp_core.studies.figures import COLORS, Line, Panel
from warp_core.studies.outcome import Evidence, Study
from warp_core.studies.plan import Curve, liti
from warp_core.studies.scales import Scale
from warp_core.weights import compute_geometry
from warp_core.workspace.paths import cache_root

__all__ = ["STUDY"]

SLERP, LERP, FULL = "SLERP of task vectors", "LERP", "SLERP of full weights"
NEAR_DEGREES = 15.0
"""How far from 90 and from 0 degrees still counts as near, for nine layers in ten."""


def _curves(scale: Scale, seed: int) -> list[Curve]:
    policies = stages(scale, seed)
    return [
        liti(SLERP, policies, scale.etas, judged=True),
        liti(LERP, policies, scale.etas, method="lerp", dash="dash"),
        liti(FULL, policies, scale.etas, method="slerp-weights", dash="dot"),
    ]


def _angles(evidence: Evidence) -> list[tuple[int, tuple[str, ...], Floats, Floats]]:
    """Return per seed whose two policies are trained: layers, angles of task vectors and of full weights, degrees."""
    found = []
    for seed, curves in evidence.curves.items():
        model = curves[0].models[-1]
        if evidence.found[seed, SLERP][-1] is None:
            continue
        _, init, policies = evidence.lab.checkpoints(model)
        geometry = compute_geometry(init, policies, cache_dir=cache_root() / "geometry")
        tasks = np.degrees(geometry.angles_LMM[:, 0, 1])
        whole = np.degrees(np.arccos(np.clip(geometry.full_cosines_LMM[:, 0, 1], -1.0, 1.0)))
        found.append((seed, tuple(layer.name for layer in geometry.layers), tasks, whole))
    return found


def _near(name: str, says: str, angles: list[Floats], target: float) -> Claim:
    """Return the claim that nine angles in ten lie near a target; the interval is that of the layers."""
    interval = None
    if angles:
        every = np.concatenate(angles)
        low, high = np.quantile(every, (0.05, 0.95))
        # An interval over layers: no prompts had a part in it.
        interval = Interval(
            value=float(every.mean()), low=float(low), high=float(high), num_prompts=0, num_seeds=len(angles)
        )
    around = None if interval is None else _shifted(interval, -target)
    verdict = decide(around, margin=NEAR_DEGREES)
    shown = "not measured"
    if interval is not None:
        shown = f"{interval.value:.1f} degrees [5 to 95 % of layers: {interval.low:.1f} to {interval.high:.1f}]"
    sentence = f"{says}: {shown}, margin {NEAR_DEGREES:g}"
    return Claim(name=name, verdict=verdict, sentence=sentence, unit="degrees", interval=interval, margin=NEAR_DEGREES)


def _shifted(interval: Interval, by: float) -> Interval:
    return Interval(
        value=interval.value + by,
        low=interval.low + by,
        high=interval.high + by,
        num_prompts=interval.num_prompts,
        num_seeds=interval.num_seeds,
    )


def _claims(evidence: Evidence) -> list[Claim]:
    angles = _angles(evidence)
    return [
        _near("task-vectors", "angles of task vectors near 90", [tasks for _, _, tasks, _ in angles], 90.0),
        _near("full-weights", "angles of full weights near 0", [whole for _, _, _, whole in angles], 0.0),
        alike("slerp-weights", evidence.tables, FULL, LERP),
        above("slerp-tasks", evidence.tables, SLERP, LERP, counts=False),
    ]


def _panels(evidence: Evidence) -> list[Panel]:
    lines = []
    for place, (seed, layers, tasks, whole) in enumerate(_angles(evidence)):
        for color, name, values in ((COLORS[0], "task vectors", tasks), (COLORS[1], "full weights", whole)):
            lines.append(
                Line(
                    name=name,
                    color=color,
                    x=[float(layer) for layer in range(len(layers))],
                    y=[float(value) for value in values],
                    notes=[f"{layer}, seed {seed}" for layer in layers],
                    in_legend=place == 0,
                )
            )
    return [Panel(x_label="layer", y_label="angle of two policies (degrees)", lines=tuple(lines))] if lines else []


def _numbers(evidence: Evidence) -> dict[str, Any]:
    return {
        "angles": [
            {"seed": seed, "layers": list(layers), "task_vectors": tasks.tolist(), "full_weights": whole.tolist()}
            for seed, layers, tasks, whole in _angles(evidence)
        ]
    }


STUDY = Study(
    name="weights",
    title="Angles, and SLERP on full weights",
    figure="Fig. 10c, 11",
    observation="Task vectors of two policies are near 90 degrees apart, their full weights near 0; SLERP on full "
    "weights is LERP",
    curves=_curves,
    claims=_claims,
    panels=_panels,
    numbers=_numbers,
)
