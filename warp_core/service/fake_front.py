"""The measured points of `FakeEngine`: of its runs, and whatever is measured."""

from collections.abc import Iterator

from warp_core.errors import UserError
from warp_core.service.documents import EvaluationNote, FrontDocument, FrontPoint, SampleRow
from warp_core.service.fake_data import World, noise
from warp_core.service.fake_runs import FakeRun
from warp_core.service.fake_text import PROMPTS, completion
from warp_core.service.places import is_sft, place_label, place_text, same_place, single
from warp_core.service.protocol import SFT, MeasureRequest, Place

__all__ = ["FakeFront"]

ETAS = (0.1, 0.3, 0.5, 0.8, 1.0)
NUM_PROMPTS, SAMPLES = 64, 2
MOMENTS = 4


class FakeFront:
    """Points of one selection."""

    def __init__(self, world: World, *, run: FakeRun | None) -> None:
        self._world = world
        self._run = run
        self._measured: dict[str, FrontPoint] = {}

    def document(self) -> FrontDocument:
        """All points, in the order of the real front."""
        points = [*self._of_the_run(), *self._measured.values()]
        points.sort(key=lambda point: ("sft", "policy", "merge", "training").index(point.kind))
        marked = tuple(point.model_copy(update={"dominated": _is_dominated(point, points)}) for point in points)
        names = sorted({point.evaluation for point in points} | {_name(NUM_PROMPTS, SAMPLES)})
        default = _name(NUM_PROMPTS, SAMPLES)
        reference = (30.0, -0.5) if points else None
        return FrontDocument(
            revision=f"{len(points)}",
            points=marked,
            evaluations=tuple(
                EvaluationNote(id=name, label=f"{name}, 20 tokens, exact KL, seed 1234", is_default=name == default)
                for name in names
            ),
            hypervolume=_hypervolume(marked, reference) if reference else None,
            reference=reference,
        )

    def measure(self, place: Place, request: MeasureRequest) -> str:
        """Add the point of a place where it is missing; return its key."""
        evaluation = _name(request.num_prompts or NUM_PROMPTS, request.samples_per_prompt or SAMPLES)
        for point in self.document().points:
            if point.place and point.evaluation == evaluation and same_place(point.place, place):
                return point.key
        default = evaluation == _name(NUM_PROMPTS, SAMPLES)
        suffix = "" if default else f"@{evaluation}"
        point = self._point(
            place, key=f"{'sft' if is_sft(place) else place_text(place)}{suffix}", evaluation=evaluation
        )
        self._measured[point.key] = point
        return point.key

    def samples(self, key: str, *, hostile: bool) -> list[SampleRow]:
        """Completions of a point: two of each prompt."""
        point = next((point for point in self.document().points if point.key == key), None)
        if point is None:
            raise UserError(f"there is no measured point {key[:80]!r}: measure it first")
        reward, kl = point.metrics["reward"].mean, point.metrics["kl"].mean
        rows = []
        for prompt in PROMPTS:
            for index in range(SAMPLES):
                asked = f"hostile {prompt}" if hostile else prompt
                text = completion(asked, seed=1234, index=index, distance=kl / 20, num_words=18)
                value = reward + 0.6 * noise(f"{key}{prompt}{index}")
                rows.append(
                    SampleRow(
                        prompt=prompt,
                        completion=text,
                        reward=value,
                        rewards={"sentiment": value + 0.2, "length": 20.0},
                        kl=max(0.0, kl * (1 + 0.3 * noise(f"{key}{index}{prompt}"))),
                        num_tokens=20,
                    )
                )
        return rows

    def _of_the_run(self) -> Iterator[FrontPoint]:
        if self._run is None:
            return
        yield self._point(SFT, key="sft")
        methods = self._run.config.evaluation.methods
        for iteration, policy in self._run.finished():
            place = single(policy, self._world.num_policies, iteration=iteration)
            yield self._point(place, key=f"i{iteration}.p{policy}", policy=policy)
            if policy == self._world.num_policies:
                for method in methods:
                    for eta in ETAS:
                        merge = Place(iteration=iteration, method=method, eta=eta)
                        yield self._point(merge, key=place_text(merge))
        yield from self._moments()

    def _moments(self) -> Iterator[FrontPoint]:
        for iteration, policy, done, steps in self._run.progress() if self._run else []:
            every = max(1, steps // MOMENTS)
            for step in range(every, done + 1, every):
                yield FrontPoint(
                    key=f"i{iteration}.p{policy}.s{step}",
                    kind="training",
                    label=f"policy {policy}, step {step}",
                    iteration=iteration,
                    policy=policy,
                    step=step,
                    n=NUM_PROMPTS,
                    evaluation=_name(NUM_PROMPTS, 1),
                    metrics=self._world.training_metrics(iteration, policy, step / steps),
                )

    def _point(
        self, place: Place, *, key: str, policy: int | None = None, evaluation: str = "64 prompts x 2"
    ) -> FrontPoint:
        default = evaluation == _name(NUM_PROMPTS, SAMPLES)
        metrics = self._world.metrics(place, seed="" if default else evaluation)
        return FrontPoint(
            key=key,
            kind="sft" if is_sft(place) else "policy" if policy else "merge",
            label=place_label(place),
            place=place,
            iteration=None if is_sft(place) else place.iteration,
            policy=policy,
            n=NUM_PROMPTS * SAMPLES,
            evaluation=evaluation,
            metrics=metrics,
        )


def _name(num_prompts: int, samples: int) -> str:
    return f"{num_prompts} prompts x {samples}"


def _is_dominated(point: FrontPoint, points: list[FrontPoint]) -> bool:
    if point.kind == "training":
        return False
    kl, reward = point.metrics["kl"].mean, point.metrics["reward"].mean
    for other in points:
        if other.kind == "training" or other.evaluation != point.evaluation:
            continue
        other_kl, other_reward = other.metrics["kl"].mean, other.metrics["reward"].mean
        if other_kl <= kl and other_reward >= reward and (other_kl, other_reward) != (kl, reward):
            return True
    return False


def _hypervolume(points: tuple[FrontPoint, ...], reference: tuple[float, float]) -> float:
    volume, height = 0.0, reference[1]
    front = [p for p in points if p.kind != "training" and not p.dominated]
    for point in sorted(front, key=lambda p: p.metrics["kl"].mean):
        kl, reward = point.metrics["kl"].mean, point.metrics["reward"].mean
        if kl < reference[0] and reward > height:
            volume += (reference[0] - kl) * (reward - height)
            height = reward
    return volume
