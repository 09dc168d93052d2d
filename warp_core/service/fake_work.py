"""What the jobs of `FakeEngine` produce: token buffers, reports, scores."""

from collections.abc import Mapping, Sequence
from typing import Any

from warp_core.service import protocol as p
from warp_core.service.documents import CheckedModel, CheckReport, ExportReport, JudgeReport, SampleRow
from warp_core.service.fake_data import World, noise
from warp_core.service.fake_jobs import FakeJob
from warp_core.service.fake_text import PROMPTS, completion
from warp_core.service.places import place_label, place_text

__all__ = ["judge_scores", "preview_panes", "reports", "title_of"]

PARAMS = 134_515_008
STAGES = 4
"""Ticks of a preview that are no sampling: merging, two of scoring, done."""


def title_of(request: p.JobRequest) -> str:
    """The job in words."""
    if isinstance(request, p.PreviewRequest):
        return f"Sample from {len(request.panes)} models"
    if isinstance(request, p.MeasureRequest):
        places = request.places
        return f"Measure {place_label(places[0])}" if len(places) == 1 else f"Measure {len(places)} points"
    if isinstance(request, p.ExportRequest):
        return f"Export {place_label(request.place)} as {request.name}"
    return {"prepare": "Load the models", "check": "Check the checkpoints", "geometry": "Compute the geometry"}.get(
        request.kind, "Score the completions"
    )


def preview_panes(request: p.PreviewRequest, world: World, job: FakeJob, *, hostile: bool) -> tuple[p.Pane, ...]:
    """The token buffers after `job.done` of `job.ticks` steps: merging, sampling, scoring, done."""
    sampling = job.ticks - STAGES
    if job.done <= 1:
        state, words = "merging", 0
        job.message = "merging"
    elif job.done <= 1 + sampling:
        state, words = "sampling", request.max_new_tokens * (job.done - 1) // sampling
        job.message = "sampling"
        job.timings_s.setdefault("merged", 0.3)
        job.timings_s.setdefault("first_token", 0.4)
    else:
        state, words = ("done" if job.done >= job.ticks or not request.score else "scoring"), request.max_new_tokens
        job.message = "scoring"
        job.timings_s.setdefault("sampled", 0.9)
    return tuple(_pane(request, pane, world, state=state, words=words, hostile=hostile) for pane in request.panes)


def _pane(
    request: p.PreviewRequest, pane: p.PaneRequest, world: World, *, state: Any, words: int, hostile: bool
) -> p.Pane:
    metrics = world.metrics(pane.place)
    reward, kl = metrics["reward"].mean, metrics["kl"].mean
    prompt = f"hostile {request.prompt}" if hostile else request.prompt
    completions = []
    for index in range(request.num_completions if state != "merging" else 0):
        text = completion(prompt, seed=request.seed, index=index, distance=kl / 20, num_words=words)
        one = p.Completion(text=text, num_tokens=words, done=state in ("scoring", "done"))
        if state == "done" and request.score:
            spread = noise(f"{place_text(pane.place)}{request.prompt}{request.seed}{index}")
            scores = {"reward": reward + 0.5 * spread, "kl": max(0.0, kl * (1 + 0.2 * spread))}
            one = one.model_copy(
                update=scores | {"rewards": {"sentiment": scores["reward"] + 0.01 * words, "length": float(words)}}
            )
        completions.append(one)
    return p.Pane(id=pane.id, place=pane.place, state=state, completions=tuple(completions))


def judge_scores(request: p.JudgeRequest, rows: Mapping[str, Sequence[SampleRow]]) -> dict[str, Any]:
    """Scores that agree with the reward, roughly."""
    scores = {
        key: tuple(row.reward + 0.4 * noise(f"judge{key}{row.completion}") for row in found)
        for key, found in rows.items()
    }
    return JudgeReport(judge=" + ".join(request.reward), scores=scores).model_dump(mode="json")


def reports(request: p.JobRequest, world: World) -> dict[str, Any] | None:
    """The result of a check or an export; None for previews and preparations."""
    if isinstance(request, p.CheckRequest):
        return _check(request.selection, world).model_dump(mode="json")
    if isinstance(request, p.ExportRequest):
        return _export(request, world).model_dump(mode="json")
    return None


def _check(selection: p.Selection, world: World) -> CheckReport:
    names = selection.policies or tuple(f"policy-{m + 1}" for m in range(world.num_policies))
    init = CheckedModel(
        role="init",
        name=selection.init or "smollm2-135m",
        id="a" * 64,
        kind="full",
        num_params=PARAMS,
        size_bytes=4 * PARAMS,
        dtype="float32",
    )
    policies = [
        CheckedModel(
            role="policy",
            name=name,
            id=f"{index + 1:x}" * 64,
            kind="adapter",
            num_params=1_220_000,
            size_bytes=2_440_000,
            dtype="bfloat16",
        )
        for index, name in enumerate(names)
    ]
    problems = tuple(
        f"{name}: tensor model.layers.3.mlp.up_proj.weight has shape [1536, 576], the init's has [2048, 768]: choose "
        "checkpoints of one architecture"
        for name in names
        if "broken" in name
    )
    return CheckReport(
        ok=not problems,
        problems=problems,
        models=(init, *policies),
        needed_bytes=1_400_000_000,
        available_bytes=5 * 2**30,
        device="cpu",
    )


def _export(request: p.ExportRequest, world: World) -> ExportReport:
    out = f"/workspace/exports/{request.name}"
    files: tuple[str, ...] = ("config.json", "model.safetensors", "tokenizer.json", "warp_recipe.json", "README.md")
    if request.form == "adapter":
        files = ("adapter_config.json", "adapter_model.safetensors", "warp_recipe.json", "README.md")
    texts = [completion(prompt, seed=0, index=0, distance=0.5, num_words=16) for prompt in PROMPTS[:3]]
    load = f'AutoModelForCausalLM.from_pretrained("{out}")'
    return ExportReport(
        out=out,
        recipe=request.place.model_dump(mode="json") | {"policies": [f"{m}" * 64 for m in range(world.num_policies)]},
        num_params=PARAMS,
        size_bytes=PARAMS * (4 if request.dtype in (None, "float32") else 2),
        wall_s=1.9,
        files=files,
        verified=True if request.verify else None,
        max_difference=0.0 if request.verify else None,
        completions=tuple(zip(PROMPTS[:3], texts, texts, strict=True)) if request.verify else (),
        rounded=("float32", request.dtype) if request.dtype in ("bfloat16", "float16") else None,
        snippet_transformers=f"from transformers import AutoModelForCausalLM, AutoTokenizer\n\nmodel = {load}\n",
        snippet_vllm=f"vllm serve {out}",
    )
