"""A front like the one measured before the design: SFT policy, two policies, SLERP and LERP curves, RL runs."""

from typing import Any

from warp_core.evaluation.paired import Comparison, compare_front
from warp_core.evaluation.points import Point, Sample
from warp_core.evaluation.series import make_front
from warp_core.weights.recipes import Recipe


def recipe(method: Any, eta: float, **other: Any) -> dict[str, Any]:
    fields = {"weights": (0.5, 0.5), "policies": ("b" * 64, "c" * 64), "init": "a" * 64} | other
    return Recipe(method=method, eta=eta, **fields).to_json()


def point(kl: float, reward: float, reward_se: float | None = 0.1, **other: Any) -> Point:
    fields = {"kl_se": None if reward_se is None else 0.5, "n": 80, "seed": 0, "kl_estimator": "exact", "length": 15.0}
    return Point(kl=kl, reward=reward, reward_se=reward_se, **(fields | {"diversity": 0.9} | other))


def merge(kl: float, reward: float, method: str, eta: float, iteration: int = 1, **other: Any) -> Point:
    made = recipe(method, eta, **other)
    return point(kl, reward, recipe=made, kind="merge", method=method, eta=eta, iteration=iteration)


SFT = point(0.0, 0.80, 0.34, policy="a" * 64, kind="sft")
ONE = point(14.1, 4.88, 0.11, policy="b" * 64, kind="policy", iteration=1, run="1")
TWO = point(16.2, 5.09, 0.04, policy="c" * 64, kind="policy", iteration=1, run="2")
SLERP = [
    merge(k, r, "slerp", eta) for eta, r, k in [(0.3, 2.74, 2.3), (0.5, 4.32, 7.2), (0.8, 5.06, 15), (1, 5.16, 20)]
]
LERP = [merge(k, r, "lerp", eta) for eta, r, k in [(0.5, 3.40, 7.5), (1, 4.90, 13.3)]]
RUN = [
    point(k, r, None, policy="run", kind="training", iteration=1, run="1", step=step)
    for step, r, k in [(0, 0.9, 0.0), (20, 3.9, 6.0), (40, 4.8, 14.0)]
]
POINTS = [*RUN, *reversed(SLERP), TWO, *LERP, ONE, SFT]
HOSTILE = (
    '<img src=x onerror="alert(1)"></script><script>alert(2)</script><a href="http://evil.example">\x1b[31m\u202e\n'
)


def compared(points: list[Point]) -> dict[str, Comparison]:
    """Differences of points whose n-th has reward n on one prompt and 3 n on another, and a KL of 3 n on both."""
    samples = {
        point.key: [
            Sample(prompt=prompt, completion="x", reward=slope * n, kl=3 * n, num_tokens=1)
            for prompt, slope in (("p", 1.0), ("q", 3.0))
        ]
        for n, point in enumerate(points)
    }
    return compare_front(make_front(points), samples)
