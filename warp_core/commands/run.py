"""The command `train`: Algorithm 1 from a configuration file."""

import signal
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from warp_core.commands.answer import Answer
from warp_core.commands.checks import require_new_folder
from warp_core.commands.progress import Clock, duration, say, show_training
from warp_core.errors import ConfigError
from warp_core.policy.loading import open_model
from warp_core.policy.model import pick_device
from warp_core.policy.prompts import read_prompts
from warp_core.policy.room import require_room
from warp_core.rewards import load_reward
from warp_core.training.config import WarpConfig, load_config
from warp_core.training.policy_run import PolicyProgress
from warp_core.training.warp import train_warp
from warp_core.workspace.paths import require_run_name
from warp_core.workspace.runs import RunFolder

__all__ = ["require_usable", "stop_on_signal", "train", "train_with_progress"]


def train(args: Namespace) -> Answer:
    """Run Algorithm 1; a first Ctrl-C finishes the step and saves, a second one leaves at once."""
    config = load_config(Path(args.config), overrides=args.set)
    run = train_with_progress(config, Path(args.out), resume=args.resume)
    document = {
        "out": str(run.path),
        "iterations": run.finished_iterations(config.warp.policies),
        "policies": [
            str(run.checkpoint(iteration, policy))
            for iteration in range(1, config.warp.iterations + 1)
            for policy in range(1, config.warp.policies + 1)
        ],
    }
    return Answer(document=document, text=f"trained: {run.path}\nnow: warp-core front {run.path} --html front.html")


def require_usable(config: WarpConfig, out: Path) -> None:
    """Look for mistakes before there is a run folder that holds them: the place, the model, prompts and rewards.

    Raises:
        UserError: one of them is missing or unusable.
    """
    require_run_name(out)
    require_new_folder(out)
    sft = open_model(config.model.name)
    if sft.kind == "adapter":
        raise ConfigError(f"model.name: {config.model.name!r} is an adapter; merge it into a full model first")
    for source in (config.prompts.train, config.prompts.evaluation):
        require_room(
            sft,
            read_prompts(source),
            chat_template=config.model.chat_template,
            max_new_tokens=config.training.max_new_tokens,
        )
    for terms in {config.reward.terms, *(config.for_run(m).reward.terms for m in range(len(config.runs)))}:
        load_reward(terms, device=str(pick_device()))


def train_with_progress(config: WarpConfig, out: Path, *, resume: bool, clock: Clock | None = None) -> RunFolder:
    """Train with a line per step on stderr."""
    total = sum(config.steps_in(i) for i in range(1, config.warp.iterations + 1)) * config.warp.policies
    clock = clock or Clock({"step": total}, guess_s={"step": 10.0})

    def hear(progress: PolicyProgress) -> None:
        if clock.done["step"] == 0:
            # What an earlier session has done needs no time now.
            clock.todo["step"] -= _steps_before(config, progress) - 1
            # Nor do fetching, converting and loading come again for every step.
            clock.last = time.monotonic() - sum(progress.record.seconds.values() if progress.record else ())
        clock.did("step")
        show_training(
            progress,
            policies=config.warp.policies,
            iterations=config.warp.iterations,
            left=f"; about {duration(clock.left_s())} left",
        )

    if not RunFolder(out).about_file.exists():
        require_usable(config, out)
    with stop_on_signal() as should_stop:
        return train_warp(config, out, resume=resume, hear=hear, should_stop=should_stop)


def _steps_before(config: WarpConfig, progress: PolicyProgress) -> int:
    """Return how many steps of the whole run are done when `progress` is heard."""
    before = sum(config.steps_in(i) for i in range(1, progress.iteration)) * config.warp.policies
    return before + config.steps_in(progress.iteration) * (progress.policy - 1) + progress.step


@contextmanager
def stop_on_signal() -> Iterator[Callable[[], bool]]:
    """Turn the first SIGINT or SIGTERM into a wish to stop after the step; a second one interrupts at once."""
    wishes: list[int] = []

    def wish(number: int, frame: FrameType | None) -> None:
        if wishes:
            raise KeyboardInterrupt
        wishes.append(number)
        say("stopping after this step; what is done is kept (once more to stop at once)")

    before = {number: signal.signal(number, wish) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(wishes)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
