"""One REINFORCE run with the KL to the policy's own EMA: stage 1 of WARP, Algorithm 1, lines 4-9.

`Learner.step` reads like the algorithm: sample, reward, anchor, return, gradient, Adam, EMA.

B completions a step, T completion tokens.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from warp_core.errors import DivergedError
from warp_core.policy.logprobs import token_logprobs
from warp_core.policy.prompts import encode_prompts
from warp_core.policy.sampling import Completions, row_seed, sample
from warp_core.rewards import RewardBatch, RewardScores, RewardSum
from warp_core.training.config import TrainingConfig
from warp_core.training.objective import advantages, ema_update, kl_regularised_return, reinforce_loss, warmup
from warp_core.training.state import RunState
from warp_core.training.trainable import Tensors, Trainable

__all__ = ["Learner", "StepRecord", "prompts_of_step"]


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """What one step found; means over the batch.

    Attributes:
        step: 1-based.
        kl_anchor: estimated KL to the anchor, nats per completion (mean log-ratio); None without an anchor (beta 0).
        entropy: estimated entropy of the policy, nats per token (mean of -log p of the sampled tokens).
        sampling_gap: largest |log p| difference, any token, between the sampler and the update: 0 but for rounding.
        seconds: of each part.
    """

    step: int
    reward: float
    rewards: dict[str, float]
    kl_anchor: float | None
    entropy: float
    length: float
    grad_norm: float
    learning_rate: float
    sampling_gap: float
    num_tokens: int
    seconds: dict[str, float]
    example: dict[str, str | float] = field(default_factory=dict)


def prompts_of_step(prompts: Sequence[str], *, step: int, count: int, seed: int) -> list[str]:
    """Return the `count` prompts of a 0-based step: an endless row of shuffled epochs, cut into batches.

    Epoch e is shuffled with row_seed("prompts", seed, e), so that any step can be found without those before it.
    """
    places = [divmod(place, len(prompts)) for place in range(step * count, (step + 1) * count)]
    orders = {
        epoch: torch.randperm(
            len(prompts), generator=torch.Generator().manual_seed(row_seed("prompts", seed, epoch))
        ).tolist()
        for epoch in {epoch for epoch, _ in places}
    }
    return [prompts[orders[epoch][offset]] for epoch, offset in places]


class Learner:
    """A policy, its EMA anchor and its optimizer, moved one step at a time.

    Args:
        trainable: the policy.
        prompts: training prompts.
        reward: what is maximised.
        config: the run's settings.
        chat_template: how prompts are rendered.
        seed: of this run; the order of prompts and every draw come from it.
    """

    def __init__(
        self,
        trainable: Trainable,
        *,
        prompts: Sequence[str],
        reward: RewardSum,
        config: TrainingConfig,
        chat_template: bool,
        seed: int,
    ) -> None:
        self.trainable, self.prompts, self.reward, self.config = trainable, prompts, reward, config
        self.chat_template, self.seed = chat_template, seed
        self.steps_done = 0
        # At step 0 the anchor is the init; a copy, because an alias would follow the policy. Empty where unused.
        moving = config.anchor == "ema" and config.beta > 0
        self.ema: Tensors = {name: t.detach().clone() for name, t in trainable.masters.items() if moving}
        self.optimizer = torch.optim.Adam(
            list(trainable.masters.values()), lr=config.learning_rate, betas=config.adam_betas, fused=True
        )

    def step(self) -> StepRecord:
        """Do one step of Algorithm 1.

        Raises:
            DivergedError: a loss or gradient is not finite; the weights have not been touched.
            RewardError: the reward misbehaved; the weights have not been touched.
        """
        config, trainable, seconds = self.config, self.trainable, dict[str, float]()

        # Line 6: y ~ pi_theta(.|x) for a batch of prompts.
        with _timed(seconds, "sampling", trainable.policy.device):
            completions = self._sample()
        # Line 7: r(x,y) - beta * (log pi_theta(y|x) - log pi_ema(y|x)).
        with _timed(seconds, "reward", trainable.policy.device):
            scores = self._rewards(completions)
        with _timed(seconds, "anchor", trainable.policy.device):
            anchor_logp_BT = self._anchor_logprobs(completions)
        return_B = kl_regularised_return(
            scores.total_B, completions.logp_BT.cpu(), anchor_logp_BT.cpu(), beta=config.beta
        )
        advantage_B = advantages(return_B, baseline=config.baseline, group_size=config.completions_per_prompt)
        # Line 8: the REINFORCE gradient with that whole quantity as the return, then Adam, then the EMA.
        with _timed(seconds, "update", trainable.policy.device):
            gap = self._accumulate_gradient(completions, advantage_B)
            rate = config.learning_rate * warmup(self.steps_done, warmup_steps=config.warmup_steps)
            grad_norm = self._apply_gradient(rate)
            if self.ema:
                ema_update(list(self.ema.values()), list(trainable.masters.values()), mu=config.mu)
        self.steps_done += 1
        return self._record(completions, scores, anchor_logp_BT, seconds, grad_norm, rate, gap)

    def _sample(self) -> Completions:
        config, policy = self.config, self.trainable.policy
        texts = prompts_of_step(self.prompts, step=self.steps_done, count=config.prompts_per_step, seed=self.seed)
        batch = encode_prompts(texts, policy.tokenizer, chat_template=self.chat_template, device=policy.device)
        batch = batch.repeat(config.completions_per_prompt)
        seeds = [row_seed("train", self.seed, self.steps_done, row) for row in range(len(batch.texts))]
        with self.trainable.sampling():
            return sample(
                policy, batch, seeds=seeds, max_new_tokens=config.max_new_tokens, temperature=config.temperature
            )

    def _rewards(self, completions: Completions) -> RewardScores:
        return self.reward(
            RewardBatch(
                prompts=completions.prompts.texts, completions=completions.texts, num_tokens=completions.num_tokens
            )
        )

    @torch.no_grad()
    def _anchor_logprobs(self, completions: Completions) -> torch.Tensor:
        """Return logp_BT under the anchor; without a KL term nothing needs computing."""
        if self.config.beta == 0:
            return completions.logp_BT
        trainable = self.trainable
        where = trainable.at_anchor(self.ema) if self.config.anchor == "ema" else trainable.at_sft()
        with where:
            parts = [
                token_logprobs(trainable.policy, rows, temperature=self.config.temperature)
                for rows in self._micro_batches(completions)
            ]
        return torch.cat(parts)

    def _micro_batches(self, completions: Completions) -> Iterator[Completions]:
        total = len(completions.texts)
        size = self.config.micro_batch or total
        for start in range(0, total, size):
            yield completions.rows(start, start + size)

    def _accumulate_gradient(self, completions: Completions, advantage_B: torch.Tensor) -> float:
        """Backward through each micro-batch; return the largest log-probability difference to the sampler's."""
        total, start, gap = len(completions.texts), 0, 0.0
        self.optimizer.zero_grad(set_to_none=True)
        for rows in self._micro_batches(completions):
            logp_BT = token_logprobs(self.trainable.policy, rows, temperature=self.config.temperature)
            advantage = advantage_B[start : start + len(rows.texts)].to(logp_BT.device)
            loss = reinforce_loss(logp_BT, advantage, total=total)
            if not torch.isfinite(loss):
                raise DivergedError(
                    f"step {self.steps_done + 1}: the loss is {loss.item()}; the weights were not changed"
                )
            torch.autograd.backward(loss)
            gap = max(gap, float((logp_BT.detach() - rows.logp_BT).abs().max()))
            start += len(rows.texts)
        return gap

    def _apply_gradient(self, rate: float) -> float:
        masters = list(self.trainable.masters.values())
        for master in masters:
            # A weight that no token went through: Adam would skip it, and count its steps apart from the run's.
            if master.grad is None:
                master.grad = torch.zeros_like(master)
        total = torch.nn.utils.get_total_norm([master.grad for master in masters if master.grad is not None])
        norm = float(total)
        if norm != norm or norm == float("inf"):
            raise DivergedError(
                f"step {self.steps_done + 1}: the gradient's norm is {norm}; the weights were not changed"
            )
        if norm > self.config.max_grad_norm:
            torch.nn.utils.clip_grads_with_norm_(masters, self.config.max_grad_norm, total)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.trainable.spread_masters()
        return norm

    def _record(
        self,
        completions: Completions,
        scores: RewardScores,
        anchor_logp_BT: torch.Tensor,
        seconds: dict[str, float],
        grad_norm: float,
        rate: float,
        gap: float,
    ) -> StepRecord:
        num_tokens = sum(completions.num_tokens)
        total = len(completions.texts)
        log_ratio = float((completions.logp_BT.double() - anchor_logp_BT.double()).sum())
        return StepRecord(
            step=self.steps_done,
            reward=float(scores.total_B.mean()),
            rewards={name: float(part_B.mean()) for name, part_B in scores.parts.items()},
            kl_anchor=log_ratio / total if self.config.beta > 0 else None,
            entropy=-float(completions.logp_BT.double().sum()) / num_tokens,
            length=num_tokens / total,
            grad_norm=grad_norm,
            learning_rate=rate,
            sampling_gap=gap,
            num_tokens=num_tokens,
            seconds={name: round(value, 4) for name, value in seconds.items()},
            example={
                "prompt": completions.prompts.texts[0],
                "completion": completions.texts[0],
                "reward": float(scores.total_B[0]),
            },
        )

    def state(self, fingerprint: str) -> RunState:
        """Return what a resume needs. The tensors are the live ones: save before the next step.

        Raises:
            DivergedError: a weight, its EMA or a moment of Adam is not finite, so that the last good state stays.
        """
        masters = self.trainable.masters
        moments = {name: self.optimizer.state[tensor] for name, tensor in masters.items() if self.optimizer.state}
        exp_avg = {name: moment["exp_avg"] for name, moment in moments.items()}
        exp_avg_sq = {name: moment["exp_avg_sq"] for name, moment in moments.items()}
        parts = {"weight": masters, "EMA of": self.ema, "exp_avg of": exp_avg, "exp_avg_sq of": exp_avg_sq}
        for part, tensors in parts.items():
            for name, tensor in tensors.items():
                if not torch.isfinite(tensor).all():
                    raise DivergedError(
                        f"step {self.steps_done}: {part} {name} is not finite; the state before is kept"
                    )
        return RunState(
            step=self.steps_done,
            fingerprint=fingerprint,
            masters=dict(masters),
            ema=self.ema,
            exp_avg=exp_avg,
            exp_avg_sq=exp_avg_sq,
        )

    @torch.no_grad()
    def restore(self, state: RunState) -> None:
        """Continue from a saved state, EMA and Adam included."""
        self.steps_done = state.step
        for name, master in self.trainable.masters.items():
            master.copy_(state.masters[name])
            if self.ema:
                self.ema[name].copy_(state.ema[name])
            self.optimizer.state[master] = {
                "step": torch.tensor(float(state.step)),
                "exp_avg": state.exp_avg[name].to(master.device),
                "exp_avg_sq": state.exp_avg_sq[name].to(master.device),
            }
        self.trainable.spread_masters()


@contextmanager
def _timed(seconds: dict[str, float], part: str, device: torch.device) -> Iterator[None]:
    start = time.perf_counter()
    yield
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    seconds[part] = time.perf_counter() - start
