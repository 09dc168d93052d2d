"""Score stored completions with another reward than they were measured with: a judge beside the human votes."""

from typing import Any

from warp_core.rewards import RewardBatch
from warp_core.service.documents import JudgeReport
from warp_core.service.fronts import sample_rows
from warp_core.service.jobs import Context
from warp_core.service.library import Library
from warp_core.service.protocol import JudgeRequest

__all__ = ["judge"]

AT_ONCE = 32


def judge(library: Library, request: JudgeRequest, context: Context) -> dict[str, Any]:
    """Return a `JudgeReport` as JSON: the weighted sum of the terms for every completion of every point.

    Raises:
        RewardError: a term is unknown, or misbehaved.
        WorkspaceError: a point is not stored.
    """
    rows = {key: sample_rows(library, request.selection, key) for key in dict.fromkeys(request.keys)}
    context.say("loading the reward")
    reward = library.reward(request.reward)
    total, done = sum(map(len, rows.values())), 0
    scores: dict[str, tuple[float, ...]] = {}
    for key, samples in rows.items():
        found: list[float] = []
        for start in range(0, len(samples), AT_ONCE):
            context.checkpoint()
            some = samples[start : start + AT_ONCE]
            batch = RewardBatch(
                prompts=tuple(row.prompt for row in some),
                completions=tuple(row.completion for row in some),
                num_tokens=tuple(row.num_tokens for row in some),
            )
            found += reward(batch).total_B.tolist()
            done += len(some)
            context.progress(done, total, f"judging: {done} of {total} completions")
        scores[key] = tuple(found)
    return JudgeReport(judge=reward.name, scores=scores).model_dump(mode="json")
