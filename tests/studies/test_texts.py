"""Likelihood of held-out text by hand, and the harness where it is installed."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from tests.tiny import make_model
from warp_core.errors import ConfigError
from warp_core.policy.model import load_policy
from warp_core.studies.texts import harness_scores, has_harness, text_windows, window_nll


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return load_policy(make_model("llama", tmp_path_factory.mktemp("texts") / "init"))


def test_windows_are_spread_over_the_text_without_overlap(policy, tmp_path):
    (tmp_path / "text").write_text("abcdefghijklmnopqrst")  # 20 bytes, a token each
    ids = text_windows(policy, tmp_path / "text", count=3, length=4)
    assert [bytes(row.tolist()).decode() for row in _bytes_of(policy, ids)] == ["abcd", "ghij", "mnop"]
    assert len(text_windows(policy, tmp_path / "text", count=99, length=4)) == 5


def _bytes_of(policy, ids):
    return [torch.tensor(list(policy.tokenizer.decode(row).encode())) for row in ids]


def test_the_likelihood_is_that_of_every_token_but_the_first(policy):
    ids = torch.randint(0, 256, (3, 7), generator=torch.Generator().manual_seed(0))
    found = window_nll(policy, ids)
    with torch.no_grad():
        logp = policy.model(ids).logits.log_softmax(dim=-1)
    for row in range(3):
        by_hand = -sum(float(logp[row, t, ids[row, t + 1]]) for t in range(6)) / 6
        assert found[row] == pytest.approx(by_hand, rel=1e-5)


def test_a_text_that_is_too_short_or_missing_is_named(policy, tmp_path):
    (tmp_path / "short").write_text("abc")
    with pytest.raises(ConfigError, match="3 tokens: it needs at least 4"):
        text_windows(policy, tmp_path / "short", count=3, length=4)
    with pytest.raises(ConfigError, match="nowhere"):
        text_windows(policy, tmp_path / "nowhere", count=3, length=4)


def test_the_harness_is_asked_where_it_is_installed(policy, monkeypatch):
    asked = {}

    def evaluate(*, model, tasks):
        asked.update(model=model, tasks=tasks)
        return {"results": {task: {"acc,none": 0.25} for task in tasks}}

    package, models, huggingface = ModuleType("lm_eval"), ModuleType("models"), ModuleType("huggingface")
    package.simple_evaluate = evaluate
    huggingface.HFLM = lambda *, pretrained, tokenizer: SimpleNamespace(pretrained=pretrained)
    package.__spec__ = SimpleNamespace(name="lm_eval")
    for name, module in (("", package), (".models", models), (".models.huggingface", huggingface)):
        monkeypatch.setitem(sys.modules, f"lm_eval{name}", module)
    assert has_harness()
    assert harness_scores(policy, ("arc_easy",)) == {"arc_easy": 0.25}
    assert asked["tasks"] == ["arc_easy"]
    assert asked["model"].pretrained is policy.model
