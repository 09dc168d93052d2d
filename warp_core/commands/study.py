"""The command `study`: an experiment of the paper at the scale of this machine, in as many sittings as it takes."""

import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import warp_core
from warp_core.commands.answer import Answer
from warp_core.commands.progress import duration, say, show_training
from warp_core.commands.run import stop_on_signal
from warp_core.errors import ConfigError
from warp_core.policy.model import pick_device
from warp_core.studies.catalogue import NAMES, chosen_studies
from warp_core.studies.forecast import Forecast
from warp_core.studies.judge import judge_in_words
from warp_core.studies.lab import Lab
from warp_core.studies.outcome import Outcome, Study, gather, judge_claims
from warp_core.studies.report import read_documents, results_page, write_study
from warp_core.studies.scales import Scale, make_scale
from warp_core.studies.trainings import Trainings
from warp_core.training.policy_run import PolicyProgress
from warp_core.workspace.commit import commit_here
from warp_core.workspace.paths import workspace_root
from warp_core.workspace.publish import write_text_atomic

__all__ = ["study"]

_LOOK_EVERY_S = 2.0


def study(args: Namespace) -> Answer:
    """Run studies as far as the budget goes, then write what there is."""
    studies = chosen_studies(args.name)
    scale = make_scale(args.scale or _scale_here(), text=Path(args.text) if args.text else None, num_seeds=args.seeds)
    if scale.text is None and any(one.needs_text for one in studies):
        raise ConfigError("study benchmark needs held-out text for perplexities: add --text FILE")
    out, page = _places(args.out, scale)
    with stop_on_signal() as wished:
        sitting = _Sitting(budget_s=None if args.budget_minutes is None else 60 * args.budget_minutes, wished=wished)
        root = workspace_root() / "studies"
        device = pick_device()
        trainings = Trainings(root / "runs", device=device, hear=sitting.hear, should_stop=sitting.is_over)
        lab = Lab(scale, root=root, device=device, trainings=trainings)
        try:
            forecast = Forecast.of(studies, lab)
            say(f"scale {scale.name}: {forecast.in_words()}")
            if not args.plan:
                _work(studies, lab, sitting)
            documents = [] if args.plan else [_write(one, lab, out) for one in studies]
            left = Forecast.of(studies, lab)
        finally:
            lab.close()
    if documents:
        page.parent.mkdir(parents=True, exist_ok=True)
        write_text_atomic(page, results_page(read_documents(out), order=NAMES, folder=_between(page, out)))
    if sitting.was_interrupted:
        raise KeyboardInterrupt
    return _answer(documents, scale, left, out, page)


def _scale_here() -> str:
    return "gpu" if pick_device().type == "cuda" else "cpu"


def _places(out: str | None, scale: Scale) -> tuple[Path, Path]:
    """Return where studies go, and the page of results: docs/ by default, but for the smoke test of the machinery."""
    if out is not None:
        return Path(out), Path(out) / "results.md"
    if scale.name == "smoke":
        folder = workspace_root() / "studies" / "smoke"
        return folder, folder / "results.md"
    return Path("docs") / "studies", Path("docs") / "results.md"


def _between(page: Path, out: Path) -> str:
    """Return the folder of studies as the page sees it."""
    return out.name if page.parent == out.parent else "."


class _Sitting:
    """The time for one call: until the budget is spent, or somebody stops it."""

    def __init__(self, *, budget_s: float | None, wished: Callable[[], bool]) -> None:
        self._deadline = None if budget_s is None else time.monotonic() + budget_s
        self._wished = wished

    @property
    def was_interrupted(self) -> bool:
        """Whether a person stopped it."""
        return self._wished()

    def is_over(self) -> bool:
        """Whether to stop after what is being done."""
        return self._wished() or (self._deadline is not None and time.monotonic() >= self._deadline)

    def hear(self, progress: PolicyProgress) -> None:
        """Write a line per step."""
        show_training(progress, policies=progress.policy, iterations=progress.iteration)


def _work(studies: Sequence[Study], lab: Lab, sitting: _Sitting) -> None:
    """Do what is missing: all studies for the first seed, then for the next. What others are at is left to them."""
    while True:
        done = elsewhere = 0
        for seed in lab.scale.seeds:
            for one in studies:
                finished, busy = _work_on(one, seed, lab, sitting)
                if sitting.is_over():
                    return
                done, elsewhere = done + finished, elsewhere + busy
                if finished and not busy:
                    say(f"{one.name}, seed {seed}: complete")
        if not elsewhere:
            return
        if not done:
            time.sleep(_LOOK_EVERY_S)


def _work_on(one: Study, seed: int, lab: Lab, sitting: _Sitting) -> tuple[int, int]:
    """Do what is missing of a study for a seed; return how many pieces were done, and how many are left to others."""
    config = one.measured(lab.scale, seed)
    done = busy = 0
    for piece in lab.pieces(one.curves(lab.scale, seed), config):
        if sitting.is_over():
            break
        try:
            mine = lab.do(piece, config)
        except KeyboardInterrupt:
            if sitting.is_over():
                break  # the training has saved its state
            raise
        done, busy = done + mine, busy + (not mine)
        if mine and piece.kind == "run":
            say(f"{one.name}, seed {seed}: a run is finished")
    return done, busy


def _write(one: Study, lab: Lab, out: Path) -> dict[str, Any]:
    seeds = _seeds_begun(one, lab)
    evidence = gather(one, lab, seeds)
    missing = Forecast.of([one], lab, seeds=seeds).counts
    config = one.measured(lab.scale, seeds[0])
    about = {
        "scale": lab.scale.name,
        "seeds": list(seeds),
        "seeds_planned": list(lab.scale.seeds),
        "prompts": config.evaluation.prompts,
        "samples_per_prompt": config.evaluation.samples_per_prompt,
        "model": config.model.name if lab.scale.name != "smoke" else "tiny random model",
        "reward": list(config.reward.terms),
        "second_judge": judge_in_words(lab.scale.judge),
        "warp_core": warp_core.__version__,
        "commit": commit_here(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }
    claims, judge = one.claims(evidence), judge_claims(evidence)
    return write_study(
        Outcome(study=one, evidence=evidence, claims=claims, judge=judge, missing=missing, about=about), out
    )


def _seeds_begun(one: Study, lab: Lab) -> list[int]:
    """Return the seeds of which anything was measured, and the first in any case.

    A seed that was only begun counts as missing; more seeds that were not begun do not.
    """
    begun = []
    for seed in lab.scale.seeds:
        config = one.measured(lab.scale, seed)
        models = (model for curve in one.curves(lab.scale, seed) for model in curve.models)
        if any(lab.found(model, config) is not None for model in models):
            begun.append(seed)
    return begun or [lab.scale.seeds[0]]


def _answer(documents: Sequence[dict[str, Any]], scale: Scale, left: Forecast, out: Path, page: Path) -> Answer:
    document = {
        "scale": scale.name,
        "missing": left.counts,
        "left_s": round(left.seconds, 1),
        "out": str(out),
        "results": str(page) if documents else None,
        "studies": [
            {name: one[name] for name in ("study", "title", "complete", "verdict", "sentence", "seeds")}
            for one in documents
        ],
    }
    lines = [f"{one['study']}: {one['sentence']}" for one in documents]
    lines.append(f"missing: {left.in_words()}")
    if documents:
        lines.append(f"written: {out}, {page}")
    if any(left.counts.values()):
        lines.append(f"the same command goes on (about {duration(left.seconds)} left)")
    return Answer(document=document, text="\n".join(lines))
