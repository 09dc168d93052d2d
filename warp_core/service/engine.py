"""The engine in this process: queue, models, files and training children behind the one interface.

engine = LocalEngine()
job = engine.submit(PreviewRequest(...))
engine.close()
"""

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import torch
from pydantic import ValidationError

import warp_core
from warp_core.errors import ConfigError, WorkspaceError
from warp_core.policy.model import pick_device
from warp_core.service import documents as d
from warp_core.service import protocol as p
from warp_core.service.checks import check
from warp_core.service.exports import export
from warp_core.service.fronts import front_document, prediction_document, sample_rows
from warp_core.service.geometry import compute, known_geometry
from warp_core.service.jobs import Context, JobQueue
from warp_core.service.judging import judge
from warp_core.service.library import Library
from warp_core.service.places import place_label
from warp_core.service.runs import Runs
from warp_core.service.studies import find_study, read_studies, study_folders
from warp_core.service.trainings import Trainings
from warp_core.service.workbench import Workbench
from warp_core.training.config import (
    config_from_mapping,
    config_problems,
    config_to_mapping,
    config_to_toml,
    json_schema,
)
from warp_core.workspace.paths import workspace_root
from warp_core.workspace.votes import VotesStore

__all__ = ["LocalEngine"]

# Lane and priority of each kind of job: what a person waits for comes first; a lower number is sooner.
LANES = {
    "preview": ("device", 0),
    "prepare": ("device", 0),
    "judge": ("device", 1),
    "measure": ("device", 2),
    "check": ("disk", 0),
    "geometry": ("disk", 1),
    "export": ("disk", 2),
}


class LocalEngine:
    """Implements `warp_core.service.interface.Engine` with models of this machine.

    Args:
        extra_runs: run folders outside the workspace that are to be listed, too.
        device: where to compute, by torch's name; None takes the first GPU, or the CPU.
    """

    def __init__(self, *, extra_runs: Sequence[Path] = (), device: str | None = None) -> None:
        self._device = torch.device(device) if device else pick_device()
        self._library = Library(extra_runs=extra_runs)
        self._trainings = Trainings(workspace_root())
        self._runs = Runs(self._library, self._trainings)
        self._bench = Workbench(self._library, device=self._device)
        self._queue = JobQueue()
        self._started_at = time.time()

    def close(self) -> None:
        """Cancel what waits and runs, and end the workers; trainings go on."""
        self._queue.close()
        self._trainings.close()

    def status(self) -> d.EngineStatus:
        """Versions, devices, memory, load."""
        waiting, running = self._queue.counts()
        return d.EngineStatus(
            version=warp_core.__version__,
            pid=os.getpid(),
            started_at=self._started_at,
            workspace=str(workspace_root()),
            devices=(_device_note(self._device),),
            loaded=self._bench.loaded(),
            memory_bytes=psutil.Process().memory_info().rss,
            queued=waiting,
            running=running,
        )

    def runs(self) -> Sequence[d.RunSummary]:
        """All runs of the workspace, the running ones first, then the latest."""
        return self._runs.summaries()

    def run(self, name: str) -> d.RunDetail:
        """One run."""
        return self._runs.detail(name)

    def curves(self, name: str) -> Sequence[d.Curve]:
        """The training metrics of a run, as far as it has come."""
        return self._runs.curves(name)

    def train(self, request: p.TrainRequest) -> d.RunSummary:
        """Start or resume a run in a process that outlives the engine."""
        if request.config is not None:
            self._trainings.start(request.name, request.config)
        elif request.name in self._library.run_names():
            self._trainings.resume(request.name, self._library.run_folder(request.name))
        else:
            self._trainings.start_again(request.name)
        return self._runs.summary(request.name)

    def stop(self, name: str) -> d.RunSummary:
        """Ask a running run to save its state and end; `runs()` says when it has."""
        run = self._library.run_folder(name) if name in self._library.run_names() else None
        self._trainings.stop(name, run)
        return self._runs.summary(name)

    def config_schema(self) -> dict[str, Any]:
        """JSON schema of a configuration."""
        return json_schema()

    def check_config(self, config: dict[str, Any]) -> d.ConfigCheck:
        """Validate a configuration and render its TOML."""
        problems = config_problems(config)
        if problems:
            return d.ConfigCheck(ok=False, problems=tuple(problems), toml="", config=config)
        whole = config_from_mapping(config)
        return d.ConfigCheck(ok=True, problems=(), toml=config_to_toml(whole), config=config_to_mapping(whole))

    def front(self, selection: p.Selection) -> d.FrontDocument:
        """All measured points."""
        return front_document(self._library, selection)

    def samples(self, selection: p.Selection, key: str) -> Sequence[d.SampleRow]:
        """The completions of a measured point."""
        return sample_rows(self._library, selection, key)

    def geometry(self, selection: p.Selection, iteration: int) -> d.GeometryDocument | None:
        """Per layer, where it is known already; None: submit a GeometryRequest."""
        return known_geometry(self._library, selection, iteration)

    def prediction(self, selection: p.Selection, iteration: int) -> d.Prediction | None:
        """The surface through the measured points; None with fewer than four of them, or without geometry."""
        return prediction_document(self._library, selection, iteration)

    def prompts(self, selection: p.Selection) -> Sequence[str]:
        """The evaluation prompts of a run, or the bundled ones."""
        return self._library.prompts(selection)

    def studies(self) -> Sequence[d.StudySummary]:
        """All studies of the workspace and of the project, in the order of the paper."""
        return [study.summary for study in read_studies(study_folders())]

    def study(self, name: str, scale: str) -> d.StudyDocument:
        """One study."""
        return find_study(read_studies(study_folders()), name, scale)

    def submit(self, request: p.JobRequest) -> p.Job:
        """Queue a job. A preview replaces the preview of the same session."""
        lane, priority = LANES[request.kind]
        return self._queue.submit(
            lambda context: self._do(request, context),
            kind=request.kind,
            session=request.session,
            title=_title(request),
            lane=lane,
            priority=priority,
            replaces=request.kind == "preview",
        )

    def _do(self, request: p.JobRequest, context: Context) -> dict[str, Any] | None:
        match request:
            case p.PreviewRequest():
                return self._bench.preview(request, context)
            case p.MeasureRequest():
                return self._bench.measure(request, context)
            case p.PrepareRequest():
                return self._bench.prepare(request, context)
            case p.JudgeRequest():
                return judge(self._library, request, context)
            case p.CheckRequest():
                return check(self._library, request, context)
            case p.GeometryRequest():
                return compute(self._library, request, context)
            case p.ExportRequest():
                return export(self._library, request, context)

    def job(self, job_id: str) -> p.Job:
        """One job; UnknownJobError if the engine does not know it (any more)."""
        return self._queue.job(job_id)

    def jobs(self, session: str | None = None) -> Sequence[p.Job]:
        """Jobs that wait or run, and the latest that ended; newest first."""
        return self._queue.jobs(session)

    def cancel(self, job_id: str) -> p.Job:
        """Take a job from the queue, or ask it to end; what it has measured is kept."""
        return self._queue.cancel(job_id)

    def votes(self, selection: p.Selection) -> Sequence[p.Vote]:
        """All votes, oldest first."""
        path = self._library.votes_path(selection)
        if not path.exists():
            return []
        with VotesStore(path, read_only=True) as store:
            try:
                return [p.Vote.model_validate(vote) for vote in store.list()]
            except ValidationError as error:
                raise WorkspaceError(f"{path}: a stored vote is damaged; move the file away and vote again") from error

    def vote(self, selection: p.Selection, vote: p.Vote) -> p.Vote:
        """Store a vote; durable when this returns. Returns it with id and time."""
        with VotesStore(self._library.votes_path(selection)) as store:
            return p.Vote.model_validate(store.put(vote.model_dump(mode="json")))

    def undo_vote(self, selection: p.Selection, vote_id: str) -> None:
        """Take a vote back."""
        path = self._library.votes_path(selection)
        if not path.exists():
            raise ConfigError(f"there is no vote {vote_id!r} to take back")
        with VotesStore(path) as store:
            store.remove(vote_id)


def _device_note(device: torch.device) -> d.Device:
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return d.Device(name=f"{torch.cuda.get_device_name(device)} ({device})", total_bytes=total, free_bytes=free)
    memory = psutil.virtual_memory()
    return d.Device(
        name=f"CPU, {torch.get_num_threads()} threads", total_bytes=memory.total, free_bytes=memory.available
    )


def _title(request: p.JobRequest) -> str:
    match request:
        case p.PreviewRequest():
            return "Sample " + ", ".join(place_label(pane.place) for pane in request.panes)
        case p.MeasureRequest() if len(request.places) == 1:
            return f"Measure {place_label(request.places[0])}"
        case p.MeasureRequest():
            return f"Measure {len(request.places)} points"
        case p.PrepareRequest():
            return "Load the models"
        case p.JudgeRequest():
            return "Judge the stored completions"
        case p.CheckRequest():
            return "Check the checkpoints"
        case p.GeometryRequest():
            return f"Geometry of iteration {request.iteration}"
        case p.ExportRequest():
            return f"Export {place_label(request.place)}"
