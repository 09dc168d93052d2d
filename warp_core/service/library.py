"""What a selection stands for: run folders, configurations, checkpoints, result files.

    library = Library()
    sources = library.sources(selection, 1)        # SFT policy, init, policies: opened once
    ask = library.ask(selection)                   # what `warp-core front` asks of every point

Every name in a selection comes from a request: a run's becomes a path only through `run_path`. Threads may share a
library.
"""

import hashlib
import math
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from warp_core.errors import CheckpointError, ConfigError, WorkspaceError
from warp_core.evaluation.sweep import Ask
from warp_core.policy.loading import open_all
from warp_core.policy.model import pick_device
from warp_core.policy.prompts import chosen_prompts, read_prompts
from warp_core.policy.room import require_room
from warp_core.rewards import RewardSum, load_reward
from warp_core.service.memo import Memo, stamp_of
from warp_core.service.places import full_weights
from warp_core.service.protocol import Place, Selection
from warp_core.training.config import EvaluationConfig, WarpConfig
from warp_core.training.measuring import evaluation_for, held_out_prompts, require_iteration
from warp_core.training.warp import Sources, run_config, sources_of
from warp_core.weights import Recipe, make_recipe
from warp_core.weights.checkpoints import require_unchanged
from warp_core.workspace.assets import assets_root
from warp_core.workspace.bundled import BUNDLED, bundled_run, is_bundled_run
from warp_core.workspace.paths import run_path, workspace_root
from warp_core.workspace.results import shared_results_file
from warp_core.workspace.runs import RunFolder, open_run
from warp_core.workspace.votes import VOTES_NAME

__all__ = ["Library"]

# How models that belong to no run are measured: as `warp-core front --init` does, on 32 of the bundled prompts.
LOOSE = WarpConfig(evaluation=EvaluationConfig(prompts=32, batch_size=32))
LOOSE_PROMPTS = "reviews-eval"
_ROUNDING = 2e-3  # of up to 16 weights with four decimals
_ALIKE = 1e-6
_KEPT = 16  # iterations whose checkpoints stay open, rewards that stay loaded


class Library:
    """Finds what selections name.

    Args:
        root: the workspace; None for `workspace_root()`.
        extra_runs: run folders elsewhere, known by their folder's name; they come before runs of the workspace.

    Attributes:
        root: the workspace.
        memo: what was read for this library and still holds.
    """

    def __init__(self, root: Path | None = None, *, extra_runs: Sequence[Path] = ()) -> None:
        self.root = (root or workspace_root()).absolute()
        shipped = assets_root() / BUNDLED
        # The shipped folder itself is never written to: under its name the workspace's copy is found.
        self._extra = {path.absolute().name: path.absolute() for path in extra_runs if path.resolve() != shipped}
        self._opening = threading.Lock()
        self._loading = threading.Lock()
        self._sources: dict[tuple[object, ...], tuple[Sources, tuple[object, ...]]] = {}
        self._rewards: dict[tuple[str, ...], RewardSum] = {}
        self.memo = Memo()

    def run_names(self) -> list[str]:
        """Return the names of all runs: those of the workspace, the bundled one, the extra ones."""
        names = {BUNDLED, *self._extra}
        for path in self.root.iterdir() if self.root.is_dir() else ():
            try:
                if (run_path(path.name, root=self.root) / "run.json").is_file():
                    names.add(path.name)
            except WorkspaceError:  # a folder in the making, or a link that leads elsewhere
                continue
        return sorted(names)

    def run_folder(self, name: str) -> RunFolder:
        """Return the folder of a run.

        Raises:
            WorkspaceError: the name is not safe or leads out of the workspace, or there is no such run.
        """
        if name in self._extra:
            return open_run(self._extra[name])
        if name == BUNDLED:
            return open_run(bundled_run(self.root))
        path = run_path(name, root=self.root)
        if not path.is_dir():
            raise WorkspaceError(f"no run {name!r} in {self.root}: choose one of {', '.join(self.run_names()[:8])}")
        return open_run(path)

    def is_bundled(self, name: str) -> bool:
        """Whether a run is the one that ships with the project."""
        return name == BUNDLED and name not in self._extra and is_bundled_run(self.run_folder(name).path)

    def run_of(self, selection: Selection) -> RunFolder | None:
        """Return the run of a selection; None where it names models.

        Raises:
            ConfigError: it names both, or neither.
            WorkspaceError: there is no such run.
        """
        if selection.run is not None:
            if selection.init is not None or selection.policies:
                raise ConfigError("selection: give a run, or an init and policies, not both")
            return self.run_folder(selection.run)
        if selection.init is None or not selection.policies:
            raise ConfigError("selection: give the name of a run, or an init and at least one policy")
        return None

    def config(self, selection: Selection) -> WarpConfig | None:
        """Return the configuration of a run; None where the selection is no run. Raises as `run_of` does."""
        run = self.run_of(selection)
        if run is None:
            return None
        key, stamp = ("config", selection.model_dump_json()), stamp_of([run.config_file])
        return self.memo.get(key, stamp, lambda: _config_of(run, selection))

    def measuring(self, selection: Selection) -> WarpConfig:
        """Return the configuration that says how points are measured; raises as `run_of` does."""
        return self.config(selection) or LOOSE

    def sources(self, selection: Selection, iteration: int) -> Sources:
        """Open the checkpoints of an iteration (1 where the selection is no run), once while their files stay the same.

        Raises:
            CheckpointError: a model is missing, unsafe or of another kind.
            EnvironmentProblem: a model has to be fetched and cannot be.
            WorkspaceError: there is no such run or iteration, or it is not finished.
        """
        known = self.opened(selection, iteration)
        if known is not None:
            return known  # without waiting for another selection that takes long to open
        run = self.run_of(selection)
        key = _key(run, selection, iteration)
        with self._opening:
            known = self.opened(selection, iteration) or self._open(run, selection, iteration)
            # Replaced as a whole: `opened` reads it without waiting for an opening that takes long.
            rest = [item for item in self._sources.items() if item[0] != key]
            self._sources = dict([*rest[1 - _KEPT :], (key, (known, _settings_of(known)))])
        return known

    def opened(self, selection: Selection, iteration: int) -> Sources | None:
        """Return the checkpoints where `sources` has opened them before and they are the same; quick, opens nothing."""
        known, settings = self._sources.get(_key(self.run_of(selection), selection, iteration), (None, ()))
        return known if known is not None and _is_unchanged(known) and _settings_of(known) == settings else None

    def _open(self, run: RunFolder | None, selection: Selection, iteration: int) -> Sources:
        if run is not None:
            config = _config_of(run, selection)
            require_iteration(run, config, iteration)
            return sources_of(run, config, iteration)
        if iteration != 1:
            raise WorkspaceError(f"iteration {iteration}: models that belong to no run have iteration 1 alone")
        init, policies = open_all(selection.init or "", selection.policies, base=selection.base)
        return Sources(sft=init.full, init=init, policies=policies)

    def store_path(self, selection: Selection) -> Path:
        """Return the results file: the run's, or the one of all models that belong to no run. Raises as `run_of`."""
        run = self.run_of(selection)
        return run.results_file if run else shared_results_file()

    def votes_path(self, selection: Selection) -> Path:
        """Return the votes file: the run's, or one of this set of models in the workspace. Raises as `run_of`."""
        run = self.run_of(selection)
        if run:
            return run.path / VOTES_NAME
        return self.root / "votes" / f"{hashlib.sha256(selection.model_dump_json().encode()).hexdigest()[:16]}.sqlite"

    def prompts(self, selection: Selection) -> list[str]:
        """Return the held-out prompts of a run, or the bundled ones.

        Raises:
            PromptError: the file is missing or empty; otherwise as `run_of`.
        """
        return list(read_prompts(_prompts_file(self.run_of(selection))))

    def reward(self, terms: Sequence[str]) -> RewardSum:
        """Load a reward, once: a reward model that changes on disk is seen after a restart.

        Raises:
            RewardError: a term is unknown or not usable.
        """
        key = tuple(terms)
        with self._loading:
            if key not in self._rewards:
                self._rewards[key] = load_reward(key, device=str(pick_device()))
            for oldest in list(self._rewards)[:-_KEPT]:
                del self._rewards[oldest]
            return self._rewards[key]

    def ask(
        self,
        selection: Selection,
        *,
        iteration: int = 1,
        num_prompts: int | None = None,
        samples_per_prompt: int | None = None,
        reward: Sequence[str] = (),
    ) -> Ask:
        """Return what a measurement asks; without further arguments what `warp-core front` asks, under the same id.

        Args:
            selection: the models; a run's configuration says how they are measured.
            iteration: of the run.
            num_prompts: the first so many of the prompts.
            samples_per_prompt: completions of each.
            reward: reward terms in place of the run's, or of sentiment.

        Raises:
            PromptError: fewer prompts than asked for.
            ConfigError: prompt and completion are longer than the model's context.
            RewardError: a reward term is not usable; otherwise as `sources`.
        """
        config, run = self.measuring(selection), self.run_of(selection)
        sft = self.sources(selection, iteration).sft
        if num_prompts is not None:
            prompts = chosen_prompts(_prompts_file(run), num_prompts)
        else:
            prompts = held_out_prompts(_prompts_file(run), config)
        chat, length = config.model.chat_template, config.training.max_new_tokens
        require_room(sft, prompts, chat_template=chat, max_new_tokens=length)
        scored = self.reward(reward or config.reward.terms)
        evaluation = evaluation_for(
            config, prompts, scored, anchor=sft.id, sft=sft.path, samples_per_prompt=samples_per_prompt
        )
        return Ask(prompts=prompts, reward=scored, evaluation=evaluation, batch_size=config.evaluation.batch_size)

    def recipe(self, selection: Selection, place: Place) -> Recipe:
        """Return the merged model at a place, with the granularity of the run.

        Raises:
            RecipeError: the weights do not fit the number of policies, or do not add up to 1; otherwise as `sources`.
        """
        sources = self.sources(selection, place.iteration)
        # In iteration 1 there is one start, also where models were given and their init is an adapter.
        to_init = place.towards == "init" and place.iteration > 1
        return make_recipe(
            sources.init,
            sources.policies,
            method=place.method,
            weights=_exact(full_weights(place, len(sources.policies))),
            eta=place.eta,
            granularity=self.measuring(selection).merge.granularity,
            towards=None if to_init else sources.towards,
        )


def _exact(weights: Sequence[float]) -> tuple[float, ...]:
    """Undo the rounding of weights in a link, so that a model has one recipe however its place was written."""
    total = math.fsum(weights)
    if abs(total - 1.0) > _ROUNDING:
        return tuple(weights)  # which no recipe takes
    if max(weights) - min(weights) <= _ALIKE:
        return (1 / len(weights),) * len(weights)
    return tuple(weights) if abs(total - 1.0) <= _ALIKE else tuple(weight / total for weight in weights)


def _config_of(run: RunFolder, selection: Selection) -> WarpConfig:
    config = run_config(run)
    return replace(config, model=replace(config.model, name=selection.base)) if selection.base else config


def _prompts_file(run: RunFolder | None) -> str:
    return str(run.prompts_file("evaluation")) if run else LOOSE_PROMPTS


def _key(run: RunFolder | None, selection: Selection, iteration: int) -> tuple[object, ...]:
    stamp = run.config_file.stat().st_mtime_ns if run else 0
    return (selection.model_dump_json(), iteration, stamp)


def _settings_of(sources: Sources) -> tuple[object, ...]:
    """Return what tells whether the configurations of checkpoints are the same: another one is another model."""
    found: list[object] = []
    for folder in sorted(
        {one.path for each in (sources.sft, sources.init, *sources.policies) for one in (each, each.full)}
    ):
        for name in ("config.json", "adapter_config.json"):
            with suppress(OSError):
                status = (folder / name).stat()
                found.append((folder, name, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns))
    return tuple(found)


def _is_unchanged(sources: Sources) -> bool:
    try:
        require_unchanged([sources.sft, sources.init, *sources.policies])
    except CheckpointError:
        return False
    return True
