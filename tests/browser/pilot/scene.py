"""What the pilot draws in its tests: the made-up world of `FakeEngine`, with as many points as wanted."""

import random
from dataclasses import dataclass, field

from warp_core.service.documents import EvaluationNote, FrontDocument, FrontPoint, GeometryDocument, Prediction
from warp_core.service.fake_data import World, prediction_through
from warp_core.service.places import place_label, place_text, single
from warp_core.service.protocol import SFT, Place

EVALUATION = "64 prompts x 2"
ETAS = (0.1, 0.3, 0.5, 0.8, 1.0)


@dataclass
class Scene:
    """A front of a run: SFT policy, policies, LITI curves and RL runs of two iterations; `points` more merges."""

    policies: int = 3
    points: int = 0
    iterations: int = 2
    found: list[FrontPoint] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.world = World(self.policies, self.iterations)
        self.random = random.Random(0)
        self.found = [self.point(SFT, kind="sft", key="sft"), *self._of_runs()]
        for _ in range(self.points):
            self.measure_another()

    def point(self, place: Place, *, kind: str = "merge", key: str = "") -> FrontPoint:
        """Measure a place."""
        return FrontPoint(
            key=key or place_text(place),
            kind=kind,
            label=place_label(place),
            place=place,
            iteration=None if kind == "sft" else place.iteration,
            n=128,
            evaluation=EVALUATION,
            metrics=self.world.metrics(place),
        )

    def measure_another(self) -> None:
        """Add a merge with random weights."""
        parts = [self.random.random() for _ in range(self.policies)]
        weights = tuple(round(part / sum(parts), 4) for part in parts)
        place = Place(
            iteration=self.random.randint(1, self.iterations), weights=weights, eta=round(self.random.random(), 3)
        )
        self.found.append(self.point(place, key=f"extra-{len(self.found)}"))

    def front(self, *, is_empty: bool = False) -> FrontDocument:
        """All points with what dominates what."""
        measured = [point for point in self.found if point.kind != "training"]
        measured.sort(key=lambda point: (point.metrics["kl"].mean, -point.metrics["reward"].mean))
        best, marked = float("-inf"), []
        for point in measured:
            marked.append(point.model_copy(update={"dominated": point.metrics["reward"].mean <= best}))
            best = max(best, point.metrics["reward"].mean)
        moments = [point for point in self.found if point.kind == "training"]
        points = () if is_empty else (*marked, *moments)
        note = EvaluationNote(id=EVALUATION, label=f"{EVALUATION}, 20 tokens", is_default=True)
        return FrontDocument(revision=str(len(points)), points=points, evaluations=(note,))

    def geometry(self, iteration: int) -> GeometryDocument:
        """Of one iteration."""
        return self.world.geometry(iteration)

    def prediction(self, iteration: int) -> Prediction | None:
        """Through the points that are not extra: as many as a run has."""
        points = [p for p in self.found if p.kind != "training" and not p.key.startswith("extra-")]
        return prediction_through(self.world, points, iteration)

    def _of_runs(self) -> list[FrontPoint]:
        found = []
        for iteration in range(1, self.iterations + 1):
            for policy in range(1, self.policies + 1):
                place = single(policy, self.policies, iteration=iteration)
                found.append(self.point(place, kind="policy", key=f"i{iteration}.p{policy}"))
                found += [self._moment(iteration, policy, step) for step in (10, 20, 30, 40)]
            for method in ("slerp", "lerp"):
                found += [self.point(Place(iteration=iteration, method=method, eta=eta)) for eta in ETAS]
        return found

    def _moment(self, iteration: int, policy: int, step: int) -> FrontPoint:
        return FrontPoint(
            key=f"i{iteration}.p{policy}.s{step}",
            kind="training",
            label=f"policy {policy}, step {step}",
            iteration=iteration,
            policy=policy,
            step=step,
            n=64,
            evaluation=EVALUATION,
            metrics=self.world.training_metrics(iteration, policy, step / 40),
        )
