"""The engine as the app sees it: one interface, three implementations.

    warp_core.service.engine.LocalEngine     in this process: the engine itself
    warp_core.service.client.HttpEngine      over HTTP, what the app uses
    warp_core.service.fake.FakeEngine        no models at all, for page tests

Every method raises a `WarpError`: a `UserError` for what the caller can mend, `EngineUnreachableError` where nobody
answers.
"""

from collections.abc import Sequence
from typing import Any, Protocol

from warp_core.service import documents as d
from warp_core.service import protocol as p

__all__ = ["Engine"]


class Engine(Protocol):
    """What can be asked of an engine. Calls are quick (well under a second): whatever takes long is a job."""

    def status(self) -> d.EngineStatus:
        """Versions, devices, memory, load."""

    def runs(self) -> Sequence[d.RunSummary]:
        """All runs of the workspace, the running ones first, then the latest."""

    def run(self, name: str) -> d.RunDetail:
        """One run."""

    def curves(self, name: str) -> Sequence[d.Curve]:
        """The training metrics of a run, as far as it has come."""

    def train(self, request: p.TrainRequest) -> d.RunSummary:
        """Start or resume a run in a process that outlives the engine."""

    def stop(self, name: str) -> d.RunSummary:
        """Ask a running run to save its state and end; `runs()` says when it has."""

    def config_schema(self) -> dict[str, Any]:
        """JSON schema of a configuration."""

    def check_config(self, config: dict[str, Any]) -> d.ConfigCheck:
        """Validate a configuration and render its TOML."""

    def front(self, selection: p.Selection) -> d.FrontDocument:
        """All measured points."""

    def samples(self, selection: p.Selection, key: str) -> Sequence[d.SampleRow]:
        """The completions of a measured point."""

    def geometry(self, selection: p.Selection, iteration: int) -> d.GeometryDocument | None:
        """Per layer, where it is known already; None: submit a GeometryRequest."""

    def prediction(self, selection: p.Selection, iteration: int) -> d.Prediction | None:
        """The surface through the measured points; None with fewer than four of them, or without geometry."""

    def prompts(self, selection: p.Selection) -> Sequence[str]:
        """The evaluation prompts of a run, or the bundled ones."""

    def studies(self) -> Sequence[d.StudySummary]:
        """All studies of the workspace and of the project, in the order of the paper."""

    def study(self, name: str, scale: str) -> d.StudyDocument:
        """One study."""

    def submit(self, request: p.JobRequest) -> p.Job:
        """Queue a job. A preview replaces the preview of the same session."""

    def job(self, job_id: str) -> p.Job:
        """One job; UnknownJobError if the engine does not know it (any more)."""

    def jobs(self, session: str | None = None) -> Sequence[p.Job]:
        """Jobs that wait or run, and the latest that ended; newest first."""

    def cancel(self, job_id: str) -> p.Job:
        """Take a job from the queue, or ask it to end; what it has measured is kept."""

    def votes(self, selection: p.Selection) -> Sequence[p.Vote]:
        """All votes, oldest first."""

    def vote(self, selection: p.Selection, vote: p.Vote) -> p.Vote:
        """Store a vote; durable when this returns. Returns it with id and time."""

    def undo_vote(self, selection: p.Selection, vote_id: str) -> None:
        """Take a vote back."""
