"""How precise differences along a front are: samples, and seconds, that other ways of sampling need for the same error.

Eleven values of eta on the bundled run, three completions of every prompt at each. The peer draws every point on
prompts and random numbers of its own and has the Monte-Carlo KL; what we do otherwise is added one by one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from bench.rows import Row
from bench.settings import Settings
from bench.trajectories import Collector, Trajectories
from bench.variances import Spread, effective_share, pooled_kl, pooled_reward, spread, window

__all__ = ["Gain", "Way", "gains", "measure", "rows_of"]

PROMPTS = 16
PLAIN = ("sample", "anchor")
PEER = "independent prompts and noise, mc KL"
DISTANCES = {"neighbours, 0.1 apart": 1, "0.3 apart": 3, "0.5 apart": 5}
TO_SFT = "to the SFT policy"
AIM = 4.0

Floats = NDArray[np.float64]


def measure(settings: Settings) -> list[Row]:
    """Return, for each way and distance, how many times fewer samples it needs than the peer."""
    torch.set_num_threads(settings.threads)
    collector = Collector(model=settings.smollm2, max_new_tokens=4 if settings.quick else 20)
    collector.collect(0, 1)  # once for nothing: the first batch is slower
    return rows_of(collector.collect(0, 3 if settings.quick else PROMPTS))


@dataclass(frozen=True, kw_only=True)
class Way:
    """A way to sample a front.

    Attributes:
        name: for the table.
        contribution_GSEE: see `variances`.
        common: whether all points see the same random numbers.
        seconds: of computing, per completion.
    """

    name: str
    contribution_GSEE: Floats
    common: bool
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Gain:
    """Variance of the peer over variance of a way, at equal numbers of completions; a 95 % bootstrap interval."""

    ratio: float
    low: float
    high: float


def rows_of(data: Trajectories, *, replicates: int = 1000) -> list[Row]:
    """Return the rows for what was collected."""
    count = len(data.etas)
    pairs = {name: [(j + step, j) for j in range(count - step)] for name, step in DISTANCES.items()}
    pairs[TO_SFT] = [(j, 0) for j in range(1, count)]
    independent_s = _seconds(data, "sample", "anchor")
    rows = []
    for quantity, value_GSE in (("reward", data.reward_GSE), ("KL", data.mc_kl_GSE)):
        ways = _reward_ways(data) if quantity == "reward" else _kl_ways(data)
        for distance, chosen in pairs.items():
            found = gains(value_GSE, ways, chosen, replicates=replicates)
            for way, gain in zip(ways, found, strict=True):
                faster = independent_s / way.seconds
                aimed = way.name in ("+ common noise", "+ exact KL") and (quantity == "reward") == ("noise" in way.name)
                rows.append(
                    Row(
                        bench="precision",
                        case=f"{quantity}, {distance}: {way.name}",
                        quantity="fewer samples",
                        value=gain.ratio,
                        unit="x",
                        peer=PEER,
                        ratio=gain.ratio,
                        aim=f">= {AIM:g} x" if aimed else None,
                        meets=gain.ratio >= AIM if aimed else None,
                        note=f"{gain.low:.1f} to {gain.high:.1f}; per second {gain.ratio * faster:.1f} x",
                    )
                )
    return [*rows, _sizes(data)]


def gains(
    peer_GSE: Floats, ways: Sequence[Way], pairs: Sequence[tuple[int, int]], *, replicates: int = 1000, seed: int = 0
) -> list[Gain]:
    """Return the gain of every way for the differences of `pairs`, summed over them.

    What varies between prompts is the same in all ways and taken from the least noisy one. Intervals: percentiles of a
    bootstrap over the prompts, the same replicates for all.
    """
    spreads = [spread(way.contribution_GSEE, pairs, common=way.common) for way in ways]
    best = min((s for way, s in zip(ways, spreads, strict=True) if way.common), key=lambda s: float(s.within_GD.mean()))
    count = len(peer_GSE)
    drawn_RG = np.random.default_rng(seed).integers(count, size=(replicates, count))
    found = []
    for one in spreads:
        whole = _ratio(peer_GSE, one, best, pairs, np.arange(count))
        each_R = [_ratio(peer_GSE, one, best, pairs, drawn_G) for drawn_G in drawn_RG]
        low, high = np.quantile(each_R, [0.025, 0.975])
        found.append(Gain(ratio=whole, low=float(low), high=float(high)))
    return found


def _ratio(
    peer_GSE: Floats, one: Spread, best: Spread, pairs: Sequence[tuple[int, int]], drawn_G: NDArray[np.int64]
) -> float:
    """Variance of the peer's differences over that of one way's, on these prompts."""
    apart_E = peer_GSE[drawn_G].var(axis=0, ddof=1).mean(axis=0)
    peer = np.mean([apart_E[j] + apart_E[k] for j, k in pairs])
    total = best.mean_GSD[drawn_G].var(axis=0, ddof=1).mean()
    between = max(0.0, float(total - best.within_GD[drawn_G].mean()))
    return float(peer / (between + one.within_GD[drawn_G].mean()))


def _reward_ways(data: Trajectories) -> list[Way]:
    plain_GSEE = _alone(data.reward_GSE)
    exact_s, pooled_s = _seconds(data, "sample", "anchor", "exact"), _seconds(data)
    pooled_GSEE = pooled_reward(data, window(len(data.etas), 1), baseline=True)
    return [
        Way(name="same prompts", contribution_GSEE=plain_GSEE, common=False, seconds=exact_s),
        Way(name="+ common noise", contribution_GSEE=plain_GSEE, common=True, seconds=exact_s),
        Way(name="+ pooled", contribution_GSEE=pooled_GSEE, common=True, seconds=pooled_s),
        Way(name="pooled, independent noise", contribution_GSEE=pooled_GSEE, common=False, seconds=pooled_s),
    ]


def _kl_ways(data: Trajectories) -> list[Way]:
    mc_GSEE, exact_GSEE = _alone(data.mc_kl_GSE), _alone(data.exact_kl_GSE)
    mc_s, exact_s, pooled_s = (_seconds(data, *kinds) for kinds in (PLAIN, (*PLAIN, "exact"), ()))
    pooled_GSEE = pooled_kl(data, window(len(data.etas), 1), baseline=True)
    return [
        Way(name="same prompts", contribution_GSEE=mc_GSEE, common=False, seconds=mc_s),
        Way(name="+ common noise", contribution_GSEE=mc_GSEE, common=True, seconds=mc_s),
        Way(name="+ exact KL", contribution_GSEE=exact_GSEE, common=True, seconds=exact_s),
        Way(name="+ pooled", contribution_GSEE=pooled_GSEE, common=True, seconds=pooled_s),
        Way(name="pooled, independent noise", contribution_GSEE=pooled_GSEE, common=False, seconds=pooled_s),
    ]


def _alone(value_GSE: Floats) -> Floats:
    """Contributions where every completion serves the point that it was drawn at."""
    return np.asarray(value_GSE[..., None] * np.eye(value_GSE.shape[-1]))


def _seconds(data: Trajectories, *kinds: str) -> float:
    """Seconds per completion of these kinds of work; all without any."""
    return sum(data.seconds[kind] for kind in kinds or data.seconds) / data.reward_GSE.size


def _sizes(data: Trajectories) -> Row:
    """What the study rests on, and how alike neighbours are."""
    prompts, samples, points = data.reward_GSE.shape
    share = effective_share(data, window(points, 1))[1:-1]
    return Row(
        bench="precision",
        case=f"{prompts} prompts x {samples} completions x {points} points",
        quantity="effective samples, pooled with both neighbours",
        value=float(share.mean()),
        unit="of 3",
        note=f"per completion in ms: {', '.join(f'{k} {1e3 * _seconds(data, k):.1f}' for k in data.seconds)}",
    )
