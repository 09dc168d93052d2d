"""Trains and measures what a study describes and does not have yet, one piece at a time, until told to stop.

    WORKSPACE/studies/results.sqlite     points and their samples, the second judge's scores, likelihoods of texts
    WORKSPACE/studies/locks/HASH         held by the process that does a piece

Everything is stored under what it is the answer to, so studies share it, an interrupted one goes on where it was, and
several processes share the work.
"""

import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

import numpy as np
import torch
from filelock import FileLock, Timeout

from warp_core.evaluation.points import Evaluation, Point, Sample
from warp_core.evaluation.sweep import Ask, Sweep
from warp_core.policy.model import DTYPES, Policy, load_policy
from warp_core.rewards import RewardBatch, RewardSum, load_reward
from warp_core.studies.judge import judge_id, load_judge
from warp_core.studies.plan import Curve, Model, Rollout
from warp_core.studies.scales import Scale
from warp_core.studies.texts import harness_scores, has_harness, text_windows, window_nll
from warp_core.studies.trainings import Trainings
from warp_core.training.config import WarpConfig
from warp_core.training.measuring import evaluation_for, held_out_prompts
from warp_core.weights import (
    Checkpoint,
    Recipe,
    ResidentMerge,
    coefficients,
    compute_geometry,
    make_recipe,
    open_checkpoint,
)
from warp_core.workspace.hashing import sha256_file
from warp_core.workspace.paths import cache_root
from warp_core.workspace.results import Results

__all__ = ["Found", "Lab", "Piece"]

Kind = Literal["run", "point", "judge", "text"]
_TIMED = 20


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Something to do: a run to finish, a model to measure, its completions to judge, its text to score."""

    kind: Kind
    rollout: Rollout | None = None
    model: Model | None = None


@dataclass(frozen=True, kw_only=True)
class Found:
    """What is known of a model."""

    point: Point
    samples: tuple[Sample, ...]
    judge: tuple[float, ...] | None = None
    """The second judge's score of each sample."""
    text: dict[str, Any] | None = None
    """`nll`: nats per token of each window; `tasks`: accuracy of each task of the harness."""


class Lab:
    """The runs and results of a scale.

    Args:
        scale: the preset.
        root: folder of runs and results.
        device: where to train and measure.
        trainings: the runs.
    """

    def __init__(self, scale: Scale, *, root: Path, device: torch.device, trainings: Trainings) -> None:
        self.scale, self.root, self.device, self.trainings = scale, root, device, trainings
        root.mkdir(parents=True, exist_ok=True)
        self.store = Results(root / "results.sqlite")
        self._asks: dict[tuple[Any, ...], Ask] = {}
        self._recipes: dict[Model, Recipe] = {}
        self._sources: dict[tuple[Any, ...], tuple[Checkpoint, Checkpoint, list[Checkpoint]]] = {}
        self._sweep: tuple[object, Sweep] | None = None
        self._judge: RewardSum | None = None
        self._known: dict[tuple[Model, str], Found] = {}

    def pieces(self, curves: Sequence[Curve], config: WarpConfig) -> Iterator[Piece]:
        """Yield what is missing for some curves, in the order in which it can be done."""
        self._known.clear()  # another process may have judged since what this one has measured
        seen: set[tuple[Kind, Any]] = set()

        def new(kind: Kind, what: Any) -> bool:
            fresh = (kind, what) not in seen
            seen.add((kind, what))
            return fresh

        for curve in curves:
            for model in curve.models:
                for stage in model.policies:
                    for rollout in self.trainings.needed(stage.rollout):
                        if new("run", rollout) and not self.trainings.is_done(rollout):
                            yield Piece(kind="run", rollout=rollout)
                found = self.found(model, config)
                if found is None and new("point", model):
                    yield Piece(kind="point", model=model)
                if curve.judged and (found is None or found.judge is None) and new("judge", model):
                    yield Piece(kind="judge", model=model)
                if curve.texts and (found is None or found.text is None) and new("text", model):
                    yield Piece(kind="text", model=model)

    def do(self, piece: Piece, config: WarpConfig) -> bool:
        """Do one piece, unless another process is at it; `config` says how models are measured.

        Returns:
            Whether it is done: False where another process does it, or something that it needs.

        Raises:
            KeyboardInterrupt: the training was told to stop; its state is saved.
        """
        if not self._can_begin(piece, config):
            return False
        # The system frees the lock with the process, however that ends.
        lock = FileLock(self._lock_file(piece, config))
        try:
            lock.acquire(blocking=False)
        except Timeout:
            return False
        try:
            if piece.rollout is not None:
                self.trainings.finish(piece.rollout)
            elif piece.model is not None and not self._is_known(piece.kind, piece.model, config):
                {"point": self._measure, "judge": self._score, "text": self._read}[piece.kind](piece.model, config)
                self._forget(piece.model, config)
        finally:
            lock.release()
        return True

    def _can_begin(self, piece: Piece, config: WarpConfig) -> bool:
        if piece.rollout is not None:
            return all(self.trainings.is_done(before) for before in self.trainings.needed(piece.rollout)[:-1])
        assert piece.model is not None
        if piece.kind == "judge":
            return self.found(piece.model, config) is not None
        return all(self.trainings.is_done(stage.rollout) for stage in piece.model.policies)

    def _lock_file(self, piece: Piece, config: WarpConfig) -> Path:
        if piece.rollout is not None:
            what = f"{self.trainings.folder(piece.rollout).path.name}:{piece.rollout.iteration}:{piece.rollout.policy}"
        else:
            assert piece.model is not None
            what = f"{self._recipe(piece.model).id}:{self._ask(config).evaluation.id}"
        folder = self.root / "locks"
        folder.mkdir(exist_ok=True)
        return folder / hashlib.sha256(f"{piece.kind}:{what}".encode()).hexdigest()[:16]

    def _is_known(self, kind: Kind, model: Model, config: WarpConfig) -> bool:
        self._forget(model, config)
        found = self.found(model, config)
        return found is not None and {"point": found.point, "judge": found.judge, "text": found.text}[kind] is not None

    def _forget(self, model: Model, config: WarpConfig) -> None:
        self._known.pop((model, self._ask(config).evaluation.id), None)

    def close(self) -> None:
        """Close the store."""
        self._sweep = None
        self.store.close()

    def found(self, model: Model, config: WarpConfig) -> Found | None:
        """Return what is known of a model as measured by `config`; None before it is trained and measured."""
        if not all(self.trainings.is_done(stage.rollout) for stage in model.policies):
            return None
        evaluation = self._ask(config).evaluation.id
        if (model, evaluation) not in self._known:
            found = self._stored(model, evaluation)
            if found is None:
                return None
            self._known[model, evaluation] = found
        return self._known[model, evaluation]

    def _stored(self, model: Model, evaluation: str) -> Found | None:
        recipe = self._recipe(model)
        key = f"{recipe.id}:{evaluation}"
        point = self.store.get_point(key)
        if point is None:
            return None
        judge = self.store.samples(self._judge_key(key))
        text = self.store.get_point(self._text_key(recipe))
        return Found(
            point=Point.from_json(point),
            samples=tuple(Sample.from_json(sample) for sample in self.store.samples(key)),
            judge=tuple(float(sample["score"]) for sample in judge) or None,
            text=text,
        )

    def checkpoints(self, model: Model) -> tuple[Checkpoint, Checkpoint, list[Checkpoint]]:
        """Open the SFT policy, the init and the policies of a model whose runs are done."""
        key = model.policies
        if key not in self._sources:
            first = model.policies[0].rollout
            sft = open_checkpoint(self.trainings.sft_folder(first.config))
            policies = [self.trainings.open(stage) for stage in model.policies]
            self._sources[key] = (sft, self.trainings.init(first), policies)
        return self._sources[key]

    def _recipe(self, model: Model) -> Recipe:
        if model not in self._recipes:
            sft, init, policies = self.checkpoints(model)
            towards = None if model.to_init or init.id == sft.id else sft
            self._recipes[model] = make_recipe(
                init, policies, method=model.method, weights=model.weights, eta=model.eta, towards=towards
            )
        return self._recipes[model]

    def _ask(self, config: WarpConfig) -> Ask:
        key = (config.model, config.reward, config.prompts, config.training, config.evaluation)
        if key not in self._asks:
            prompts = held_out_prompts(config.prompts.evaluation, config)
            reward = load_reward(config.reward.terms, device=str(self.device))
            folder = self.trainings.sft_folder(config)
            sft = open_checkpoint(folder)
            evaluation: Evaluation = evaluation_for(config, prompts, reward, anchor=sft.id, sft=folder)
            size = config.evaluation.batch_size
            self._asks[key] = Ask(prompts=prompts, reward=reward, evaluation=evaluation, batch_size=size)
        return self._asks[key]

    def _measure(self, model: Model, config: WarpConfig) -> None:
        ask, key = self._ask(config), (model.policies, config.training.max_new_tokens)
        if self._sweep is None or self._sweep[0] != key:
            self._sweep = None  # before the next one is loaded: two models need not be in memory
            sft, init, policies = self.checkpoints(model)
            sweep = Sweep(sft=sft, init=init, policies=policies, ask=ask, store=self.store, device=self.device)
            self._sweep = (key, sweep)
        started = time.monotonic()
        self._sweep[1].point(self._recipe(model))
        self.store.put_point(self._timing_key, {"seconds": [*self._timing(), time.monotonic() - started][-_TIMED:]})

    @property
    def _timing_key(self) -> str:
        return f"timing:{self.scale.name}:point"

    def _timing(self) -> list[float]:
        return list((self.store.get_point(self._timing_key) or {"seconds": []})["seconds"])

    def point_seconds(self) -> float:
        """Return what a point took lately, in whatever session, or the preset's guess."""
        return median(self._timing() or [self.scale.point_guess_s])

    def _score(self, model: Model, config: WarpConfig) -> None:
        key = f"{self._recipe(model).id}:{self._ask(config).evaluation.id}"
        samples = [Sample.from_json(sample) for sample in self.store.samples(key)]
        if self._judge is None:
            self._judge = load_judge(self.scale.judge, device=str(self.device))
        batch = RewardBatch(
            prompts=tuple(sample.prompt for sample in samples),
            completions=tuple(sample.completion for sample in samples),
            num_tokens=tuple(sample.num_tokens for sample in samples),
        )
        scores = [float(score) for score in self._judge(batch).total_B]
        about = {"kind": "judge", "judge": self.scale.judge, "of": key, "score": float(np.mean(scores))}
        self.store.put_point(self._judge_key(key), about, [{"score": score} for score in scores])

    def _judge_key(self, point_key: str) -> str:
        return f"{point_key}:judge:{judge_id(self.scale.judge)}"

    def _text_key(self, recipe: Recipe) -> str:
        scale = self.scale
        text = "none" if scale.text is None else sha256_file(scale.text)[:16]
        return f"{recipe.id}:text:{text}:{scale.text_windows}x{scale.window_tokens}:{scale.config.model.dtype}"

    def _read(self, model: Model, config: WarpConfig) -> None:
        """Score the held-out text, and the harness's tasks where it is installed."""
        scale, policy = self.scale, self.merged(model, config)
        assert scale.text is not None, "the command asks for a text first"
        ids_WT = text_windows(policy, scale.text, count=scale.text_windows, length=scale.window_tokens)
        found: dict[str, Any] = {"kind": "text", "text": scale.text.name, "nll": window_nll(policy, ids_WT)}
        found["tasks"] = harness_scores(policy, scale.harness_tasks) if scale.harness_tasks and has_harness() else {}
        self.store.put_point(self._text_key(self._recipe(model)), found)

    def merged(self, model: Model, config: WarpConfig) -> Policy:
        """Return a model in memory."""
        self._sweep = None
        sft, init, policies = self.checkpoints(model)
        recipe = self._recipe(model)
        policy = load_policy(sft.path, device=self.device, dtype=DTYPES[config.model.dtype])
        towards = None if recipe.towards is None else sft
        resident = ResidentMerge(policy.model, init=init, policies=policies, towards=towards)
        geometry = compute_geometry(init, policies, cache_dir=cache_root() / "geometry")
        resident.move(coefficients(recipe, geometry))
        return policy
