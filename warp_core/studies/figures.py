"""What a study draws, without saying how: panels of lines."""

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["AXES", "COLORS", "Line", "Panel"]

COLORS = (
    "#3b6fd4", "#d1603d", "#2f9e79", "#8a5cc2", "#b8860b", "#c2477f", "#4d8fac", "#7a7f33", "#a0522d", "#5f6b7a",
)  # fmt: skip
AXES = {
    "eta": "eta",
    "lambda": "lambda",
    "step": "training step",
    "kl": "KL to the SFT policy (nats per completion)",
    "reward": "reward",
    "length": "tokens per completion",
    "similarity": "similarity of two completions",
    "judge": "score of the second judge (log-odds)",
}


@dataclass(frozen=True, kw_only=True)
class Line:
    """Points in order, joined; `y_se` standard errors, `notes` what stands beside a point when it is pointed at."""

    name: str
    color: str
    x: Sequence[float]
    y: Sequence[float]
    y_se: Sequence[float] = ()
    notes: Sequence[str] = ()
    dash: str = "solid"
    in_legend: bool = True


@dataclass(frozen=True, kw_only=True)
class Panel:
    """A pair of axes with lines."""

    x_label: str
    y_label: str
    lines: tuple[Line, ...]
