"""Stored completions scored again: the numbers of the reward itself, in order, in parts, cancelled."""

import pytest

from tests.service.selections import TINY, Heard
from warp_core.errors import RewardError, WorkspaceError
from warp_core.rewards import RewardBatch, load_reward
from warp_core.service import judging
from warp_core.service.documents import JudgeReport
from warp_core.service.fronts import front_document, sample_rows
from warp_core.service.jobs import Cancelled
from warp_core.service.judging import judge
from warp_core.service.protocol import JudgeRequest


@pytest.fixture
def keys(library):
    return tuple(point.key for point in front_document(library, TINY).points if point.kind in ("sft", "policy"))


def asked(keys, *terms):
    return JudgeRequest(session="s", selection=TINY, keys=keys, reward=terms)


@pytest.mark.parametrize("at_once", [1, 4, 100])
def test_every_completion_of_every_point_is_scored(library, keys, monkeypatch, at_once):
    monkeypatch.setattr(judging, "AT_ONCE", at_once)
    heard = Heard()
    report = JudgeReport.model_validate(judge(library, asked(keys, "words:2", "uppercase"), heard))
    assert report.judge == "words:2 + uppercase"
    assert list(report.scores) == list(keys)
    reward = load_reward(["words:2", "uppercase"])
    for key in keys:
        rows = sample_rows(library, TINY, key)
        batch = RewardBatch(
            prompts=tuple(row.prompt for row in rows),
            completions=tuple(row.completion for row in rows),
            num_tokens=tuple(row.num_tokens for row in rows),
        )
        assert list(report.scores[key]) == reward(batch).total_B.tolist()
    assert heard.shares[-1] == 1.0


def test_the_reward_of_the_run_gives_the_stored_rewards(library, keys):
    config = library.config(TINY)
    found = judge(library, asked(keys, *config.reward.terms), Heard())
    for key in keys:
        assert found["scores"][key] == pytest.approx([row.reward for row in sample_rows(library, TINY, key)])


def test_mistakes(library, keys):
    with pytest.raises(WorkspaceError, match="measure it first"):
        judge(library, asked((*keys, "none"), "words"), Heard())
    with pytest.raises(RewardError, match="unknown reward"):
        judge(library, asked(keys, "wrods"), Heard())


def test_cancelled(library, keys):
    with pytest.raises(Cancelled):
        judge(library, asked(keys, "words"), Heard(patience=1))
