"""Numbers at the edge: what is not finite in a training step, merges of extreme weights, statistics of next to nothing.

Training: NaN and infinity are put into one element of the loss, the gradient, a weight, the EMA or a moment of Adam at
the k-th step of a real tiny run. Merges: every case of CASES, as folders on disk, against the float64 implementation of
tests/weights/oracle.py.
"""

import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from hostile.outcomes import Outcome, Tally
from tests import tiny
from tests.training.runs import CPU, metrics, tiny_config, trained_bytes
from tests.weights import oracle
from tests.weights.helpers import merge
from warp_core.errors import DivergedError, UserError
from warp_core.evaluation.fronts import default_reference, dominated, hypervolume
from warp_core.evaluation.points import Evaluation, Point, Sample, point_from_samples
from warp_core.evaluation.preferences import agreement, graded
from warp_core.evaluation.statistics import clustered_mean, paired_difference
from warp_core.training.reinforce import Learner, StepRecord
from warp_core.training.warp import train_warp
from warp_core.weights import open_checkpoint

__all__ = ["attack"]

STEPS = 3
VALUES = {"NaN": math.nan, "inf": math.inf, "-inf": -math.inf}
DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}
# How far a merge of up to 8 policies may be from float64 arithmetic on the same folders, as a share of the largest
# weight of a tensor; the rounding errors of a sum grow with its terms.
TOLERANCE = {"float32": 1e-6, "bfloat16": 2**-8, "float16": 2**-11, "float64": 1e-12}


def attack(place: Path, *, quick: bool) -> Iterator[Outcome]:
    """Try all three."""
    kinds = (("lora", "float32"), ("full", "bfloat16")) if quick else KINDS
    for kind, dtype in kinds:
        yield _training(place, kind, dtype, quick=quick)
    for dtype in ("float32",) if quick else DTYPES:
        yield _merges(place, dtype, quick=quick)
    yield _recipes(place, quick=quick)
    yield _statistics()


# Training

KINDS = (("lora", "float32"), ("lora", "bfloat16"), ("full", "float32"), ("full", "bfloat16"))


def _spoil_loss(learner: Learner, value: float) -> Callable[[], None]:
    inner = learner._anchor_logprobs
    learner._anchor_logprobs = lambda completions: inner(completions) * value  # type: ignore[method-assign]
    return lambda: setattr(learner, "_anchor_logprobs", inner)


def _spoil_gradient(learner: Learner, value: float) -> Callable[[], None]:
    trained = next(one for one in learner.trainable.policy.model.parameters() if one.requires_grad)
    return trained.register_hook(lambda gradient: gradient * value).remove


def _spoil_tensor(tensor: torch.Tensor, value: float) -> Callable[[], None]:
    with torch.no_grad():
        tensor.view(-1)[-1] = value
    return lambda: None


def _spoil_weight(learner: Learner, value: float) -> Callable[[], None]:
    undo = _spoil_tensor(list(learner.trainable.masters.values())[-1], value)
    learner.trainable.spread_masters()
    return undo


def _spoil_ema(learner: Learner, value: float) -> Callable[[], None]:
    return _spoil_tensor(list(learner.ema.values())[-1], value)


def _spoil_moment(learner: Learner, value: float, *, name: str) -> Callable[[], None]:
    master = list(learner.trainable.masters.values())[-1]
    return _spoil_tensor(learner.optimizer.state[master][name], value)


SPOILERS: dict[str, Callable[[Learner, float], Callable[[], None]]] = {
    "the loss": _spoil_loss,
    "the gradient": _spoil_gradient,
    "a weight": _spoil_weight,
    "the EMA": _spoil_ema,
    "Adam's first moment": partial(_spoil_moment, name="exp_avg"),
    "Adam's second moment": partial(_spoil_moment, name="exp_avg_sq"),
}


def _training(place: Path, kind: str, dtype: str, *, quick: bool) -> Outcome:
    tally = Tally(
        f"training, {kind}, {dtype}: a number that is not finite",
        promise="P7",
        holds="the run stops, nothing that is not finite is on disk, the state there is that of the step before, and "
        "the resumed run ends with the bytes of one without the fault",
    )
    folder = place / f"{kind}-{dtype}"
    folder.mkdir()
    config = tiny_config(
        folder,
        tiny.make_model("llama", folder / "sft"),
        kind=kind,
        model={"dtype": dtype},
        training={"steps": STEPS, "evaluate_every": 0, "save_every": 1, "max_new_tokens": 3},
    )
    train = partial(train_warp, config, devices=[CPU])
    train(folder / "straight")
    whole, rows = trained_bytes(folder / "straight"), metrics(folder / "straight")
    saved: dict[int, dict[str, bytes]] = {1: {}}
    for step in range(2, STEPS + 1):
        with suppress(KeyboardInterrupt):
            train(folder / f"stopped-{step}", should_stop=_after(step - 1))
        saved[step] = trained_bytes(folder / f"stopped-{step}")
    stops = dict.fromkeys(SPOILERS, 0)
    for what, spoil in SPOILERS.items():
        for value in ("NaN",) if quick else VALUES:
            for step in (STEPS,) if quick else range(1, STEPS + 1):
                if step == 1 and what.startswith("Adam"):
                    continue  # it has no moments yet
                seen, out = f"{what} {value} at step {step}", folder / f"{what}-{value}-{step}"
                said = _spoiled(train, out, spoil, VALUES[value], step)
                if said is None:
                    finite = all(
                        torch.isfinite(tensor).all()
                        for file in out.rglob("*.safetensors")
                        for tensor in load_file(file).values()
                    )
                    same = trained_bytes(out) == whole
                    tally.check(finite and same, f"{seen}: the run went on (all finite: {finite}, same bytes: {same})")
                    continue
                stops[what] += 1
                tally.check("\n" not in said, f"{seen}: said {said}")
                tally.check(trained_bytes(out) == saved[step], f"{seen}: another state than that of step {step - 1}")
                train(out, resume=True)
                tally.check(trained_bytes(out) == whole, f"{seen}: other weights after the resume")
                tally.check(metrics(out) == rows, f"{seen}: other metrics after the resume")
                shutil.rmtree(out)
    unnoticed = [what for what, count in stops.items() if not count]
    tally.check(not unnoticed, f"never noticed, or never brought about: {unnoticed}")
    return tally.outcome(f"{sum(stops.values())} stops")


def _after(calls: int) -> Callable[[], bool]:
    """A should_stop that says so from its `calls`-th question on."""
    left = iter(range(calls - 1))
    return lambda: next(left, None) is None


def _spoiled(
    train: Callable[[Path], object],
    out: Path,
    spoil: Callable[[Learner, float], Callable[[], None]],
    value: float,
    step: int,
) -> str | None:
    """Train with a fault before one step; what the DivergedError says, None without one."""
    inner = Learner.step

    def spoiled_step(learner: Learner) -> StepRecord:
        undo = spoil(learner, value) if learner.steps_done == step - 1 else (lambda: None)
        try:
            return inner(learner)
        finally:
            undo()

    with mock.patch.object(Learner, "step", spoiled_step):
        try:
            train(out)
        except DivergedError as error:
            return str(error)
    return None


# Merges

Deltas = Callable[[dict[str, torch.Tensor], int], list[dict[str, torch.Tensor]]]


@dataclass(frozen=True, kw_only=True)
class Case:
    """Task vectors to merge.

    Attributes:
        deltas: from the tensors of the init, in float64, and a number of policies.
        init: what the init is multiplied with.
        opposite: whether SLERP of the task vectors has no answer, and must say so.
        slack: factor of the tolerance, where the problem itself is badly conditioned.
    """

    deltas: Deltas
    init: float = 1.0
    opposite: bool = False
    slack: float = 1.0


def _noise(init: dict[str, torch.Tensor], seed: int, scale: float = 0.02) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {
        name: scale * torch.randn(one.shape, generator=draw, dtype=torch.float64) for name, one in sorted(init.items())
    }


def _times(delta: dict[str, torch.Tensor], factor: float) -> dict[str, torch.Tensor]:
    return {name: factor * one for name, one in delta.items()}


def _plus(first: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: one + other[name] for name, one in first.items()}


def _random(scale: float) -> Deltas:
    return lambda init, num: [_noise(init, m, scale) for m in range(num)]


def _one_layer(init: dict[str, torch.Tensor], num: int) -> list[dict[str, torch.Tensor]]:
    return [
        {name: one if "layers.1." in name else torch.zeros_like(one) for name, one in _noise(init, m).items()}
        for m in range(num)
    ]


def _layers_apart(init: dict[str, torch.Tensor], num: int) -> list[dict[str, torch.Tensor]]:
    """Each moves layers of its own: every angle is one with a zero vector."""
    return [
        {
            name: one if index % num == m else torch.zeros_like(one)
            for index, (name, one) in enumerate(_noise(init, m).items())
        }
        for m in range(num)
    ]


def _near(factor: float, gap: float) -> Deltas:
    """The first vector, and others that are `factor` times it but for a relative `gap`."""
    return lambda init, num: [
        _noise(init, 0),
        *(_plus(_times(_noise(init, 0), factor), _noise(init, m, 0.02 * gap)) for m in range(1, num)),
    ]


CASES: dict[str, Case] = {
    "random": Case(deltas=_random(0.02)),
    "all zero: policies equal the init": Case(deltas=_random(0.0)),
    "one zero": Case(deltas=lambda init, num: [_noise(init, 0, 0.0), *(_noise(init, m) for m in range(1, num))]),
    "all equal": Case(deltas=lambda init, num: [_noise(init, 0)] * num),
    "parallel, of other lengths": Case(deltas=lambda init, num: [_times(_noise(init, 0), m + 1.0) for m in range(num)]),
    "nearly equal": Case(deltas=_near(1.0, 1e-5)),
    "exactly opposite": Case(
        deltas=lambda init, num: [_times(_noise(init, 0), (-1.0) ** m) for m in range(num)], init=0.0, opposite=True
    ),
    "opposite within rounding": Case(deltas=_near(-1.0, 1e-6), init=0.0, opposite=True),
    "nearly opposite": Case(deltas=_near(-1.0, 0.02), init=0.0, slack=100.0),
    "denormal": Case(deltas=_random(1e-41), init=0.0),
    "smallest normal": Case(deltas=_random(1e-37), init=0.0),
    "huge": Case(deltas=_random(1e30), init=0.0),
    "huge and small": Case(
        deltas=lambda init, num: [_noise(init, m, 1e30 if m % 2 else 1e-30) for m in range(num)], init=0.0
    ),
    "at the end of the range": Case(deltas=_random(8e37), init=0.0),
    "one layer": Case(deltas=_one_layer),
    "each a layer of its own": Case(deltas=_layers_apart),
}
COUNTS = (1, 2, 3, 5, 8, 16)


def _merges(place: Path, dtype: str, *, quick: bool) -> Outcome:
    tally = Tally(
        f"merges, {dtype}: extreme task vectors",
        promise="P5",
        holds="the merge is that of float64 arithmetic up to the rounding of its dtype, or it is refused in one line "
        "that names layer, tensor or dtype; nothing that is not finite is ever written",
    )
    base = tiny.make_model("llama", place / f"base-{dtype}")
    refused = 0
    for name, case in CASES.items():
        counts = (2,) if quick else COUNTS if name == "random" else (2, 3)
        for count in counts:
            folder = place / f"merge-{dtype}"
            made = _folders(base, folder, case, dtype=DTYPES[dtype], count=count)
            refused += _merge_all(tally, made, case, seen=f"{name}, M = {count}", dtype=dtype, quick=quick)
            shutil.rmtree(folder)
    return tally.outcome(f"{refused} refused")


def _folders(base: Path, parent: Path, case: Case, *, dtype: torch.dtype, count: int) -> list[Path]:
    """Init and policies on disk, rounded to the dtype and held in its range."""
    weights = {name: case.init * one.double() for name, one in load_file(base / "model.safetensors").items()}
    limit = torch.finfo(dtype).max / 4
    vectors = [_times(weights, 0.0), *case.deltas(weights, count)]
    folders = []
    for m, delta in enumerate(vectors):
        folder = parent / ("init" if m == 0 else f"policy{m}")
        shutil.copytree(base, folder)
        moved = {name: (one + delta[name]).clamp(-limit, limit).to(dtype).contiguous() for name, one in weights.items()}
        save_file(moved, folder / "model.safetensors", metadata={"format": "pt"})
        folders.append(folder)
    return folders


def _merge_all(tally: Tally, made: Sequence[Path], case: Case, *, seen: str, dtype: str, quick: bool) -> int:
    refused = 0
    try:
        init, *policies = [open_checkpoint(folder) for folder in made]
    except UserError as error:
        tally.check(False, f"{seen}: cannot be opened: {error}")
        return 1
    weights = [oracle.read_folder(folder) for folder in made]
    count = len(policies)
    methods = ("slerp", "lerp", "slerp-weights")
    etas = (0.3,) if quick else (0.0, 0.3, 1.0, 2.0)
    for method in methods:
        for granularity in ("layer",) if quick or count > 3 else ("layer", "tensor", "model"):
            for shares in _shares(count)[:: 3 if quick else 1]:
                for eta in etas:
                    out = made[0].parent / "out"
                    what = f"{seen}, {method} per {granularity}, eta {eta}, weights {[round(x, 3) for x in shares][:4]}"
                    recipe = {"method": method, "granularity": granularity, "weights": shares, "eta": eta}
                    try:
                        merge(init, policies, out, **recipe)
                    except UserError as error:
                        refused += 1
                        words = str(error)
                        by_name = "\n" not in words and any(
                            x in words for x in ("layer '", "tensor", "'model.", "'lm_")
                        )
                        tally.check(by_name and not out.exists(), f"{what}: refused: {words}")
                        too_large = dtype == "float16" and "float16" in words
                        expected = (case.opposite and method != "lerp") or too_large
                        tally.check(expected, f"{what}: refused without need: {words}")
                        continue
                    except Exception as error:
                        tally.check(False, f"{what}: {type(error).__name__}: {error}")
                        continue
                    both = sum(share > 0 for share in shares) > 1
                    tally.check(
                        not (case.opposite and method == "slerp" and both), f"{what}: opposite, and merged all the same"
                    )
                    slack = case.slack * max(1.0, len(policies) / 8)
                    problem = _against_the_oracle(out, weights, recipe, TOLERANCE[dtype] * slack, dtype)
                    tally.check(not problem, f"{what}: {problem}")
                    shutil.rmtree(out)
    return refused


def _shares(count: int) -> list[tuple[float, ...]]:
    """All alike, all on the first, all on the last, and uneven."""
    even = (1 / count,) * count
    if count == 1:
        return [even]
    first, last = (1.0,) + (0.0,) * (count - 1), (0.0,) * (count - 1) + (1.0,)
    uneven = tuple(2.0 * (m + 1) / (count * (count + 1)) for m in range(count))
    return [even, first, last, uneven]


def _against_the_oracle(
    out: Path, weights: Sequence[oracle.Weights], recipe: dict[str, object], tolerance: float, dtype: str
) -> str:
    """What is wrong with a merged folder; "" for nothing."""
    got = oracle.read_folder(out)
    want = oracle.merge(weights[0], weights[1:], **recipe)  # type: ignore[arg-type]
    if got.keys() != want.keys():
        return "other tensors"
    smallest = float(torch.finfo(DTYPES[dtype]).smallest_normal) * 2**-7  # below this the dtype has only steps
    for name, right in want.items():
        if not np.isfinite(got[name]).all():
            return f"{name} is not finite"
        scale = max(float(np.abs(one[name]).max()) for one in (*weights, want))
        gap = float(np.abs(got[name] - right).max())
        if gap > tolerance * scale + smallest:
            return f"{name} is off by {gap:.3g} of {scale:.3g}"
    return ""


def _recipes(place: Path, *, quick: bool) -> Outcome:
    tally = Tally(
        "merges: recipes that make no sense",
        promise="P5",
        holds="refused in one line that names the field, and nothing is written",
    )
    base = tiny.make_model("llama", place / "base-recipes")
    folders = _folders(base, place / "recipes", CASES["random"], dtype=torch.float32, count=2)
    init, *policies = [open_checkpoint(folder) for folder in folders]
    wrong: list[tuple[str, dict[str, Any]]] = [
        *(("eta", {"eta": eta}) for eta in (-1, -1e-9, 2.1, 1e30, math.nan, math.inf, -math.inf, "1", None, True)),
        *(("eta", {"eta": 10**400}) for _ in range(1)),
        *(
            ("weights", {"weights": shares})
            for shares in (
                (0.0, 0.0), (1.0,), (0.5, 0.5, 0.0), (-1.0, 2.0), (math.nan, 1.0), (math.inf, 0.0), (0.5, 0.6),
                (True, False), (), ("1", "0"), (10**400, 0.0), (1e308, 1e308),
            )
        ),
        *(("method", {"method": method}) for method in ("", "SLERP", "ties", None, 1)),
        *(("granularity", {"granularity": one}) for one in ("", "layers", None)),
    ]  # fmt: skip
    for field, recipe in wrong[::4] if quick else wrong:
        out = place / "refused"
        try:
            merge(init, policies, out, **recipe)
        except UserError as error:
            tally.check(f"{field} =" in str(error) and "\n" not in str(error), f"{recipe}: {error}")
        except Exception as error:
            tally.check(False, f"{recipe!s:.80}: {type(error).__name__}: {error!s:.200}")
        else:
            tally.check(False, f"{recipe!s:.80}: merged")
        tally.check(not out.exists(), f"{recipe!s:.80}: something was written")
        shutil.rmtree(out, ignore_errors=True)
    return tally.outcome()


# Statistics


def _statistics() -> Outcome:
    tally = Tally(
        "statistics of next to nothing",
        promise="P7",
        holds="a number or None where there is no error to estimate, or a refusal; never NaN",
    )
    one = clustered_mean([2.0], ["p"])
    tally.check((one.mean, one.se) == (2.0, None), f"one value: {one}")
    one = clustered_mean([1.0, 3.0], ["p", "p"])
    tally.check((one.mean, one.se) == (2.0, None), f"one prompt: {one}")
    equal = clustered_mean([0.1] * 6, list("ppqqrr"))
    tally.check(equal.se is not None and 0 <= equal.se < 1e-12, f"equal rewards: {equal}")
    for size in (1e-300, 1e150, 1e300):
        some = clustered_mean([size, -size, size, size], list("ppqq"))
        tally.check(math.isfinite(some.mean) and some.se is not None and math.isfinite(some.se), f"{size}: {some}")
    none = paired_difference([1.0, 2.0], ["p", "q"], [1.0, 2.0], ["p", "q"])
    tally.check((none.mean, none.se) == (0.0, 0.0), f"a point less itself: {none}")
    refused: dict[str, Callable[[], object]] = {
        "no value": lambda: clustered_mean([], []),
        "NaN": lambda: clustered_mean([math.nan, 1.0], ["p", "q"]),
        "infinity": lambda: clustered_mean([math.inf, 1.0], ["p", "q"]),
        "too few clusters": lambda: clustered_mean([1.0, 2.0], ["p"]),
        "other prompts": lambda: paired_difference([1.0], ["p"], [1.0], ["q"]),
        "an infinite KL": lambda: _point(math.inf),
        "a KL that is NaN": lambda: _point(math.nan),
        "an infinite reward": lambda: _point(1.0, reward=-math.inf),
    }
    for name, call in refused.items():
        try:
            got = call()
        except ValueError as error:
            tally.check(bool(str(error)), f"{name}: refused without a word")
        except Exception as error:
            tally.check(False, f"{name}: {type(error).__name__}: {error}")
        else:
            tally.check(False, f"{name}: {got}")
    lone = _point(0.0)
    tally.check(_is_finite(lone.reward, lone.kl) and lone.reward_se is None, f"one sample: {lone}")
    tally.check(dominated([lone]) == [False], "a lone point is dominated")
    reference = default_reference([lone])
    tally.check(_is_finite(*reference, hypervolume([lone], reference)), f"reference {reference}")
    same = [_point(1.0), _point(1.0), _point(1.0)]
    tally.check(dominated(same) == [False] * 3, "equal points dominate one another")
    tally.check(_is_finite(hypervolume(same, default_reference(same))), "equal points")
    tally.check(all(map(math.isfinite, graded([0.0] * 5))), "grades of equal rewards")
    alike = agreement([0.0] * 4, [0.0] * 4)
    tally.check(
        all(value is None or not isinstance(value, float) or math.isfinite(value) for value in vars(alike).values()),
        f"agreement of ties: {alike}",
    )
    return tally.outcome()


def _point(kl: float, *, reward: float = 1.0) -> Point:
    sample = Sample(prompt="p", completion="c", reward=reward, kl=kl, num_tokens=1)
    evaluation = Evaluation(
        reward_id="r", prompts_id="p", num_prompts=1, samples_per_prompt=1, max_new_tokens=1, temperature=1.0, seed=0
    )  # fmt: skip
    return point_from_samples([sample], evaluation=evaluation, policy="p", kind="policy")


def _is_finite(*values: float) -> bool:
    return all(map(math.isfinite, values))
