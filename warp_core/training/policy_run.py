"""One RL run of an iteration inside a run folder: resumable, measured on the way, published at the end."""

import dataclasses
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from warp_core.errors import WorkspaceError
from warp_core.evaluation.evaluate import Subject, measure
from warp_core.evaluation.points import Point, point_from_samples
from warp_core.policy.model import Policy, load_policy, pointed_at
from warp_core.policy.prompts import read_prompts
from warp_core.policy.sampling import row_seed
from warp_core.rewards import RewardSum, load_reward
from warp_core.training.config import WarpConfig, config_to_mapping
from warp_core.training.measuring import evaluation_for, held_out_prompts
from warp_core.training.reinforce import Learner, StepRecord
from warp_core.training.state import load_state, save_state
from warp_core.training.trainable import FullTrainable, LoraTrainable, Trainable
from warp_core.weights import AdapterFactors, open_checkpoint, read_adapter, write_adapter
from warp_core.weights.model_files import write_model_files
from warp_core.workspace.publish import publish_folder, recover_folder, write_json_atomic, write_text_atomic
from warp_core.workspace.reading import read_regular
from warp_core.workspace.runs import RunFolder
from warp_core.workspace.sources import resolve_model
from warp_core.workspace.store import ResultsStore

__all__ = ["PolicyProgress", "drop_state", "fingerprint_of", "train_policy"]

FULL_SAVE_EVERY = 25


@dataclasses.dataclass(frozen=True, kw_only=True)
class PolicyProgress:
    """Something that happened in a run: a step (`record`) or an evaluation (`point`)."""

    iteration: int
    policy: int
    step: int
    steps: int
    record: StepRecord | None = None
    point: Point | None = None


Hear = Callable[[PolicyProgress], None]


def fingerprint_of(config: WarpConfig) -> str:
    """Return a hash of the settings that decide what a run computes."""
    mapping = config_to_mapping(config)
    # How a front is measured afterwards, how often the state is saved, what is kept: nothing of it changes the weights.
    del mapping["evaluation"]
    for name in ("save_every", "keep_every", "keep_ema"):
        del mapping["training"][name]
    return hashlib.sha256(json.dumps(mapping, sort_keys=True).encode()).hexdigest()[:16]


def train_policy(
    run: RunFolder,
    config: WarpConfig,
    *,
    iteration: int,
    policy: int,
    device: torch.device,
    hear: Hear = lambda progress: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> None:
    """Train theta_policy of an iteration (both 1-based) from where it stands, and publish it.

    Raises:
        KeyboardInterrupt: `should_stop` said so; the state is saved.
        DivergedError: a number is not finite; the last saved state is intact.
        WorkspaceError: another process is training this policy.
    """
    if run.checkpoint(iteration, policy).is_dir():
        drop_state(run, iteration=iteration, policy=policy)
        return
    folder = run.policy(iteration, policy)
    folder.mkdir(parents=True, exist_ok=True)
    # The system frees the lock with the process, however that ends.
    lock = FileLock(folder / ".lock", blocking=False)
    try:
        with lock, _threads_of(run):
            if not run.checkpoint(iteration, policy).is_dir():
                _train_alone(run, config, iteration, policy, device, hear, should_stop)
    except Timeout as error:
        raise WorkspaceError(f"{folder} is being trained by another process: wait for it, or stop it") from error


@contextmanager
def _threads_of(run: RunFolder) -> Iterator[None]:
    """Compute with as many threads as the run began with, so that a resume is exact on this machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(int(run.about().get("threads", before)))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _train_alone(
    run: RunFolder,
    config: WarpConfig,
    iteration: int,
    policy: int,
    device: torch.device,
    hear: Hear,
    should_stop: Callable[[], bool],
) -> None:
    own = config.for_run(policy - 1)
    folder = run.policy(iteration, policy)
    reward = load_reward(own.reward.terms, device=str(device))
    trainable = _build(run, own, config, iteration=iteration, device=device)
    learner = Learner(
        trainable,
        prompts=read_prompts(str(run.prompts_file("train"))),
        reward=reward,
        config=own.training,
        chat_template=own.model.chat_template,
        seed=row_seed("run", own.training.seed, iteration, policy),
    )
    # The reward by its content: the same name may mean another model or function since the run was stopped.
    fingerprint = f"{fingerprint_of(own)}-{reward.id}"
    if (state := load_state(folder / "state", fingerprint=fingerprint)) is not None:
        learner.restore(state)
        del state  # as large as masters, EMA and Adam together
    steps = own.steps_in(iteration)
    log = _MetricsLog(folder / "metrics.jsonl", steps_done=learner.steps_done)
    shared = reward if own.reward == config.reward else load_reward(config.reward.terms, device=str(device))
    gauge = _Gauge(run, config, trainable, reward=shared, iteration=iteration, policy=policy)
    save_every = own.training.save_every or (1 if own.adapter.kind == "lora" else FULL_SAVE_EVERY)
    ended = log.ended or "steps"
    while learner.steps_done < steps and ended == "steps":
        record = learner.step()
        done = learner.steps_done
        at_end = done == steps
        point = gauge.measure(done) if at_end or _due(done, own.training.evaluate_every) else None
        if point is not None and point.kl >= own.training.kl_ceiling:
            ended = "kl-ceiling"
        log.write(record, point, ended=ended)
        # Before the state: a resume from this step does not come here again.
        _keep(run, learner, own, iteration=iteration, policy=policy, ended=at_end or ended != "steps")
        stopping = should_stop()
        if at_end or ended != "steps" or _due(done, save_every) or stopping:
            save_state(folder / "state", learner.state(fingerprint))
        hear(PolicyProgress(iteration=iteration, policy=policy, step=done, steps=steps, record=record, point=point))
        if stopping:
            raise KeyboardInterrupt
    # Before the checkpoint, because a run with a checkpoint is not opened again.
    write_json_atomic(folder / "summary.json", {"steps": learner.steps_done, "ended": ended})
    _publish(run.checkpoint(iteration, policy), trainable, own)
    drop_state(run, iteration=iteration, policy=policy)


def drop_state(run: RunFolder, *, iteration: int, policy: int) -> None:
    """Remove what a finished policy was resumed from, and what was left of that where the disk failed or a kill came.

    It is four times as large as what was trained, and of no more use. What cannot be removed stays.
    """
    folder = run.policy(iteration, policy) / "state"
    recover_folder(folder)
    shutil.rmtree(folder, ignore_errors=True)


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _build(run: RunFolder, own: WarpConfig, shared: WarpConfig, *, iteration: int, device: torch.device) -> Trainable:
    """Load the init of the iteration and make it trainable."""
    sft = resolve_model(own.model.name)
    dtype = torch.bfloat16 if own.model.dtype == "bfloat16" else torch.float32
    if own.adapter.kind == "full":
        init = sft if iteration == 1 else run.init(iteration)
        policy = load_policy(init, device=device, dtype=torch.float32)
        # Loaded in float32, so that the masters lose nothing of an earlier iteration's update.
        return FullTrainable(policy, dtype=dtype, sft_folder=lambda: sft, keep_sft=own.training.anchor == "sft")
    policy = load_policy(sft, device=device, dtype=dtype)
    frozen = None
    if iteration > 1:
        frozen = read_adapter(open_checkpoint(run.init(iteration), base=sft)).modules
    # Runs of an iteration share A, whatever their own seeds are.
    seed = row_seed("adapter", shared.training.seed, iteration)
    return LoraTrainable(policy, own.adapter, seed=seed, frozen=frozen)


def _keep(run: RunFolder, learner: Learner, own: WarpConfig, *, iteration: int, policy: int, ended: bool) -> None:
    """Publish the checkpoint of this step, and its EMA, where they are asked for; the last policy is the checkpoint."""
    step, trainable = learner.steps_done, learner.trainable
    due = _due(step, own.training.keep_every)
    kept = run.kept(iteration, policy, step)
    if due and not ended and not kept.is_dir():
        _publish(kept, trainable, own)
    kept = run.kept(iteration, policy, step, ema=True)
    if own.training.keep_ema and (due or ended) and learner.ema and not kept.is_dir():
        with trainable.at_anchor(learner.ema):
            _publish(kept, trainable, own, weights=learner.ema)


def _publish(
    checkpoint: Path, trainable: Trainable, own: WarpConfig, *, weights: dict[str, torch.Tensor] | None = None
) -> None:
    """Write the policy, or other masters of it: a PEFT folder, or a complete Hugging Face folder in float32.

    An adapter writes what its layers hold now, so the caller points them at `weights`.
    """
    sft = resolve_model(own.model.name)
    with publish_folder(checkpoint) as out:
        if isinstance(trainable, LoraTrainable):
            factors = AdapterFactors(modules=trainable.factors(), transposed=trainable.transposed)
            dtype = torch.bfloat16 if own.adapter.save_dtype == "bfloat16" else torch.float32
            write_adapter(factors, out, base_name=own.model.name, dtype=dtype)
        elif isinstance(trainable, FullTrainable):
            if weights is None:
                trainable.save(out)
            else:
                with pointed_at(trainable.policy.model, weights):
                    trainable.policy.model.save_pretrained(out)
            # Config, generation config and tokenizer are the SFT policy's own files.
            write_model_files(out, [open_checkpoint(sft)], dtype=torch.float32, kind="full")


class _MetricsLog:
    """metrics.jsonl, cut back to the step that a resume starts from."""

    def __init__(self, path: Path, *, steps_done: int) -> None:
        self.path = path
        kept: list[str] = []
        self.ended: str | None = None
        lines = read_regular(path, errors="replace").splitlines() if path.exists() else []
        for line in lines[:steps_done]:
            try:
                row = json.loads(line)
                if row["step"] != len(kept) + 1:
                    break
                self.ended = row["ended"]
            except (ValueError, LookupError, TypeError, RecursionError):
                break  # the line that a crash cut short, or one that was damaged since
            kept.append(line)
        write_text_atomic(path, "".join(f"{line}\n" for line in kept))

    def write(self, record: StepRecord, point: Point | None, *, ended: str) -> None:
        """Append one step."""
        row: dict[str, Any] = dataclasses.asdict(record) | {"ended": ended, "time": round(time.time(), 1)}
        if point is not None:
            row["evaluation"] = {
                name: getattr(point, name) for name in ("reward", "reward_se", "kl", "kl_se", "length", "n")
            }
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
                file.flush()
                os.fsync(file.fileno())  # before the state of this step, which a power cut must not find alone
        except OSError as error:
            why = error.strerror or str(error)
            raise WorkspaceError(f"{self.path}: cannot be written ({why}); mend that and resume the run") from error


class _Gauge:
    """Measures the policy in training on the held-out prompts, with the reward of the whole WARP run."""

    def __init__(
        self,
        run: RunFolder,
        config: WarpConfig,
        trainable: Trainable,
        *,
        reward: RewardSum,
        iteration: int,
        policy: int,
    ) -> None:
        self.run, self.config, self.trainable = run, config, trainable
        self.iteration, self.policy = iteration, policy
        self.prompts = held_out_prompts(str(run.prompts_file("evaluation")), config)
        self.reward = reward

    def measure(self, step: int) -> Point:
        """Return the point of this step, and store it with its samples."""
        config = self.config
        policy: Policy = self.trainable.policy
        evaluation = evaluation_for(
            config,
            self.prompts,
            self.reward,
            anchor=self.run.about()["sft"]["id"],
            sft=resolve_model(config.model.name),
            samples_per_prompt=config.evaluation.training_samples_per_prompt,
        )
        subject = Subject(policy=policy, measured=self.trainable.sampling, anchor=self.trainable.at_sft)
        with self.trainable.holding_sft():
            samples = measure(subject, self.prompts, self.reward, evaluation, batch_size=config.evaluation.batch_size)
        point = point_from_samples(
            samples,
            evaluation=evaluation,
            policy=f"iteration-{self.iteration}/policy-{self.policy}",
            kind="training",
            iteration=self.iteration,
            run=f"policy-{self.policy}",
            step=step,
        )
        with ResultsStore(self.run.results_file) as store:
            store.put_point(point.key, point.to_json(), [sample.to_json() for sample in samples])
        return point
