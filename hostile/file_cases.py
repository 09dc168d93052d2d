"""A model file that is damaged while an engine has it open, or is at work with it: what may come of it."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from hostile.running_damage import DAMAGES, REPLACES
from hostile.running_engine import (
    REWARD,
    Models,
    connect,
    finished,
    make_models,
    move,
    said_by,
)
from hostile.running_programs import Program, Programs, wait_for
from warp_core.errors import EngineUnreachableError, WarpError
from warp_core.service.client import HttpEngine
from warp_core.service.documents import Metric
from warp_core.service.protocol import (
    ExportRequest,
    GeometryRequest,
    Job,
    JobState,
    MeasureRequest,
    Place,
    Selection,
)

PLACE = Place(eta=0.4)
TOKEN = "a-token"
FAULT = "a fault of warp-core"
MANY = tuple(0.1 + number / 20 for number in range(24))


@dataclass
class Site:
    """The attacked engine, a process with a cache and a workspace of its own, and one that nobody disturbs."""

    place: Path
    programs: Programs
    reference: HttpEngine
    engine: HttpEngine = field(init=False)
    program: Program = field(init=False)
    well: Models = field(init=False)
    expected: Any = None
    starts: int = 0
    count: int = 0
    kept: dict[tuple[str, ...], Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.well = make_models(self.place / "well", seed=7)
        self.expected = said_by(done(self.reference, move(self.well.full, PLACE, session="well")))
        self.start()

    @property
    def cache(self) -> Path:
        """The attacked engine's."""
        return self.place / "cache-attacked"

    @property
    def workspace(self) -> Path:
        """The attacked engine's."""
        return self.place / "workspace-attacked"

    def start(self) -> None:
        """Start the attacked engine, again where it has died."""
        self.programs.environment |= {"WARP_CACHE": str(self.cache), "WARP_WORKSPACE": str(self.workspace)}
        self.program = self.programs.start("warp_core", "serve", "--port", 0, WARP_ENGINE_TOKEN=TOKEN)
        self.engine = connect(self.program.first_line(), TOKEN)
        wait_for(lambda: self.engine.status().pid)
        self.starts += 1

    def once(self, key: tuple[str, ...], make: Callable[[], Any]) -> Any:
        """What `make` returns, made once for all cases."""
        if key not in self.kept:
            self.kept[key] = make()
        return self.kept[key]

    def folder(self) -> Path:
        """A new folder."""
        self.count += 1
        return self.place / f"case-{self.count}"

    def health(self) -> list[str]:
        """What is wrong with the attacked engine after a case; it is started again if it has died."""
        try:
            self.engine.status()
        except EngineUnreachableError:
            # One that dies takes its time.
            self.program.ended(within_s=10)
        code = self.program.process.poll()
        if code is not None:
            self.start()
            return [f"the engine died with {code}"]
        try:
            after = said_by(done(self.engine, move(self.well.full, PLACE, session="well")))
        except (WarpError, TimeoutError, RuntimeError) as error:
            return [f"other models: {type(error).__name__}: {error}"]
        return [] if after == self.expected else ["other models say something else than before"]


def done(engine: HttpEngine, request: Any) -> Job:
    """Do a job to its end. Raises RuntimeError if it fails."""
    job = finished(engine, engine.submit(request))
    if job.state is not JobState.DONE:
        raise RuntimeError(f"{job.kind}: {job.state}, {job.error}")
    return job


def refusal(message: str | None, names: Sequence[str]) -> list[str]:
    """What is wrong with the words of an error."""
    text = message or ""
    if FAULT in text or not text or "\n" in text:
        return [f"it says {text!r}"]
    return [] if any(name in text for name in names) else [f"it does not name the file: {text}"]


class Case:
    """One file of one set of models, and one thing that happens to it."""

    def __init__(self, site: Site, kind: str, file: str, damage: str) -> None:
        self.site, self.kind, self.damage = site, kind, damage
        folder = site.folder()
        self.models = make_models(folder, seed=1)
        self.file = folder / file
        # The same content elsewhere, that nothing happens to; and what the file is replaced by, in its place there.
        self.old = site.once(("old",), lambda: make_models(site.place / "old", seed=1))
        other = site.once(("other",), lambda: make_models(site.place / "other", seed=2))
        self.content = (other.init.parent / file).read_bytes()
        if self.file.name == "config.json":
            # The same model to the eye: one number that changes what it computes.
            config = json.loads(self.content) | {"rms_norm_eps": 0.5}
            self.content = json.dumps(config, indent=2).encode()
        self.new = site.once(("new", file), lambda: self._with_new_file(site.place / f"new-{len(site.kept)}", file))
        self.names = (self.file.name, str(self.file.parent))

    def _with_new_file(self, folder: Path, file: str) -> Models:
        models = make_models(folder, seed=1)
        (folder / file).write_bytes(self.content)
        return models

    def _theirs(self, models: Models, request: Any, what: Callable[[Job], Any]) -> Any:
        """What the undisturbed engine answers to the same about other folders; asked once."""
        same = request.model_copy(update={"selection": self.selection(models), "session": "reference"})
        named = same.model_copy(update={"name": "x"}) if isinstance(same, ExportRequest) else same
        return self.site.once((named.model_dump_json(),), lambda: what(done(self.site.reference, same)))

    def selection(self, models: Models) -> Selection:
        """The models of this kind."""
        return models.full if self.kind == "full" else models.lora

    def _strike(self) -> None:
        DAMAGES[self.damage](self.file, self.content)

    @property
    def _allowed(self) -> list[Models]:
        """What may be meant afterwards."""
        return [self.new if self.damage in REPLACES else self.old]

    def while_idle(self) -> list[str]:
        """Load, damage, and ask for everything again."""
        engine = self.site.engine
        mine = self.selection(self.models)
        done(engine, move(mine, PLACE, session="before"))
        self._strike()
        problems = []
        preview = move(mine, PLACE, session="after")
        said = [self._theirs(one, preview, said_by) for one in self._allowed]
        problems += self._judge("preview", finished(engine, engine.submit(preview)), lambda job: said_by(job) in said)
        places = (Place(eta=0.61),)
        wanted = MeasureRequest(session="after", selection=mine, places=places, num_prompts=2, reward=REWARD)
        problems += self._judge(
            "measurement", finished(engine, engine.submit(wanted)), lambda job: self._is_measured(job, wanted)
        )
        name = f"case-{self.site.count}"
        export = ExportRequest(session="after", selection=mine, place=PLACE, name=name)
        problems += self._judge(
            "export", finished(engine, engine.submit(export)), lambda job: self._is_export(job, name)
        )
        geometry = GeometryRequest(session="after", selection=mine, granularity="tensor")
        problems += self._judge(
            "geometry", finished(engine, engine.submit(geometry)), lambda job: self._is_geometry(job, geometry)
        )
        return problems

    def while_busy(self) -> list[str]:
        """Damage while a measurement of many points goes on."""
        engine = self.site.engine
        mine = self.selection(self.models)
        # Points that no other case has stored for the same content.
        places = tuple(Place(eta=round(eta + self.site.count / 10_000, 4)) for eta in MANY)
        wanted = MeasureRequest(session="busy", selection=mine, places=places, num_prompts=32, reward=REWARD)
        job = engine.submit(wanted)
        wait_for(lambda: engine.job(job.id).progress or engine.job(job.id).state.is_final, every_s=0.005)
        began = engine.job(job.id)
        self._strike()
        if began.state.is_final:
            return [f"the job had ended before: {began.state}, {began.error}"]
        allowed = distinct([self.old, *self._allowed])
        return self._judge("the job", finished(engine, job), lambda done: self._is_measured(done, wanted, allowed))

    def _judge(self, what: str, job: Job, is_right: Callable[[Job], bool]) -> list[str]:
        if job.state is JobState.FAILED:
            return [f"{what}: {one}" for one in refusal(job.error, self.names)]
        if job.state is not JobState.DONE:
            return [f"{what}: {job.state}"]
        return [] if is_right(job) else [f"{what}: done, and neither of the old nor of the new content"]

    def _is_measured(self, job: Job, wanted: MeasureRequest, allowed: Sequence[Models] = ()) -> bool:
        """Whether the points have the numbers that the undisturbed engine gives the same content."""
        keys = (job.result or {})["keys"]
        found = self._stored(keys)
        for models in allowed or self._allowed:
            theirs = self._theirs(models, wanted, lambda done: (done.result or {})["keys"])
            front = self.site.reference.front(self.selection(models))
            points = {point.key: point.metrics for point in front.points}
            if theirs == keys and all(key in found and alike(found[key], points[key]) for key in keys):
                return True
        return False

    def _stored(self, keys: Sequence[str]) -> dict[str, Any]:
        """Points of the attacked engine, asked for by folders of the same content that nothing has happened to."""
        found: dict[str, Any] = {}
        for selection in (self.selection(models) for models in (self.old, self.new)):
            # Models of no run have a front once a job has opened them.
            finished(self.site.engine, self.site.engine.submit(GeometryRequest(session="old", selection=selection)))
            front = self.site.engine.front(selection)
            found |= {point.key: point.metrics for point in front.points if point.key in keys}
        return found

    def _is_export(self, job: Job, name: str) -> bool:
        if not (job.result or {}).get("verified"):
            return False
        mine = content(self.site.workspace / "exports" / name)
        for number, models in enumerate(self._allowed):
            theirs = ExportRequest(
                session="r", selection=self.selection(models), place=PLACE, name=f"{name}-{number}", verify=False
            )
            if self._theirs(models, theirs, lambda done: content(Path((done.result or {})["out"]))) == mine:
                return True
        return False

    def _is_geometry(self, job: Job, wanted: GeometryRequest) -> bool:
        mine = without_names(job.result or {})
        for models in self._allowed:
            if self._theirs(models, wanted, lambda done: without_names(done.result or {})) == mine:
                return True
        return False


def alike(one: dict[str, Metric], other: dict[str, Metric]) -> bool:
    """Whether metrics are equal but for their last digits: the adapters that are held decide how sums are added."""
    return one.keys() == other.keys() and all(
        math.isclose(one[name].mean, other[name].mean, rel_tol=1e-4, abs_tol=1e-6) for name in one
    )


def distinct(models: Sequence[Models]) -> list[Models]:
    """Each of them once."""
    return list({str(one.init): one for one in models}.values())


def without_names(document: dict[str, Any]) -> dict[str, Any]:
    """A geometry without the folders of its policies."""
    return {name: value for name, value in document.items() if name != "policies"}


def content(folder: Path) -> dict[str, str]:
    """Content of the weights and the configuration of a model folder."""
    files = [*sorted(folder.rglob("*.safetensors")), folder / "config.json"]
    return {file.name: sha256(file.read_bytes()).hexdigest() for file in files if file.is_file()}
