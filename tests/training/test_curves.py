"""Ten steps against Algorithm 1 written again on plain operations: dense weights, row by row, Adam by its formula."""

import pytest
import torch

from tests.tiny import load_model, make_model
from tests.training.helpers import copies, make_learner, reward_of
from warp_core.training.reinforce import Learner

STEPS, RATE, BETA, MU, TEMPERATURE, GROUP, CLIP = 10, 2e-3, 0.1, 0.25, 0.9, 3, 1.0


class Plain:
    """The same run on transformers' model, by `functional_call`; LoRA as dense weights W + s B A."""

    def __init__(self, folder, learner: Learner) -> None:
        self.model = load_model(folder)
        self.scale = {name: layer.scale for name, layer in getattr(learner.trainable, "layers", {}).items()}
        self.a = {name: layer.a_RI.detach().clone() for name, layer in getattr(learner.trainable, "layers", {}).items()}
        self.weights = {name: one.requires_grad_(True) for name, one in copies(learner.trainable.masters).items()}
        self.ema = copies(self.weights)
        self.first, self.second = ({name: torch.zeros_like(one) for name, one in self.ema.items()} for _ in range(2))
        self.steps = 0

    def parameters_of(self, masters):
        if not self.scale:
            return masters
        dense = dict(self.model.named_parameters())
        return {
            f"{name}.weight": dense[f"{name}.weight"] + scale * masters[f"{name}.b_OR"] @ self.a[name]
            for name, scale in self.scale.items()
        }

    def logps(self, masters, drawn) -> list[torch.Tensor]:
        parameters, found = self.parameters_of(masters), []
        for row in range(len(drawn.texts)):
            prompt = drawn.prompts.ids_BP[row][drawn.prompts.mask_BP[row].bool()]
            tokens = drawn.tokens_BT[row][drawn.mask_BT[row]]
            ids = torch.cat([prompt, tokens])[None]
            logits = torch.func.functional_call(self.model, parameters, (ids,)).logits[0] / TEMPERATURE
            found.append(logits.log_softmax(-1)[len(prompt) - 1 : -1].gather(1, tokens[:, None]).sum())
        return found

    def step(self, drawn) -> tuple[float, float]:
        """Return the norm of the gradient and the mean log-ratio to the anchor."""
        logps = self.logps(self.weights, drawn)
        with torch.no_grad():
            anchors = self.logps(self.ema, drawn)
        score = reward_of()._rewards[0].function
        texts = list(zip(drawn.prompts.texts, drawn.texts, strict=True))
        ratios = [float(one.detach() - other) for one, other in zip(logps, anchors, strict=True)]
        returns = [score(*pair) - BETA * ratio for pair, ratio in zip(texts, ratios, strict=True)]
        loss = torch.zeros(())
        for row, logp in enumerate(logps):
            group = [other for other in range(len(logps)) if other // GROUP == row // GROUP and other != row]
            loss = loss - (returns[row] - sum(returns[other] for other in group) / len(group)) * logp / len(logps)
        gradients = dict(zip(self.weights, torch.autograd.grad(loss, list(self.weights.values())), strict=True))
        norm = float(sum(one.square().sum() for one in gradients.values()) ** 0.5)
        self.steps += 1
        with torch.no_grad():
            for name, gradient in gradients.items():
                gradient = gradient * min(1.0, CLIP / norm)
                self.first[name].lerp_(gradient, 0.1)
                self.second[name].lerp_(gradient.square(), 0.001)
                mean, square = self.first[name] / (1 - 0.9**self.steps), self.second[name] / (1 - 0.999**self.steps)
                self.weights[name] -= RATE * mean / (square.sqrt() + 1e-8)
                self.ema[name].lerp_(self.weights[name], MU)
        return norm, sum(ratios) / len(ratios)


def learner_of(folder, kind: str, dtype: str = "float32") -> tuple[Learner, list]:
    learner = make_learner(folder, kind=kind, dtype=dtype, learning_rate=RATE, max_grad_norm=CLIP)
    drawn, inner = [], learner._sample

    def recorded():
        drawn.append(inner())
        return drawn[-1]

    learner._sample = recorded
    return learner, drawn


@pytest.mark.parametrize("family", ["llama", "gpt_neox"], ids=["fused", "general"])
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_float32_follows_the_plain_implementation(kind, family, tmp_path):
    folder = make_model(family, tmp_path / "m")
    learner, drawn = learner_of(folder, kind)
    plain, start = Plain(folder, learner), copies(learner.trainable.masters)
    for _ in range(STEPS):
        record = learner.step()
        norm, kl = plain.step(drawn[-1])
        assert record.grad_norm == pytest.approx(norm, rel=1e-4)
        assert record.kl_anchor == pytest.approx(kl, abs=2e-5)
    moved = max(float((plain.weights[name] - one).detach().abs().max()) for name, one in start.items())
    assert moved > 5e-3
    apart = {name: (master - plain.weights[name]).detach().abs() for name, master in learner.trainable.masters.items()}
    # Adam divides by the gradient's size: where that is rounding alone (a key's bias) a weight may go either way.
    assert sum(float(one.sum()) for one in apart.values()) / sum(one.numel() for one in apart.values()) < 1e-5
    assert max(float(one.max()) for one in apart.values()) < 3 * RATE
    assert all(float((one - plain.ema[name]).abs().max()) < 2 * RATE for name, one in learner.ema.items())


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_bfloat16_is_float32_up_to_its_rounding(kind, tmp_path):
    """On the same completions: gradients within 5 % of their norm, log-ratios within 0.1 nats of up to 5 tokens."""
    folder = make_model("llama", tmp_path / "m")
    low, drawn = learner_of(folder, kind, "bfloat16")
    plain = Plain(folder, low)
    for _ in range(STEPS):
        record = low.step()
        norm, kl = plain.step(drawn[-1])
        assert record.grad_norm == pytest.approx(norm, rel=0.05)
        assert record.kl_anchor == pytest.approx(kl, abs=0.1)
        for name, master in low.trainable.masters.items():
            plain.weights[name].data.copy_(master.detach())
            plain.ema[name].copy_(low.ema[name])
