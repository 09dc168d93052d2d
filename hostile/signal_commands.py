"""The commands that `signals` interrupts: how each starts and goes on, its stages, and what must be the same after."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from hostile.running_engine import Models
from hostile.running_stages import Ended
from tests.training.runs import metrics, stored_points, tiny_config
from warp_core.training.config import WarpConfig, config_to_toml
from warp_core.workspace.store import ResultsStore

STEP = "warp_core.training.reinforce.Learner.step"
SYNC = "warp_core.workspace.publish._sync"
TRAIN = {
    "before the run folder": ("warp_core.commands.run.require_usable", 1),
    "making the run folder": ("warp_core.training.warp.write_prompts", 1),
    "before the first step": ("warp_core.training.policy_run.load_policy", 1),
    "in the first step": ("warp_core.training.reinforce.reinforce_loss", 1),
    "in a later step": (STEP, 3),
    "evaluating": ("warp_core.training.policy_run.measure", 2),
    "storing a point": ("warp_core.training.policy_run.ResultsStore", 2),
    "before saving": ("warp_core.training.policy_run.save_state", 2),
    "in the middle of saving": ("warp_core.training.state.save_file", 2),
    "at the end of saving": (SYNC, 12),
    "publishing a policy": ("warp_core.training.policy_run.write_adapter", 1),
    "angles for the next init": ("warp_core.training.warp.compute_geometry", 1),
    "merging the next init": ("warp_core.weights.streamed.write_adapter", 1),
    "publishing the next init": ("warp_core.weights.streamed.write_card", 1),
    "in the second iteration": (STEP, 6),
}
TRAIN_TWICE = {
    "again before saving": [(STEP, 2), ("warp_core.training.policy_run.save_state", 1)],
    "again in the middle of saving": [(STEP, 2), ("warp_core.training.state.save_file", 1)],
    "again at the end of saving": [(STEP, 2), (SYNC, 3)],
    "again in the same step": [(STEP, 2), ("warp_core.training.reinforce.reinforce_loss", 1)],
    "a third one while clearing up": [(STEP, 2), (SYNC, 3), ("shutil.rmtree", 1)],
    "again while saying so": [(STEP, 2), ("warp_core.cli._fail", 1)],
}
MERGE = {
    "opening": ("warp_core.commands.models.make_recipe", 1),
    "reading": ("warp_core.weights.grams._gram_of_block", 3),
    "merging": ("warp_core.weights.tensor_io.ShardWriter.write", 5),
    "copying the other files": ("warp_core.weights.streamed.write_model_files", 1),
    "syncing": (SYNC, 3),
    "renaming": ("warp_core.workspace.publish._swap_in", 1),
    "after the rename": ("warp_core.workspace.publish._sync_after_rename", 1),
}
MERGE_TWICE = {
    "again while clearing up": [("warp_core.weights.streamed.write_model_files", 1), ("shutil.rmtree", 1)],
    "again while saying so": [("warp_core.weights.streamed.write_model_files", 1), ("warp_core.cli._fail", 1)],
}
EXPORT = {
    "opening the run": ("warp_core.training.warp.reopen", 1),
    "opening the models": ("warp_core.commands.models.make_recipe", 1),
    "reading": ("warp_core.commands.models.compute_geometry", 1),
    "merging": ("warp_core.weights.tensor_io.ShardWriter.write", 5),
    "copying the other files": ("warp_core.weights.streamed.write_model_files", 1),
    "writing the card": ("warp_core.weights.streamed.write_card", 1),
    "syncing": (SYNC, 3),
    "renaming": ("warp_core.workspace.publish._swap_in", 1),
    "after the rename": ("warp_core.workspace.publish._sync_after_rename", 1),
}
FRONT = {
    "loading": ("warp_core.evaluation.sweep.load_policy", 1),
    "sampling": ("warp_core.evaluation.sweep.measure_together", 1),
    "storing": ("warp_core.workspace.store.ResultsStore.put_point", 2),
    "shrinking the store": ("warp_core.workspace.sqlite.Database.compact", 1),
    "writing the page": ("warp_core.commands.front.write_front_html", 1),
}
FRONT_TWICE = {
    "again while closing the store": [
        ("warp_core.workspace.store.ResultsStore.put_point", 2),
        ("warp_core.workspace.sqlite.Database.compact", 1),
    ]
}
STUDY = {
    "making a run": ("warp_core.studies.trainings.prepare_run", 1),
    "in a step": (STEP, 2),
    "saving": ("warp_core.training.state.save_file", 1),
    "measuring": ("warp_core.evaluation.sweep.measure_together", 2),
    "storing": ("warp_core.workspace.store.ResultsStore.put_point", 2),
    "writing": ("warp_core.commands.study.write_study", 1),
}
EVALUATE = {
    "opening": ("warp_core.commands.measure.open_model", 2),
    "loading": ("warp_core.commands.measure.load_checkpoint", 1),
    "loading the anchor": ("warp_core.commands.measure.load_checkpoint", 2),
    "sampling": ("warp_core.evaluation.evaluate.sample", 1),
    "measuring the KL": ("warp_core.evaluation.evaluate.completion_kl", 1),
    "making the store": ("warp_core.workspace.sqlite.Database._switch_to_wal", 1),
    "storing": ("warp_core.workspace.store.ResultsStore.put_point", 1),
    "shrinking the store": ("warp_core.workspace.sqlite.Database.compact", 1),
}
SAMPLE = {
    "opening": ("warp_core.commands.measure.open_model", 1),
    "loading": ("warp_core.commands.measure.load_checkpoint", 1),
    "sampling": ("warp_core.commands.measure.draw", 1),
    "scoring": ("warp_core.commands.measure.load_reward", 1),
}
GEOMETRY = {
    "opening": ("warp_core.commands.models.open_all", 1),
    "reading": ("warp_core.weights.grams._gram_of_block", 3),
    "keeping the angles": ("warp_core.weights.grams.write_sealed", 1),
    "printing": ("warp_core.commands.models._geometry_table", 1),
}
DEMO = {
    "before the run folder": ("warp_core.commands.demo.require_usable", 1),
    "in a step": (STEP, 2),
    "saving": ("warp_core.training.state.save_file", 1),
    "loading for the front": ("warp_core.evaluation.sweep.load_policy", 1),
    "measuring": ("warp_core.evaluation.sweep.measure_together", 1),
    "storing": ("warp_core.workspace.store.ResultsStore.put_point", 3),
    "writing the numbers": ("warp_core.commands.demo.write_json_atomic", 1),
    "writing the page": ("warp_core.commands.demo.write_front_html", 1),
}
CHECK = {
    "reading": ("warp_core.weights.check._nonfinite", 1),
    "asking transformers": ("warp_core.weights.check._load_problems", 1),
}
DOCTOR = {"multiplying": ("warp_core.commands.doctor.product_gflops", 2)}
SERVE_UP, APP_UP = ("uvicorn.server.Server.main_loop", 1), ("warp_core.commands.supervise.Supervisor.watch", 1)
SERVE = {
    "before the token": [("warp_core.commands.serve.write_token", 1)],
    "after the token": [("warp_core.commands.serve.say", 1)],
    "before it listens": [("warp_core.commands.serve.create_app", 1)],
    "as it listens": [SERVE_UP],
    "again as it ends": [SERVE_UP, ("warp_core.service.waking.WakingEngine.close", 1)],
}
APP = {
    "before the engine": [("warp_core.commands.supervise._start", 1)],
    "between the two": [("warp_core.commands.supervise._start", 2)],
    "waiting": [("warp_core.commands.supervise.Supervisor.wait_until_ready", 1)],
    "both there": [APP_UP],
    "in a round": [("warp_core.commands.supervise.Supervisor.look_after", 5)],
}

Places = list[tuple[str, int]]
Where = dict[str, tuple[str, int]]


@dataclass(kw_only=True)
class Command:
    """A command of which every stage is attacked.

    Attributes:
        name: for people.
        start: its arguments, given the folder that it writes to.
        outcome: what must be the same at the end, given the folder and what was printed.
        again: the arguments that go on with what is there; None: the same ones.
        prepare: makes what it needs in the folder.
        makes: what it publishes in the folder, whole or not at all.
        expected: the outcome of a call that nobody has disturbed, once it is known.
    """

    name: str
    start: Callable[[Path], list[object]]
    outcome: Callable[[Path, Ended], object]
    again: Callable[[Path], list[object]] | None = None
    prepare: Callable[[Path], None] = lambda folder: None
    makes: tuple[str, ...] = ()
    expected: object = field(default=None)


def train_command(place: Path, models: Models, *, policies: int) -> Command:
    """A small training, which is resumed."""
    changes: dict[str, Any] = {
        "reward": {"terms": ["length"]},
        "training": {"steps": 2, "evaluate_every": 1, "warmup_steps": 0},
        "warp": {"policies": policies, "iterations": 2},
    }
    file, config = place / "run.toml", tiny_config(place, models.init, **changes)
    file.write_text(config_to_toml(config), encoding="utf-8")

    def again(folder: Path) -> list[object]:
        begun = (folder / "run" / "run.json").exists()
        return ["train", file, "--out", folder / "run", *(["--resume"] if begun else [])]

    return Command(
        name="train",
        start=lambda folder: ["train", file, "--out", folder / "run"],
        again=again,
        outcome=lambda folder, ended: _trained(folder / "run", config),
    )


def _trained(run: Path, config: WarpConfig) -> object:
    """Weights, metrics without clocks, points."""
    places = [
        (iteration, policy)
        for iteration in range(1, config.warp.iterations + 1)
        for policy in range(1, config.warp.policies + 1)
    ]
    return bytes_in(run, "*.safetensors"), [metrics(run, *one) for one in places], stored_points(run)


def merge_command(models: Models) -> Command:
    """A merge into a folder."""
    return _to_folder(
        "merge",
        lambda folder: [
            "merge", "--init", models.init, "--policies", *models.policies, "--eta", 0.4, "--out", folder / "out",
        ],
    )  # fmt: skip


def other_commands(place: Path, models: Models, run: Path) -> dict[str, tuple[Command, Where]]:
    """All the others that end by themselves, with their stages, by name; `run` is one that is trained by then."""
    return {
        "export": (_export_command(run), EXPORT),
        "evaluate": (_evaluate_command(place, models), EVALUATE),
        "sample": (_sample_command(models), SAMPLE),
        "geometry": (_geometry_command(models), GEOMETRY),
        "front": (_front_command(run), FRONT),
        "demo": (_demo_command(models), DEMO),
        "study": (_study_command(), STUDY),
        "check": (_check_command(models), CHECK),
        "doctor": (_doctor_command(), DOCTOR),
    }


def _export_command(run: Path) -> Command:
    return _to_folder("export", lambda folder: ["export", run, "--eta", 0.5, "--out", folder / "out"])


def _to_folder(name: str, start: Callable[[Path], list[object]]) -> Command:
    """A command that publishes the folder `out`; a signal after the rename leaves it there, and it must be whole."""
    return Command(
        name=name,
        start=start,
        again=lambda folder: ["check", folder / "out"] if (folder / "out").exists() else start(folder),
        outcome=lambda folder, ended: bytes_in(folder / "out"),
        makes=("out",),
    )


def _front_command(run: Path) -> Command:
    files = ("front.html", "front.csv")
    return Command(
        name="front",
        start=lambda folder: ["front", folder / "run", "--html", folder / files[0], "--csv", folder / files[1]],
        outcome=lambda folder, ended: (ended.out, [(folder / name).read_bytes() for name in files]),
        prepare=lambda folder: _copied(run, folder / "run"),
        makes=files,
    )


def _study_command() -> Command:
    def outcome(folder: Path, ended: Ended) -> object:
        """Weights and points; runs are called by a hash that holds the place of the model, and some rows are times."""
        studies = folder / "workspace" / "studies"
        weights = sorted(
            (name.partition("/")[2], digest) for name, digest in bytes_in(studies / "runs", "*.safetensors").items()
        )
        with ResultsStore(studies / "results.sqlite", read_only=True) as store:
            points = [point for point in store.list_points() if "reward" in point]
        numbers = ("kind", "method", "iteration", "n", "reward", "reward_se", "kl", "kl_se", "length")
        return weights, sorted(repr([point.get(name) for name in numbers]) for point in points)

    return Command(
        name="study",
        start=lambda folder: ["study", "slerp", "--scale", "smoke", "--seeds", 1, "--out", folder / "docs"],
        outcome=outcome,
    )


def _evaluate_command(place: Path, models: Models) -> Command:
    prompts = place / "prompts.txt"
    prompts.write_text("it is\nthe plot\n", encoding="ascii")
    options = ["--reward", "length", "--prompts", prompts, "--max-new-tokens", 6]
    return _printing("evaluate", ["evaluate", "--policy", models.policies[0], "--anchor", models.init, *options])


def _sample_command(models: Models) -> Command:
    options = ["--prompt", "it is", "--n", 3, "--reward", "length"]
    return _printing("sample", ["sample", "--policy", models.policies[0], *options])


def _geometry_command(models: Models) -> Command:
    return _printing("geometry", ["geometry", "--init", models.init, "--policies", *models.policies])


def _check_command(models: Models) -> Command:
    return _printing("check", ["check", models.policies[0], "--init", models.init])


def _doctor_command() -> Command:
    """What it measures differs each time; what it found of this machine does not."""
    start: list[object] = ["doctor", "--json"]
    return Command(
        name="doctor",
        start=lambda folder: start,
        outcome=lambda folder, ended: [json.loads(ended.out)[name] for name in ("warp_core", "python", "versions")],
    )


def _printing(name: str, start: list[object]) -> Command:
    """A command that only says something."""
    return Command(name=name, start=lambda folder: start, outcome=lambda folder, ended: ended.out)


def _demo_command(models: Models) -> Command:
    changes = {
        "model.name": f'"{models.init}"',
        "reward.terms": '["length"]',
        "training.steps": 2,
        "training.evaluate_every": 1,
        "training.prompts_per_step": 2,
        "training.completions_per_prompt": 2,
        "training.max_new_tokens": 4,
        "evaluation.prompts": 3,
        "evaluation.etas": "[0.0, 0.5]",
    }
    settings = [f"--set={name}={value}" for name, value in changes.items()]
    files = ("front.csv", "front.html", "front.json")
    return Command(
        name="demo",
        start=lambda folder: ["demo", "--headless", "--out", folder / "run", *settings],
        outcome=lambda folder, ended: (
            bytes_in(folder / "run", "*.safetensors"),
            {name: (folder / "run" / name).read_bytes() for name in files},
        ),
        makes=tuple(f"run/{name}" for name in files),
    )


def _copied(run: Path, to: Path) -> None:
    shutil.copytree(run, to)


def bytes_in(folder: Path, pattern: str = "*") -> dict[str, str]:
    """Digest of the files below a folder, by their paths; of a file itself where it is one."""
    files = [folder] if folder.is_file() else sorted(folder.rglob(pattern))
    return {str(file.relative_to(folder)): sha256(file.read_bytes()).hexdigest() for file in files if file.is_file()}
