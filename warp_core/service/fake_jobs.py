"""The queue of `FakeEngine`: jobs that come along by ticks of a clock, two lanes, previews first."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from warp_core.errors import UnknownJobError
from warp_core.service.protocol import Job, JobRequest, JobState, Pane

__all__ = ["FakeJob", "FakeQueue"]

_PRIORITY = {"preview": 0, "prepare": 0, "judge": 1, "measure": 2}


@dataclass
class FakeJob:
    """A job and how far it is.

    ticks: how many it takes; on_tick: called with the number done, may return an error text; result: called at its
    end.
    """

    id: str
    request: JobRequest
    title: str
    ticks: int
    on_tick: Callable[["FakeJob"], str | None]
    result: Callable[["FakeJob"], dict[str, Any] | None]
    created_at: float
    state: JobState = JobState.QUEUED
    done: int = 0
    message: str = ""
    error: str | None = None
    started_at: float | None = None
    ended_at: float | None = None
    panes: tuple[Pane, ...] = ()
    timings_s: dict[str, float] = field(default_factory=dict)
    answer: dict[str, Any] | None = None

    @property
    def lane(self) -> str:
        """Device or disk, as in the real queue."""
        return "device" if self.request.kind in _PRIORITY else "disk"

    @property
    def priority(self) -> int:
        """Lower comes first."""
        return _PRIORITY.get(self.request.kind, 1)


class FakeQueue:
    """All jobs, and a clock that is moved from outside."""

    def __init__(self) -> None:
        self.ticks = 0
        self._jobs: dict[str, FakeJob] = {}

    def add(self, job: FakeJob) -> None:
        """Queue a job; a preview replaces the preview of its session."""
        if job.request.kind in ("preview", "prepare"):
            for other in self._jobs.values():
                same = (other.request.session, other.request.kind) == (job.request.session, job.request.kind)
                if same and not other.state.is_final:
                    self.end(other, JobState.CANCELLED)
        self._jobs[job.id] = job

    def find(self, job_id: str) -> FakeJob:
        """Return a job or raise UnknownJobError."""
        if job_id not in self._jobs:
            raise UnknownJobError(f"job {job_id[:40]!r} is not known to the engine (any more): submit it again")
        return self._jobs[job_id]

    def newest_first(self, session: str | None) -> list[FakeJob]:
        """All jobs, or those of a session."""
        return [job for job in reversed(self._jobs.values()) if session in (None, job.request.session)]

    def advance(self, *, now: float) -> None:
        """One tick: the first job of each lane gets one step further."""
        self.ticks += 1
        for lane in ("device", "disk"):
            waiting = self._waiting(lane)
            if waiting:
                self._step(waiting[0], now=now)

    def end(self, job: FakeJob, state: JobState, *, now: float | None = None) -> None:
        """Put a job into a final state."""
        job.state, job.ended_at = state, job.created_at if now is None else now

    def document(self, job: FakeJob) -> Job:
        """The job as the engine reports it."""
        running = job.state is JobState.RUNNING
        position = self._waiting(job.lane).index(job) if job.state is JobState.QUEUED else 0
        return Job(
            id=job.id,
            kind=job.request.kind,
            session=job.request.session,
            title=job.title,
            state=job.state,
            position=position,
            progress=job.done / job.ticks if running or job.state is JobState.DONE else None,
            seconds_left=0.2 * (job.ticks - job.done) if running else None,
            message=job.message,
            error=job.error,
            created_at=job.created_at,
            started_at=job.started_at,
            ended_at=job.ended_at,
            panes=job.panes,
            timings_s=job.timings_s,
            result=job.answer,
        )

    def _waiting(self, lane: str) -> list[FakeJob]:
        jobs = [job for job in self._jobs.values() if job.lane == lane and not job.state.is_final]
        return sorted(jobs, key=lambda job: job.priority)

    def _step(self, job: FakeJob, *, now: float) -> None:
        if job.state is JobState.QUEUED:
            job.state, job.started_at = JobState.RUNNING, now
            job.timings_s["started"] = 0.01
            return
        job.done += 1
        job.error = job.on_tick(job)
        if job.error is not None:
            self.end(job, JobState.FAILED, now=now)
        elif job.done >= job.ticks:
            job.answer = job.result(job)
            job.message = ""
            self.end(job, JobState.DONE, now=now)
