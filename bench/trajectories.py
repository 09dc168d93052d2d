"""Completions of every point of a front, scored by the points beside it: what the study of precision is made of.

The bundled run's last iteration, SLERP towards the SFT policy, at E values of eta. Every prompt has S completions at
every eta; completion s of a prompt sees the same random numbers at all of them. Each completion is scored by the SFT
policy and by the models up to REACH places away, over the whole vocabulary.

Shape suffixes: G prompts, S samples of a prompt, E values of eta, O neighbours (offsets -REACH..REACH), T tokens,
V vocabulary; B = E G S rows of a batch.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from warp_core.policy.bank import AdapterBank, Mix
from warp_core.policy.logprobs import completion_logits
from warp_core.policy.model import load_policy
from warp_core.policy.prompts import encode_prompts, read_prompts
from warp_core.policy.sampling import Completions, row_seed, sample
from warp_core.rewards import RewardBatch, load_reward
from warp_core.training.warp import reopen, sources_of
from warp_core.weights import coefficients, compute_geometry, make_recipe
from warp_core.workspace.assets import assets_root

__all__ = ["ETAS", "REACH", "Collector", "Trajectories"]

ETAS = tuple(i / 10 for i in range(11))
REACH = 2
PROMPTS = "reviews-eval"

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Trajectories:
    """What was drawn and how it was scored; `seconds` has the time of each kind of work."""

    etas: tuple[float, ...]
    reward_GSE: Floats
    mask_GSET: NDArray[np.bool_]
    logp_GSEOT: Floats
    """Log-probability of each token under the model `offset` places along; NaN where there is none."""
    anchor_GSET: Floats
    """... and under the SFT policy."""
    kl_GSEOT: Floats
    """KL of that model's next token to the SFT policy's, over the whole vocabulary, nats; of the nearest ones alone."""
    seconds: dict[str, float]

    @property
    def mc_kl_GSE(self) -> Floats:
        """The Monte-Carlo estimate of the KL of every completion."""
        return np.asarray((self.logp_GSEOT[..., REACH, :] - self.anchor_GSET).sum(axis=-1))

    @property
    def exact_kl_GSE(self) -> Floats:
        """The exact-KL estimate of every completion."""
        return np.asarray(self.kl_GSEOT[..., REACH, :].sum(axis=-1))

    def save(self, path: Path) -> None:
        """Write all of it to an `.npz` file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        arrays: dict[str, Any] = {name: np.asarray(value) for name, value in asdict(self).items() if name != "seconds"}
        arrays |= {"names": np.array(list(self.seconds)), "times": np.array(list(self.seconds.values()))}
        np.savez_compressed(path, **arrays)

    @classmethod
    def load(cls, paths: Sequence[Path]) -> Self:
        """Read files of other prompts each, one after the other."""
        parts = [dict(np.load(path)) for path in paths]
        named = [name for name in parts[0] if name.endswith(("GSE", "GSET", "GSEOT"))]
        arrays: dict[str, Any] = {name: np.concatenate([part[name] for part in parts]) for name in named}
        times = np.sum([part["times"] for part in parts], axis=0)
        seconds = dict(zip(map(str, parts[0]["names"]), map(float, times), strict=True))
        return cls(etas=tuple(map(float, parts[0]["etas"])), seconds=seconds, **arrays)


class Collector:
    """Holds the models of the front; `collect` draws and scores.

    Args:
        model: folder of the SFT policy, SmolLM2-135M.
        etas: the points of the front, in order.
        samples: S.
        max_new_tokens: T.
        reach: neighbours on either side that score a completion; what is further is left NaN.
    """

    def __init__(
        self,
        *,
        model: Path,
        etas: Sequence[float] = ETAS,
        samples: int = 3,
        max_new_tokens: int = 20,
        reach: int = REACH,
    ) -> None:
        run, config = reopen(assets_root() / "demo-run")
        sources = sources_of(run, config, config.warp.iterations)
        self.etas, self.samples, self.max_new_tokens, self.reach = tuple(etas), samples, max_new_tokens, reach
        self.temperature = config.training.temperature
        self.prompts = read_prompts(PROMPTS)
        self.reward = load_reward(config.reward.terms, device="cpu")
        self.policy = load_policy(model, device=torch.device("cpu"), dtype=torch.float32)
        self.bank = AdapterBank(self.policy, sources.sft)
        members = [sources.init, *sources.policies]
        self.bank.load(members)
        geometry = compute_geometry(sources.init, sources.policies)
        self.mixes: list[Mix | None] = []
        for eta in self.etas:
            recipe = make_recipe(sources.init, sources.policies, eta=eta, towards=sources.towards)
            given = [*members, *([sources.towards] if sources.towards else [])]
            self.mixes.append(self.bank.mix(coefficients(recipe, geometry), given) if eta else None)
        self.seconds = dict.fromkeys(("sample", "anchor", "neighbour", "exact", "reward"), 0.0)

    def collect(self, start: int, stop: int, *, at_once: int = 1) -> Trajectories:
        """Draw and score the completions of prompts start..stop-1, `at_once` prompts in a batch."""
        self.seconds = dict.fromkeys(self.seconds, 0.0)
        parts = [self._batch(range(first, min(first + at_once, stop))) for first in range(start, stop, at_once)]
        joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        return Trajectories(etas=self.etas, seconds=dict(self.seconds), **joined)

    @torch.no_grad()
    def _batch(self, places: range) -> dict[str, Any]:
        drawn = self._sample(places)
        assert drawn.logps_BTV is not None
        shape = (len(self.etas), len(places), self.samples)
        mask_BT = drawn.mask_BT
        steps = self.max_new_tokens

        def arranged(values: torch.Tensor) -> Floats:
            """From rows [E G S] in order to [G, S, E, ...], padded to T tokens."""
            array = np.zeros((*shape, *values.shape[1:-1], steps))
            array[..., : values.shape[-1]] = values.double().numpy().reshape(*shape, *values.shape[1:])
            return np.moveaxis(array, 0, 2)

        with self._timed("anchor"):
            anchor_BTV = completion_logits(self.policy, drawn, temperature=self.temperature)
        with self._timed("exact"):
            anchor_BTV = anchor_BTV.log_softmax(dim=2)
            own_BT = _kl(drawn.logps_BTV, anchor_BTV) * mask_BT
        picked = drawn.tokens_BT.unsqueeze(2)
        logp_BOT = torch.full((len(mask_BT), 2 * REACH + 1, mask_BT.shape[1]), torch.nan)
        kl_BOT = logp_BOT.clone()
        logp_BOT[:, REACH], kl_BOT[:, REACH] = drawn.logp_BT, own_BT.float()
        for offset in [o for o in range(-self.reach, self.reach + 1) if o]:
            with self._timed("neighbour"):
                rows, logits_RTV = self._neighbours(drawn, offset, len(places))
                logps_RTV = logits_RTV.log_softmax(dim=2)
                chosen_RT = logps_RTV.gather(2, picked[rows]).squeeze(2)
                logp_BOT[rows, REACH + offset] = chosen_RT.masked_fill(~mask_BT[rows], 0.0)
                if abs(offset) == 1:  # further ones only weigh what these estimate
                    kl_BOT[rows, REACH + offset] = _kl(logps_RTV, anchor_BTV[rows]).float() * mask_BT[rows]
        anchor_BT = anchor_BTV.gather(2, picked).squeeze(2).masked_fill(~mask_BT, 0.0)
        with self._timed("reward"):
            scores = self.reward(
                RewardBatch(prompts=drawn.prompts.texts, completions=drawn.texts, num_tokens=drawn.num_tokens)
            )
        reward_B = np.array([float(value) for value in scores.total_B])
        return {
            "reward_GSE": np.moveaxis(reward_B.reshape(shape), 0, 2),
            "mask_GSET": arranged(mask_BT) > 0,
            "logp_GSEOT": arranged(logp_BOT),
            "anchor_GSET": arranged(anchor_BT),
            "kl_GSEOT": arranged(kl_BOT),
        }

    def _sample(self, places: range) -> Completions:
        texts = [self.prompts[place] for place in places] * len(self.etas)
        batch = encode_prompts(texts, self.policy.tokenizer, chat_template=False, device=self.policy.device)
        seeds = [row_seed("evaluate", 0, place, s) for place in places for s in range(self.samples)] * len(self.etas)
        with self._timed("sample"), self.bank.at(self.bank.table(self.mixes)):
            return sample(
                self.policy,
                batch.repeat(self.samples),
                seeds=seeds,
                max_new_tokens=self.max_new_tokens,
                temperature=self.temperature,
                keep_distributions=True,
            )

    def _neighbours(self, drawn: Completions, offset: int, count: int) -> tuple[slice, torch.Tensor]:
        """Return the rows whose model has one `offset` places along, and that one's logits for them."""
        per = count * self.samples
        first, last = max(0, -offset), min(len(self.etas), len(self.etas) - offset)
        rows = slice(first * per, last * per)
        table = self.bank.table(self.mixes[first + offset : last + offset])
        with self.bank.at(table):
            part = drawn.rows(rows.start, rows.stop)
            return rows, completion_logits(self.policy, part, temperature=self.temperature)

    def _timed(self, name: str) -> "_Timer":
        return _Timer(self.seconds, name)


class _Timer:
    """Adds the time of a block to an entry."""

    def __init__(self, seconds: dict[str, float], name: str) -> None:
        self.seconds, self.name = seconds, name

    def __enter__(self) -> None:
        self.start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.seconds[self.name] += time.perf_counter() - self.start


def _kl(logps_BTV: torch.Tensor, anchor_BTV: torch.Tensor) -> torch.Tensor:
    """KL over the vocabulary at each position, nats, float64 [B, T]."""
    terms = logps_BTV.exp() * (logps_BTV - anchor_BTV)
    return terms.sum(dim=2, dtype=torch.float64).clamp_min(0.0)
