"""Everything that holds JSON or TOML and is read: a finished run, models, caches, a study, a state."""

import json
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from tests import tiny
from tests.training.runs import tiny_config
from warp_core.commands.token_file import given_token
from warp_core.errors import WarpError
from warp_core.evaluation.points import Point, Sample
from warp_core.policy.model import load_policy
from warp_core.policy.prompts import read_prompts
from warp_core.policy.speech import speech_id
from warp_core.rewards.folders import check_model_folder
from warp_core.service.documents import GeometryDocument
from warp_core.service.engine import LocalEngine
from warp_core.service.fronts import front_document, prediction_document, sample_rows
from warp_core.service.geometry import compute, known_geometry
from warp_core.service.library import Library
from warp_core.service.protocol import SFT, GeometryRequest, Selection, Vote
from warp_core.service.runs import Runs
from warp_core.service.studies import read_studies
from warp_core.service.trainings import Trainings
from warp_core.studies.report import read_documents
from warp_core.training.config import kept_config
from warp_core.training.state import RunState, load_state, save_state
from warp_core.training.warp import run_config, sources_of, train_warp
from warp_core.weights import Geometry, Recipe, compute_geometry, make_recipe, open_checkpoint, read_adapter
from warp_core.weights.architecture import config_facts
from warp_core.workspace.bundled import bundled_run
from warp_core.workspace.publish import check_manifest, publish_folder
from warp_core.workspace.runs import RunFolder, open_run
from warp_core.workspace.votes import VotesStore

RUN = Selection(run="tiny")
Holds = Literal["typed", "same"]


@dataclass(frozen=True, kw_only=True)
class Target:
    """A file that is read.

    Attributes:
        name: what it is.
        file: where it lies; the first line only is damaged by hand where it has many.
        read: reads it, and returns what is compared.
        holds: "typed": an error in one line or an answer. "same": an error in one line, or the answer as if the file
            were sound or not there, because nothing else is right.
        heavy: reading takes long.
    """

    name: str
    file: Path
    read: Callable[[], Any]
    holds: Holds = "typed"
    heavy: bool = False


class _Heard:
    """A job's context that listens to nothing."""

    def say(self, message: str) -> None:
        pass

    def checkpoint(self) -> None:
        pass

    def progress(self, done: float, total: float, message: str = "") -> None:
        pass


class Scene:
    """A tiny finished run in a workspace, models, caches, a study, a state: all that holds JSON."""

    def __init__(self, root: Path) -> None:
        self.root, self.workspace, self.cache = root, root / "workspace", root / "own-cache"
        os.environ |= {"WARP_WORKSPACE": str(self.workspace), "WARP_CACHE": str(self.cache)}
        self.init = tiny.make_model("llama", root / "init")
        self.sharded = tiny.make_model("llama", root / "sharded", max_shard_size=30_000)
        self.adapters = [tiny.make_adapter(self.init, root / f"adapter{m}", seed=m) for m in range(2)]
        training = {"steps": 2, "evaluate_every": 1, "warmup_steps": 0, "learning_rate": 5e-2}
        config = tiny_config(root, self.init, warp={"policies": 2}, training=training)
        self.run = train_warp(config, self.workspace / "tiny", devices=[torch.device("cpu")])
        self.config = run_config(self.run)
        request = GeometryRequest(session="a", selection=RUN)
        compute(Library(self.workspace), request, _Heard())  # type: ignore[arg-type]
        with VotesStore(self.run.path / "votes.sqlite") as votes:
            vote = Vote(session="a", prompt="x", first=SFT, second=SFT, first_text="a", second_text="b", score=1.0)
            votes.put(vote.model_dump(mode="json"))

    def targets(self) -> Iterator[Target]:
        """Yield every file."""
        yield from self._run_targets()
        yield from self._model_targets()
        yield from self._other_targets()

    def _run_targets(self) -> Iterator[Target]:
        run = self.run
        yield Target(name="run.json", file=run.about_file, read=lambda: open_run(run.path).about()["format"])
        yield Target(name="run.json, listed", file=run.about_file, read=self._listed)
        yield Target(
            name="run.json, opened", file=run.about_file, read=lambda: len(sources_of(run, self.config, 1).policies)
        )
        yield Target(name="config.toml of a run", file=run.config_file, read=self._listed)
        metrics = run.policy(1, 1) / "metrics.jsonl"
        yield Target(name="metrics.jsonl", file=metrics, read=self._listed)
        for which in ("train", "evaluation"):
            file = run.prompts_file(which)
            yield Target(name=file.name, file=file, read=lambda file=file: read_prompts(str(file)))  # type: ignore[misc]
        stored = run.iteration(1) / "geometry.json"
        yield Target(name="geometry.json", file=stored, read=self._geometry, holds="same")
        yield Target(name="geometry.json, for predictions", file=stored, read=self._predicted)
        started = self.workspace / ".training" / "begun"
        started.mkdir(parents=True)
        (started / "config.toml").write_text(kept_config(self.config), encoding="utf-8")
        (started / "process.json").write_text(json.dumps({"pid": 2**22, "born": 1.0}), encoding="ascii")
        yield Target(name="process.json of a start", file=started / "process.json", read=self._listed)
        yield Target(name="config.toml of a start", file=started / "config.toml", read=self._listed)
        process = run.path / "process.json"
        process.write_text(json.dumps({"pid": 1}), encoding="ascii")
        yield Target(name="process.json of a run", file=process, read=lambda: self._trainer())

    def _trainer(self) -> Any:
        with self.run.held_for_training():
            # Written anew by who holds it: damage it again, as a reader finds it.
            return RunFolder(self.run.path).trainer() is None

    def _listed(self) -> Any:
        """What the page of runs shows."""
        library, trainings = Library(self.workspace), Trainings(self.workspace)
        runs = Runs(library, trainings)
        found = [(one.name, str(one.state)) for one in runs.summaries()]
        for name, _ in found:
            try:
                runs.detail(name)
                runs.curves(name)
            except WarpError:
                continue
        return found

    def _geometry(self) -> Any:
        request = GeometryRequest(session="a", selection=RUN)
        library = Library(self.workspace)
        known = known_geometry(library, RUN, 1)
        document = GeometryDocument.model_validate(compute(library, request, _Heard()))  # type: ignore[arg-type]
        if known is not None and known != document:
            return known
        return document

    def _predicted(self) -> Any:
        library = Library(self.workspace)
        return prediction_document(library, RUN, 1) is None, len(front_document(library, RUN).points)

    def _model_targets(self) -> Iterator[Target]:
        model, adapter = self.init, self.adapters[0]
        opened = lambda: open_checkpoint(model).arch  # noqa: E731
        yield Target(name="config.json", file=model / "config.json", read=opened)
        yield Target(
            name="tokenizer.json", file=model / "tokenizer.json", read=lambda: open_checkpoint(model).tokenizer
        )
        for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"):
            yield Target(name=f"{name}, loaded", file=model / name, read=lambda: _loaded(model), heavy=True)
        speech = model / "generation_config.json"
        yield Target(name="generation_config.json", file=speech, read=lambda: speech_id(model))
        index = self.sharded / "model.safetensors.index.json"
        whole = lambda: open_checkpoint(self.sharded).id  # noqa: E731
        yield Target(name="index", file=index, read=whole, holds="same")
        settings = adapter / "adapter_config.json"
        yield Target(
            name="adapter_config.json",
            file=settings,
            read=lambda: len(read_adapter(open_checkpoint(adapter, base=model)).modules),
        )
        reward = tiny.make_model("llama", self.root / "reward")
        checked = lambda: check_model_folder(reward, name="x")  # noqa: E731
        yield Target(name="config.json of a reward", file=reward / "config.json", read=checked)

    def _other_targets(self) -> Iterator[Target]:
        init = open_checkpoint(self.init)
        policies = [open_checkpoint(adapter, base=self.init) for adapter in self.adapters]
        kept = self.root / "grams"
        found: Callable[[], Any] = lambda: compute_geometry(init, policies, cache_dir=kept).to_json()  # noqa: E731
        found()
        yield Target(name="geometry cache", file=next(kept.iterdir()), read=found, holds="same")
        facts = self.root / "facts"
        config = dict(init.config)
        known: Callable[[], Any] = lambda: config_facts(config, path=self.init, cache_dir=facts)  # noqa: E731
        known()
        yield Target(name="config cache", file=next(facts.iterdir()), read=known, holds="same")
        whole = self.root / "published"
        with publish_folder(whole, manifest=True) as folder:
            (folder / "a.txt").write_text("a", encoding="ascii")
        yield Target(name="manifest.json", file=whole / "manifest.json", read=lambda: check_manifest(whole))
        state = self.root / "state"
        tensors = {"a": torch.ones(3)}
        save_state(state, RunState(step=3, fingerprint="f", masters=tensors, ema={}, exp_avg={}, exp_avg_sq={}))
        yield Target(
            name="state.json", file=state / "state.json", read=lambda: load_state(state, fingerprint="f") is None
        )
        studies = self.root / "studies"
        (studies / "slerp").mkdir(parents=True)
        (studies / "slerp" / "cpu.json").write_text(json.dumps(_study()), encoding="ascii")
        page = studies / "slerp" / "cpu.json"
        yield Target(name="study", file=page, read=lambda: len(read_studies([studies])))
        yield Target(name="study, for the page", file=page, read=lambda: len(read_documents(studies)))
        token = self.root / "token"
        token.write_text("secret-token\n", encoding="ascii")
        yield Target(name="token file", file=self._as_json(token), read=lambda: given_token(str(token)))
        copied = bundled_run(self.workspace)
        yield Target(name="run.json of the bundled run", file=copied / "run.json", read=self._listed)
        votes = self._row(self.run.path / "votes.sqlite", "votes", "vote")
        yield Target(name="a vote", file=votes, read=lambda: self._with_vote(votes))
        for name, column in (("points", "point"), ("samples", "sample")):
            file = self._row(self.run.results_file, name, column)
            read = partial(self._with_row, file, name, column)
            yield Target(name=f"a row of {name}", file=file, read=read)

    def _with_vote(self, file: Path) -> Any:
        text = file.read_bytes().decode("utf-8", errors="replace") if file.exists() else ""
        with sqlite3.connect(self.run.path / "votes.sqlite") as db:
            db.execute("UPDATE votes SET vote = ?", (text,))
        engine = LocalEngine()
        try:
            return len(engine.votes(RUN))
        finally:
            engine.close()

    def _as_json(self, file: Path) -> Path:
        """A token that is JSON as well, so that it can be damaged like the others."""
        file.write_text('"secret-token"', encoding="ascii")
        return file

    def _row(self, store: Path, table: str, column: str) -> Path:
        """One stored value as a file of its own, to be damaged there."""
        with sqlite3.connect(store) as db:
            (text,) = db.execute(f"SELECT {column} FROM {table} LIMIT 1").fetchone()
        file = self.root / f"{table}.json"
        file.write_text(text, encoding="utf-8")
        return file

    def _with_row(self, file: Path, table: str, column: str) -> Any:
        """Put the damaged value into a copy of the run's store, and read what the pages show."""
        text = file.read_bytes().decode("utf-8", errors="replace") if file.exists() else ""
        copy = self.workspace / "copy"
        if not copy.exists():
            shutil.copytree(self.run.path, copy)
        with sqlite3.connect(copy / "results.sqlite") as db:
            first = db.execute(f"SELECT MIN(rowid) FROM {table}").fetchone() if table == "points" else None
            where = f"rowid = {first[0]}" if first else "place = 0"
            db.execute(f"UPDATE {table} SET {column} = ? WHERE {where}", (text,))
        library, selection = Library(self.workspace), Selection(run="copy")
        document = front_document(library, selection)
        keys = [point.key for point in document.points]
        return [len(sample_rows(library, selection, key)) for key in keys[:1]]

    def values(self) -> Iterator[tuple[str, dict[str, Any], Callable[[Any], Any]]]:
        """Yield (name, a sound value, what reads it)."""
        init = open_checkpoint(self.init)
        policies = [open_checkpoint(adapter, base=self.init) for adapter in self.adapters]
        yield "recipe", make_recipe(init, policies).to_json(), Recipe.from_json
        yield "geometry", compute_geometry(init, policies).to_json(), Geometry.from_json
        with sqlite3.connect(self.run.results_file) as db:
            (point,) = db.execute("SELECT point FROM points LIMIT 1").fetchone()
            (sample,) = db.execute("SELECT sample FROM samples LIMIT 1").fetchone()
        yield "point", json.loads(point), Point.from_json
        yield "sample", json.loads(sample), Sample.from_json


def _loaded(model: Path) -> int:
    """Open a model and load it, as everything does that runs one."""
    return load_policy(open_checkpoint(model).path).pad_id


def _study() -> dict[str, Any]:
    claim = {"verdict": "held", "sentence": "A over B: +1", "counts": True}
    line: dict[str, Any] = {
        "name": "a",
        "color": "#3b6fd4",
        "dash": "solid",
        "x": [0.0, 1.0],
        "y": [0.0, 1.0],
        "y_se": [0.1, 0.1],
    }
    line |= {"notes": ["", ""], "in_legend": True}
    return {
        "study": "slerp",
        "scale": "cpu",
        "title": "T",
        "paper": {"figure": "Fig. 9"},
        "observation": "It rises",
        "verdict": "held",
        "complete": True,
        "sentence": "Held: all.",
        "claims": [claim],
        "judge": [claim],
        "files": {"picture": "cpu.svg", "points": "cpu.csv", "claims": "cpu-claims.csv"},
        "panels": [{"x_label": "KL", "y_label": "reward", "lines": [line]}],
        "date": "2026-01-01",
        "made": "So it was made.",
    }
