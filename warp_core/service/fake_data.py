"""The world of `FakeEngine`: made-up task vectors and metrics that hang together as measured ones do.

The vectors live in seven dimensions a layer: policies of iteration 1 along the first axes, those of iteration 2 along
the next ones. Reward and KL follow from the distance to the SFT policy and from how evenly the policies share in it,
with numbers close to the bundled run's. A change of the slider therefore does in the fake what it does for real.

Shape suffixes: L layers, M policies, K columns, D axes, P points.
"""

import hashlib
import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from warp_core.service.documents import FrontPoint, GeometryDocument, Metric, Prediction, Surface
from warp_core.service.places import full_weights, place_text
from warp_core.service.protocol import Place
from warp_core.slerp import slerp_coefficients

__all__ = ["World", "noise", "prediction_through"]

Floats = NDArray[np.float64]
NUM_LAYERS = 30
NUM_AXES = 7


@dataclass(frozen=True)
class World:
    """The checkpoints of one selection: M policies in each of I iterations."""

    num_policies: int
    iterations: int

    def geometry(self, iteration: int) -> GeometryDocument:
        """Inner products of the iteration's task vectors, with the SFT policy as last column from iteration 2 on."""
        columns_LKD = self._columns(iteration)
        gram_LKK = columns_LKD @ np.swapaxes(columns_LKD, 1, 2)
        count = self.num_policies
        gram_LMM = gram_LKK[:, :count, :count]
        norms_LM = np.sqrt(np.diagonal(gram_LMM, axis1=1, axis2=2))
        cosines_LMM = np.clip(gram_LMM / (norms_LM[:, :, None] * norms_LM[:, None, :]), -1.0, 1.0)
        init_L = 60.0 + 2.0 * np.arange(NUM_LAYERS)
        full_LMM = (init_L[:, None, None] ** 2 + gram_LMM) / (init_L[:, None, None] ** 2 + norms_LM[:, None, :] ** 2)
        return GeometryDocument(
            iteration=iteration,
            granularity="layer",
            layers=tuple(f"model.layers.{layer}" for layer in range(NUM_LAYERS)),
            num_params=(3_540_096,) * NUM_LAYERS,
            policies=tuple(f"policy {m + 1}" for m in range(count)),
            has_sft_column=iteration > 1,
            gram_LKK=_nested(gram_LKK),
            norms_LM=_nested(norms_LM),
            angles_deg_LMM=_nested(np.degrees(np.arccos(cosines_LMM))),
            cosines_LMM=_nested(cosines_LMM),
            full_cosines_LMM=_nested(np.minimum((full_LMM + np.swapaxes(full_LMM, 1, 2)) / 2, 1.0)),
        )

    def coefficients(self, place: Place) -> Floats:
        """c_LK of a place: theta_init + sum_k c_k delta_k, per layer."""
        weights = full_weights(place, self.num_policies)
        if place.method == "slerp":
            columns_LKD = self._columns(place.iteration)[:, : self.num_policies]
            gram_LMM = columns_LKD @ np.swapaxes(columns_LKD, 1, 2)
            merged_LM = np.array([slerp_coefficients(gram_MM, weights) for gram_MM in gram_LMM])
        else:
            merged_LM = np.tile(np.asarray(weights) / sum(weights), (NUM_LAYERS, 1))
        if place.iteration == 1:
            return place.eta * merged_LM
        rest = 1.0 - place.eta if place.towards == "sft" else 0.0
        return np.concatenate([place.eta * merged_LM, np.full((NUM_LAYERS, 1), rest)], axis=1)

    def metrics(self, place: Place, *, seed: str = "") -> dict[str, Metric]:
        """What measuring the place gives; the same for the same seed."""
        displacement_LD = self._displacement(place)
        length = math.sqrt(float((displacement_LD**2).sum()) / NUM_LAYERS)
        share_D = (displacement_LD**2).sum(axis=0) / max(float((displacement_LD**2).sum()), 1e-12)
        evenness = 1.0 - float((share_D**2).sum()) if length > 0 else 0.0
        return metrics_at(length, evenness, seed=f"{seed}{place_text(place)}" if length > 0 else f"{seed}sft")

    def training_metrics(self, iteration: int, policy: int, share: float) -> dict[str, Metric]:
        """What measuring a policy gives after this share of its steps."""
        end = Place(iteration=iteration, method="lerp", weights=self._one(policy), eta=1.0, towards="init")
        start_LD = self._init(iteration)
        along = share**0.8
        displacement_LD = (1.0 - along) * start_LD + along * self._displacement(end)
        length = math.sqrt(float((displacement_LD**2).sum()) / NUM_LAYERS)
        return metrics_at(length, 0.1, seed=f"train{iteration}.{policy}.{share:.3f}")

    def _one(self, policy: int) -> tuple[float, ...]:
        return tuple(float(m == policy) for m in range(1, self.num_policies + 1))

    def _columns(self, iteration: int) -> Floats:
        return _columns(self.num_policies, iteration)

    def _init(self, iteration: int) -> Floats:
        return _init(self.num_policies, iteration)

    def _displacement(self, place: Place) -> Floats:
        """Theta - theta_sft, per layer."""
        merged_LD = np.einsum("lk,lkd->ld", self.coefficients(place), self._columns(place.iteration))
        return merged_LD + self._init(place.iteration)


@lru_cache(maxsize=64)
def _init(num_policies: int, iteration: int) -> Floats:
    """The iteration's init relative to the SFT policy: LITI at 0.3 of the iteration before."""
    if iteration == 1:
        return np.zeros((NUM_LAYERS, NUM_AXES))
    even = Place(iteration=iteration - 1, eta=0.3, towards="init")
    before = World(num_policies, iteration)
    return before._displacement(even)


@lru_cache(maxsize=64)
def _columns(num_policies: int, iteration: int) -> Floats:
    """Task vectors [L, K, D], the last one theta_sft - theta_init from iteration 2 on."""
    size = 1.0 if iteration == 1 else 0.58
    columns = np.zeros((NUM_LAYERS, num_policies, NUM_AXES))
    for layer in range(NUM_LAYERS):
        for m in range(num_policies):
            own = size * (1.0 + 0.12 * noise(f"n{iteration}.{layer}.{m}"))
            axis = (m + num_policies * (iteration - 1)) % (NUM_AXES - 1)
            columns[layer, m] = [own * 0.06 * noise(f"v{iteration}.{layer}.{m}.{d}") for d in range(NUM_AXES)]
            columns[layer, m, axis] += own
    if iteration == 1:
        return columns
    return np.concatenate([columns, -_init(num_policies, iteration)[:, None]], axis=1)


def metrics_at(length: float, evenness: float, *, seed: str) -> dict[str, Metric]:
    """Metrics at a relative distance from the SFT policy; `evenness` 0 is one policy alone.

    The reward is that of `fake_runs`, sentiment and -0.01 times length; parts are before their weights.
    """
    kl = 54.0 * length**2 / (1.0 + 1.2 * length**2) * (1.0 - 0.25 * max(0.0, evenness - 0.66))
    reward = -0.15 + 3.55 * (1.0 - math.exp(-2.4 * length**1.35)) * (0.82 + 0.24 * evenness)
    kl_se = 0.024 * kl + 0.004 if kl else 0.0
    reward_se = 0.08 + 0.11 * math.exp(-length)
    tokens = 19.9 - 0.4 * length + 0.1 * noise(f"l{seed}")
    reward += 0.35 * reward_se * noise(f"r{seed}")
    mean_kl = max(0.0, kl + 0.35 * kl_se * noise(f"k{seed}"))
    return {
        "reward": Metric(mean=reward, se=reward_se),
        "reward:sentiment": Metric(mean=reward + 0.01 * tokens, se=reward_se),
        "reward:length": Metric(mean=tokens, se=0.15),
        "kl": Metric(mean=mean_kl, se=kl_se),
        "length": Metric(mean=tokens, se=0.15),
        "diversity": Metric(mean=0.885 - 0.105 * length + 0.005 * noise(f"d{seed}"), se=0.01),
    }


def noise(text: str) -> float:
    """A number from -1.7 to 1.7 with mean 0 and variance 1 that depends on nothing but the text."""
    value = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest()) / 2**56
    return (value - 0.5) * math.sqrt(12.0)


def prediction_through(world: World, points: list[FrontPoint], iteration: int) -> Prediction | None:
    """The kriging surface of `Prediction` through measured points; None with fewer than four."""
    found = [p for p in points if p.place and (p.place.iteration == iteration or p.kind == "sft")]
    if len(found) < 4:
        return None
    sft = Place(iteration=iteration, eta=0.0)
    gram_LKK = np.asarray(world.geometry(iteration).gram_LKK)
    places = [sft if p.kind == "sft" else p.place for p in found]
    points_PLK = np.array([world.coefficients(place) for place in places if place])
    sft_LK = world.coefficients(sft)
    scale = float(np.einsum("lmm->", gram_LKK[:, : world.num_policies, : world.num_policies])) / world.num_policies
    gap_PPLK = points_PLK[:, None] - points_PLK[None]
    d2_PP = np.einsum("pqlk,lkj,pqlj->pq", gap_PPLK, gram_LKK, gap_PPLK) / scale
    from_sft_PLK = points_PLK - sft_LK
    u_P = np.sqrt(np.maximum(np.einsum("plk,lkj,plj->p", from_sft_PLK, gram_LKK, from_sft_PLK), 0.0) / scale)
    return Prediction(
        iteration=iteration,
        scale=scale,
        sft_LK=_nested(sft_LK),
        points_PLK=_nested(points_PLK),
        keys=tuple(p.key for p in found),
        surfaces={
            name: _surface(d2_PP, u_P, [p.metrics[name] for p in found])
            for name in ("reward", "kl", "length", "diversity")
        },
    )


def _surface(d2_PP: Floats, u_P: Floats, metrics: list[Metric]) -> Surface:
    lengthscale = 0.5
    beta, alpha = _fit(d2_PP, u_P, metrics, lengthscale)
    misses = []
    for left in range(len(metrics)):
        keep = np.arange(len(metrics)) != left
        b, a = _fit(d2_PP[np.ix_(keep, keep)], u_P[keep], [m for m, k in zip(metrics, keep, strict=True) if k], 0.5)
        trend = b @ np.array([1.0, u_P[left], u_P[left] ** 2])
        misses.append(trend + a @ np.exp(-d2_PP[left, keep] / (2 * lengthscale**2)) - metrics[left].mean)
    return Surface(
        beta=tuple(beta.tolist()),
        alpha=tuple(alpha.tolist()),
        lengthscale=lengthscale,
        loo_rmse=float(np.sqrt(np.mean(np.square(misses)))),
    )


def _fit(d2_PP: Floats, u_P: Floats, metrics: list[Metric], lengthscale: float) -> tuple[Floats, Floats]:
    """Universal kriging: trend and weights that reproduce the points up to their errors."""
    count = len(metrics)
    trend_PB = np.stack([np.ones(count), u_P, u_P**2], axis=1)
    noise_P = np.array([(m.se or 0.0) ** 2 for m in metrics]) / 4.0 + 1e-6
    system = np.zeros((count + 3, count + 3))
    system[:count, :count] = np.exp(-d2_PP / (2 * lengthscale**2)) + np.diag(noise_P)
    system[:count, count:] = trend_PB
    system[count:, :count] = trend_PB.T
    solved = np.linalg.lstsq(system, np.array([*(m.mean for m in metrics), 0.0, 0.0, 0.0]), rcond=None)[0]
    return solved[count:], solved[:count]


def _nested(array: Floats) -> tuple:  # type: ignore[type-arg]
    return tuple(_nested(row) if row.ndim else float(row) for row in array)
