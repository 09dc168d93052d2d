"""How the points of a front are named, ordered and grouped into curves, for the table, the page and the picture."""

import math
import re
import unicodedata
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from warp_core.evaluation.fronts import default_reference, dominated, hypervolume, pareto_front
from warp_core.evaluation.points import Kind, Point

__all__ = [
    "Front",
    "Series",
    "how_measured",
    "hypervolume_note",
    "kl_range",
    "label",
    "make_front",
    "number",
    "plain",
    "reference_name",
    "with_error",
]

METHOD_NAMES = {"slerp": "SLERP", "lerp": "LERP", "slerp-weights": "SLERP of weights"}
# Okabe and Ito's palette, which colour-blind readers can tell apart; one colour per iteration.
ITERATION_COLORS = ("#0072B2", "#D55E00", "#009E73", "#AA4499", "#56B4E9", "#E69F00")
_METHOD_ORDER = {method: i for i, method in enumerate(METHOD_NAMES)}
_KIND_ORDER = {"sft": 0, "policy": 1, "merge": 2, "training": 3}


@dataclass(frozen=True, kw_only=True)
class Series:
    """Points that are drawn alike and, where a line makes sense, joined.

    name: the entry of the legend; group: its heading; path: what the line goes through, which may start at the SFT
    policy although that is no member.
    """

    kind: Kind
    name: str
    group: str
    color: str
    method: str | None
    members: tuple[Point, ...]
    path: tuple[Point, ...]


@dataclass(frozen=True, kw_only=True)
class Front:
    """A set of points ready to be shown: measured points in order, which are dominated, and the curves."""

    points: tuple[Point, ...]
    """All but the moments of training runs: SFT policy first, then by iteration, kind, method and eta."""
    dominated: tuple[bool, ...]
    pareto: tuple[Point, ...]
    series: tuple[Series, ...]
    reference: tuple[float, float]
    hypervolume: float

    def is_dominated(self, point: Point) -> bool:
        """Whether this very object is one of the dominated points."""
        return any(flag and point is mine for mine, flag in zip(self.points, self.dominated, strict=True))


def make_front(points: Sequence[Point], *, reference: tuple[float, float] | None = None) -> Front:
    """Order and group points. Moments of training runs (kind "training") are curves but never part of the front.

    reference: (KL, reward) of the hypervolume, by default `default_reference` of the measured points.
    Raises ValueError if there is no measured point.
    """
    measured = tuple(sorted((p for p in points if p.kind != "training"), key=_order))
    ref = reference or default_reference(measured)
    return Front(
        points=measured,
        dominated=tuple(dominated(measured)),
        pareto=tuple(pareto_front(measured)),
        series=tuple(_series(sorted(points, key=_order))),
        reference=ref,
        hypervolume=hypervolume(measured, ref),
    )


def kl_range(front: Front) -> tuple[float, float]:
    """KL from left to right of a plot: all measured points with their errors, and of RL runs up to 1.6 times as far.

    A run that drifted away (the paper stops at a KL of 200) leaves the plot rather than squeezing the front.
    """
    reach = max(p.kl + (p.kl_se or 0) for p in front.points)
    furthest = max([reach, *(p.kl for s in front.series for p in s.path)])
    low = min(p.kl - (p.kl_se or 0) for p in front.points)
    return min(0.0, low), max(1.06 * reach, min(1.03 * furthest, 1.6 * reach)) or 1.0


def label(point: Point) -> str:
    """A short name on one line, of printable characters only: "SFT policy", "policy 2", "SLERP 0.3/0.7"."""
    if point.kind == "sft":
        return "SFT policy"
    if point.recipe is not None:
        method = METHOD_NAMES.get(str(point.method), plain(str(point.method or "merge"))[:40])
        return " ".join(filter(None, [method, _weights_note(point), _towards_note(point)]))
    name = (
        f"policy {plain(point.run).removeprefix('policy-')[:40]}" if point.run else plain(_shortened(str(point.policy)))
    )
    return f"{name}, step {point.step}" if point.step is not None and point.kind == "training" else name


def reference_name(point: Point) -> str:
    """What `front --reference` calls a measured point: "sft", "1/policy-2", "2/slerp:0.3", "2/slerp:0.3:to-init"."""
    if point.kind == "sft":
        return "sft"
    name = plain(point.run or str(point.policy))
    if point.recipe is not None:
        name = f"{point.method}:{point.eta:g}"
        # From the second iteration on a curve may lead to the init of its own iteration instead.
        name += "" if point.recipe.get("towards") or (point.iteration or 1) == 1 else ":to-init"
    return name if point.iteration is None else f"{point.iteration}/{name}"


def how_measured(front: Front) -> str:
    """What a reader must know of the measurement: KL estimator, completions per point, seed."""
    estimators = " and ".join(sorted({p.kl_estimator for p in front.points}))
    counts = sorted({p.n for p in front.points})
    seeds = sorted({p.seed for p in front.points})
    n = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    seed = ", ".join(map(str, seeds[:4])) + (", ..." if len(seeds) > 4 else "")
    return f"KL by the {estimators} estimator; n = {n} completions each, seed {seed}"


def hypervolume_note(front: Front) -> str:
    """The hypervolume and its reference, in one sentence."""
    kl, reward = (number(value) for value in front.reference)
    return f"Hypervolume {number(front.hypervolume)} against KL {kl}, reward {reward}."


def plain(text: str) -> str:
    """The text on one line and printable: no line breaks, terminal codes or text direction marks; at most 120 long."""
    kept = "".join("?" if unicodedata.category(c)[0] == "C" and not c.isspace() else c for c in text)
    return " ".join(kept.split())[:120]


def number(value: float | None) -> str:
    """A number for people, without exponent: 123, 12.3, 1.23, 0.12, and two digits of what is smaller; "-" for None."""
    return "-" if value is None else _fixed(value, _decimals(value))


def with_error(mean: float, se: float | None, *, sign: str) -> str:
    """A mean and its standard error with the same decimals, enough to see the error: "4.88 +- 0.11"."""
    if not se:
        return number(mean) if se is None else f"{number(mean)} {sign} {_fixed(0.0, _decimals(mean))}"
    decimals = min(6, max(_decimals(mean), -math.floor(math.log10(se))))
    return f"{_fixed(mean, decimals)} {sign} {_fixed(se, decimals)}"


def _decimals(value: float) -> int:
    size = abs(value)
    if size >= 0.1 or size == 0:
        return max(0, 2 - max(0, math.floor(math.log10(size or 1.0))))
    return min(6, 1 - math.floor(math.log10(size)))


def _fixed(value: float, decimals: int) -> str:
    text = f"{value:.{decimals}f}"
    return text.lstrip("-") if float(text) == 0 else text


def _order(point: Point) -> tuple[int, int, int, str, str, float, int]:
    return (
        0 if point.kind == "sft" else 1,
        point.iteration or 0,
        _KIND_ORDER.get(point.kind or "policy", 1),
        f"{_METHOD_ORDER.get(str(point.method), 9)}",
        f"{point.run or ''}{_weights_note(point)}{_towards_note(point)}",
        point.eta if point.eta is not None else 0.0,
        point.step or 0,
    )


def _series(points: Sequence[Point]) -> list[Series]:
    """Group sorted points by what they are; merges that differ in eta alone are one LITI curve."""
    groups: dict[Hashable, list[Point]] = defaultdict(list)
    for point in points:
        groups[_series_key(point)].append(point)
    sft = next((p for p in points if p.kind == "sft"), None)
    iterations = sorted({p.iteration or 0 for p in points if p.kind != "sft"})
    found = []
    for members in groups.values():
        first = members[0]
        place = iterations.index(first.iteration or 0) if first.kind != "sft" else 0
        found.append(
            Series(
                kind=first.kind or ("merge" if first.recipe is not None else "policy"),
                name=_series_name(first),
                group="Reference" if first.kind == "sft" else _group_name(first),
                color="#111111" if first.kind == "sft" else ITERATION_COLORS[place % len(ITERATION_COLORS)],
                method=first.method,
                members=tuple(members),
                path=_path(members, sft),
            )
        )
    return found


def _series_key(point: Point) -> Hashable:
    if point.recipe is not None:
        rest = {k: str(v) for k, v in point.recipe.items() if k != "eta"}
        return (point.iteration, "merge", point.method, tuple(sorted(rest.items())))
    return (point.iteration, point.kind, point.run if point.kind == "training" else None)


def _series_name(point: Point) -> str:
    if point.kind == "policy" or (point.kind is None and point.recipe is None):
        return "single policies"
    if point.kind == "training":
        return f"RL run {plain(point.run).removeprefix('policy-')}" if point.run else "RL run"
    return label(point)


def _group_name(point: Point) -> str:
    return f"Iteration {point.iteration}" if point.iteration is not None else "Models"


def _path(members: Sequence[Point], sft: Point | None) -> tuple[Point, ...]:
    """The curve. With eta = 0 a merge is the init (or `towards`) itself: the SFT policy where the data says so."""
    first = members[0]
    if first.recipe is None:
        return tuple(members) if first.kind == "training" else ()
    starts_at_sft = (first.iteration or 1) == 1 or first.recipe.get("towards") is not None
    if sft is not None and starts_at_sft and first.eta is not None and first.eta > 0:
        return (sft, *members)
    return tuple(members)


def _weights_note(point: Point) -> str:
    """The weights where they are not all alike, else nothing."""
    weights = (point.recipe or {}).get("weights") or []
    if len({round(float(w), 6) for w in weights}) < 2:
        return ""
    return "/".join(f"{float(w):.3g}" for w in weights)


def _towards_note(point: Point) -> str:
    return "to SFT" if (point.recipe or {}).get("towards") else ""


def _shortened(name: str) -> str:
    if re.fullmatch(r"[0-9a-f]{32,}", name):
        return name[:8]
    return name if len(name) <= 40 else f"...{name[-37:]}"
