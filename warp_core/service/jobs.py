"""The job queue: lanes of one job at a time, priorities, cancel, progress, token buffers.

A lane is something that only one job may use at a time, such as a device. The most urgent job of a lane runs first
(lower number), and a running job lets a more urgent one go first: it waits in its next `Context.checkpoint()` and goes
on afterwards. Every wait of a job happens in `checkpoint`, so a job's work sees the lane unchanged between two of them.

    queue = JobQueue()
    job = queue.submit(work, kind="measure", session="a", title="Measure", lane="device", priority=2)
    queue.job(job.id).state
"""

import bisect
import logging
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from warp_core.errors import EngineUnreachableError, UnknownJobError
from warp_core.service.faults import explain
from warp_core.service.pace import Pace
from warp_core.service.protocol import Job, JobKind, JobState, Pane

__all__ = ["Cancelled", "Context", "JobQueue", "Work"]

KEPT_ENDED = 200
LISTED_ENDED = 20  # what is asked for several times a second stays short
_log = logging.getLogger(__name__)


class Cancelled(Exception):  # noqa: N818 - nothing went wrong
    """Raised in a job's work where the job was cancelled; the work lets it pass."""


class Context:
    """What a job's work may use while it runs."""

    def __init__(self, queue: "JobQueue", entry: "_Entry") -> None:
        self._queue, self._entry = queue, entry

    def checkpoint(self) -> None:
        """Let a more urgent job of the lane go first. Call it often: every token, every batch.

        Raises:
            Cancelled: the job was cancelled.
        """
        self._queue._checkpoint(self._entry)

    def progress(self, done: int, total: int, message: str = "") -> None:
        """Say that `done` of `total` equal pieces are done; an empty message leaves the last one."""
        with self._queue._changed:
            self._entry.pace.report(done, total)
            self._entry.message = message or self._entry.message

    def say(self, message: str) -> None:
        """Say what is being done right now."""
        with self._queue._changed:
            self._entry.message = message

    def mark(self, name: str) -> None:
        """Note the time since the job was submitted under a name; the first call of a name counts."""
        with self._queue._changed:
            self._entry.mark(name)

    def show(self, panes: Sequence[Pane]) -> None:
        """Replace the token buffers."""
        with self._queue._changed:
            self._entry.panes = tuple(panes)


Work = Callable[[Context], dict[str, Any] | None]


@dataclass(kw_only=True, eq=False)
class _Entry:
    """A job that waits or runs. Everything in it changes under the queue's lock only."""

    id: str
    number: int
    work: Work
    kind: JobKind
    session: str
    title: str
    lane: "_Lane"
    priority: int
    clock: Callable[[], float]
    submitted_s: float
    pace: Pace
    created_at: float = field(default_factory=time.time)
    state: JobState = JobState.QUEUED
    is_cancelled: bool = False
    is_parked: bool = False
    message: str = ""
    started_at: float | None = None
    panes: tuple[Pane, ...] = ()
    timings_s: dict[str, float] = field(default_factory=dict)

    @property
    def order(self) -> tuple[int, int]:
        """Where it belongs in the queue of its lane."""
        return self.priority, self.number

    def mark(self, name: str) -> None:
        self.timings_s.setdefault(name, self.clock() - self.submitted_s)

    def snapshot(self) -> Job:
        """The job as it is now."""
        message = self.message
        if self.is_cancelled:
            message = "stopping"
        elif self.is_parked:
            message = "paused: another job goes first"
        return Job(
            id=self.id,
            kind=self.kind,
            session=self.session,
            title=self.title,
            state=self.state,
            position=self.lane.before(self) if self.state is JobState.QUEUED else 0,
            progress=self.pace.share,
            seconds_left=self.pace.seconds_left,
            message=message,
            created_at=self.created_at,
            started_at=self.started_at,
            panes=self.panes,
            timings_s=dict(self.timings_s),
        )


class _Lane:
    """The jobs of a lane: those that wait, in order, and those that run; only the last of these is not parked."""

    def __init__(self) -> None:
        self.queue: list[_Entry] = []
        self.running: list[_Entry] = []
        self.idle_workers = 0

    def can_start(self) -> bool:
        """Whether the first of the queue may run now."""
        if not self.queue or not self.running:
            return bool(self.queue)
        last = self.running[-1]
        return last.is_parked and not last.is_cancelled and self.queue[0].priority < last.priority

    def must_wait(self, entry: _Entry) -> bool:
        """Whether a running job has to let another one go first."""
        if self.running[-1] is not entry:
            return True
        return not entry.is_cancelled and bool(self.queue) and self.queue[0].priority < entry.priority

    def before(self, entry: _Entry) -> int:
        """How many jobs come before one that waits, those that run included unless they would let it pass."""
        waiting = bisect.bisect_left(self.queue, entry.order, key=lambda other: other.order)
        return waiting + sum(other.priority <= entry.priority for other in self.running)


class JobQueue:
    """Runs jobs in worker threads, one at a time in each lane.

    Args:
        clock: seconds from anywhere, never backwards; for durations.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._changed = threading.Condition()
        self._lanes: dict[str, _Lane] = {}
        self._live: dict[str, _Entry] = {}
        self._ended: dict[str, tuple[int, Job]] = {}
        self._workers: list[threading.Thread] = []
        self._submitted = 0
        self._is_closed = False

    def submit(
        self,
        work: Work,
        *,
        kind: JobKind,
        session: str,
        title: str,
        lane: str,
        priority: int = 1,
        replaces: bool = False,
    ) -> Job:
        """Queue `work`, to be done in a worker thread; what it returns is the result of the job.

        Jobs of one lane run one at a time; the lower the priority, the sooner. A job that `replaces` cancels what its
        session has of the same kind, waiting or running: the latest wins.

        Raises:
            EngineUnreachableError: the queue is closed.
        """
        with self._changed:
            if self._is_closed:
                raise EngineUnreachableError("the engine is being shut down: ask again when it is back")
            if replaces:
                for other in [e for e in self._live.values() if (e.session, e.kind) == (session, kind)]:
                    self._cancel(other)
            self._submitted += 1
            entry = _Entry(
                id=secrets.token_hex(8),
                number=self._submitted,
                work=work,
                kind=kind,
                session=session,
                title=title,
                lane=self._lanes.setdefault(lane, _Lane()),
                priority=priority,
                clock=self._clock,
                submitted_s=self._clock(),
                pace=Pace(self._clock),
            )
            self._live[entry.id] = entry
            bisect.insort(entry.lane.queue, entry, key=lambda other: other.order)
            self._wake(entry.lane)
            return entry.snapshot()

    def job(self, job_id: str) -> Job:
        """Return a job as it is now.

        Raises:
            UnknownJobError: there is none of that id, or it ended long ago.
        """
        with self._changed:
            return self._find(job_id)

    def jobs(self, session: str | None = None) -> list[Job]:
        """Return the jobs that wait or run and the latest few that ended, of one session or of all; newest first."""
        with self._changed:
            live = [(one.number, one.snapshot()) for one in self._live.values() if session in (None, one.session)]
            ended = [(number, job) for number, job in self._ended.values() if session in (None, job.session)]
        return [job for _, job in sorted([*live, *ended[-LISTED_ENDED:]], key=lambda pair: -pair[0])]

    def counts(self) -> tuple[int, int]:
        """Return how many jobs wait and how many have begun and not ended."""
        with self._changed:
            running = sum(entry.state is JobState.RUNNING for entry in self._live.values())
            return len(self._live) - running, running

    def cancel(self, job_id: str) -> Job:
        """Take a job from the queue, or let it end at its next checkpoint; one that has ended stays as it is.

        Raises:
            UnknownJobError: there is none of that id, or it ended long ago.
        """
        with self._changed:
            if job_id in self._live:
                self._cancel(self._live[job_id])
            return self._find(job_id)

    def wait(self, job_id: str, *, timeout_s: float) -> Job:
        """Return a job when it has ended, or as it is when the time is up.

        Raises:
            UnknownJobError: there is none of that id, or it ended long ago.
        """
        with self._changed:
            self._changed.wait_for(lambda: job_id not in self._live, timeout_s)
            return self._find(job_id)

    def close(self, *, timeout_s: float = 5.0) -> None:
        """Cancel everything, take no more, and wait for the workers to end, at most so long."""
        with self._changed:
            self._is_closed = True
            for entry in list(self._live.values()):
                self._cancel(entry)
            self._changed.notify_all()
        until = time.monotonic() + timeout_s
        for worker in self._workers:
            worker.join(max(0.0, until - time.monotonic()))

    # From here on: with the lock held, but for _serve and _run, which take it.

    def _find(self, job_id: str) -> Job:
        if job_id in self._live:
            return self._live[job_id].snapshot()
        if job_id in self._ended:
            return self._ended[job_id][1]
        raise UnknownJobError(
            f"the engine does not know the job {job_id[:40]!r}: it ended long ago, or the engine was started anew"
        )

    def _cancel(self, entry: _Entry) -> None:
        entry.is_cancelled = True
        if entry.state is JobState.QUEUED:
            entry.lane.queue.remove(entry)
            self._end(entry, state=JobState.CANCELLED)
        self._changed.notify_all()

    def _wake(self, lane: _Lane) -> None:
        """See to it that a worker takes what can start."""
        if lane.can_start() and not lane.idle_workers:
            # At most one worker for each priority is ever busy: the jobs that wait have no thread.
            lane.idle_workers += 1
            worker = threading.Thread(target=self._serve, args=(lane,), name=f"jobs-{len(self._workers)}", daemon=True)
            self._workers.append(worker)
            worker.start()
        self._changed.notify_all()

    def _serve(self, lane: _Lane) -> None:
        """What a worker does all its life."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: lane.can_start() or self._is_closed)
                lane.idle_workers -= 1
                if not lane.can_start():
                    return
                entry = lane.queue.pop(0)
                lane.running.append(entry)
                entry.state, entry.started_at = JobState.RUNNING, time.time()
                entry.mark("started")
            self._run(entry)
            # The worker keeps nothing of a job alive while it waits for the next one.
            del entry

    def _run(self, entry: _Entry) -> None:
        result = error = None
        try:
            result = entry.work(Context(self, entry))
            state = JobState.DONE
        except Cancelled:
            state = JobState.CANCELLED
        except BaseException as raised:  # also a SystemExit of somebody's reward function: the lane goes on
            state = JobState.FAILED
            fault = explain(raised)
            error = fault.message
            if not fault.is_known:
                _log.exception("job %s (%s): %s", entry.id, entry.kind, entry.title)
        with self._changed:
            entry.lane.running.remove(entry)
            entry.lane.idle_workers += 1
            self._end(entry, state=state, result=result, error=error)
            self._wake(entry.lane)

    def _end(
        self, entry: _Entry, *, state: JobState, result: dict[str, Any] | None = None, error: str | None = None
    ) -> None:
        """Keep the last snapshot and let go of everything else."""
        entry.is_cancelled = False
        last = entry.snapshot().model_copy(
            update={
                "state": state,
                "position": 0,
                "progress": 1.0 if state is JobState.DONE else entry.pace.share,
                "seconds_left": None,
                "error": error,
                "ended_at": time.time(),
                "result": result,
            }
        )
        del self._live[entry.id]
        self._ended[entry.id] = (entry.number, last)
        while len(self._ended) > KEPT_ENDED:
            del self._ended[next(iter(self._ended))]

    def _checkpoint(self, entry: _Entry) -> None:
        """Wait while the lane belongs to a more urgent job.

        A job that is cancelled while it waits ends when its turn comes: what it has in hand (weights half merged) must
        not change under the job that runs.
        """
        with self._changed:
            if entry.lane.must_wait(entry):
                entry.is_parked = True
                entry.pace.pause()
                self._wake(entry.lane)
                self._changed.wait_for(lambda: not entry.lane.must_wait(entry))
                entry.is_parked = False
                entry.pace.resume()
            if entry.is_cancelled:
                raise Cancelled
