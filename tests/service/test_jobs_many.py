"""What a job queue keeps, many jobs at once, and its end."""

import gc
import sys
import threading
import time
import weakref

import pytest

from tests.service.steered import SOON, start, submit, until
from warp_core.errors import EngineUnreachableError, RecipeError, UnknownJobError
from warp_core.service.jobs import KEPT_ENDED, LISTED_ENDED, JobQueue
from warp_core.service.protocol import JobState, Pane, Place


def test_unknown_jobs(queue):
    for ask in (queue.job, queue.cancel, lambda job: queue.wait(job, timeout_s=0)):
        with pytest.raises(UnknownJobError, match="does not know the job 'nope'"):
            ask("nope")


def test_a_wait_ends_when_its_time_is_up(queue):
    work, job = start(queue)
    assert queue.wait(job, timeout_s=0.01).state is JobState.RUNNING
    work.finish()


def test_lists_are_by_session_and_newest_first(queue):
    done = submit(queue, lambda context: None)
    queue.wait(done, timeout_s=SOON)
    work, running = start(queue)
    waiting = [submit(queue, lambda context: None, session=s, priority=p) for s, p in (("b", 2), ("a", 0))]
    assert [job.id for job in queue.jobs()] == [waiting[1], waiting[0], running, done]
    assert [job.id for job in queue.jobs("b")] == [waiting[0]]
    assert queue.jobs("c") == []
    work.finish()


def test_only_the_latest_that_ended_are_kept(queue):
    ids = [submit(queue, lambda context: None, lane="disk") for _ in range(KEPT_ENDED + 30)]
    queue.wait(ids[-1], timeout_s=SOON)
    assert queue.job(ids[30]).state is JobState.DONE
    for gone in ids[:30]:
        with pytest.raises(UnknownJobError, match="ended long ago"):
            queue.job(gone)


def test_a_list_holds_the_latest_few_that_ended_of_a_session(queue):
    first = submit(queue, lambda context: None, session="b")
    ids = [submit(queue, lambda context: None) for _ in range(LISTED_ENDED + 5)]
    queue.wait(ids[-1], timeout_s=SOON)
    assert [job.id for job in queue.jobs("a")] == [job.id for job in queue.jobs()] == ids[:4:-1]
    assert [job.id for job in queue.jobs("b")] == [first]


def test_an_ended_job_holds_nothing_but_its_snapshot(queue):
    class Weights:
        pass

    weights = Weights()
    seen = weakref.ref(weights)

    def work(context, weights=weights):
        context.checkpoint()

    def failing(context, weights=weights):
        raise RecipeError("no")

    for each in (work, failing):
        queue.wait(submit(queue, each), timeout_s=SOON)
    del work, failing, each, weights
    until(lambda: gc.collect() is not None and seen() is None)


def test_five_hundred_jobs_that_wait_are_no_burden(queue):
    blocker, _ = start(queue, priority=0)
    threads = threading.active_count()
    ids = [submit(queue, lambda context: None, session=f"s{n % 7}", priority=n % 3) for n in range(500)]
    assert threading.active_count() == threads
    assert queue.counts() == (500, 1)
    assert sorted(queue.job(job).position for job in ids) == list(range(1, 501))
    started = time.perf_counter()
    for _ in range(20):
        queue.job(ids[-1])
    assert (time.perf_counter() - started) / 20 < 0.01
    started = time.perf_counter()
    assert len(queue.jobs()) == 501
    assert time.perf_counter() - started < 1
    for job in ids[:400]:
        queue.cancel(job)
    blocker.finish()
    for job in ids[400:]:
        assert queue.wait(job, timeout_s=SOON).state is JobState.DONE
    assert queue.counts() == (0, 0)


def test_snapshots_are_consistent_while_everything_changes(queue):
    stop, wrong = threading.Event(), []

    def look():
        while not stop.is_set():
            for job in queue.jobs():
                has_started = job.started_at is not None
                if job.state is JobState.QUEUED and (has_started or job.panes or job.progress is not None):
                    wrong.append(job)
                if job.state.is_final is not (job.ended_at is not None) or (job.position and has_started):
                    wrong.append(job)
                if job.panes and len({pane.id for pane in job.panes}) != 1:
                    wrong.append(job)

    def work(context):
        for n in range(5):
            context.show([Pane(id=str(n), place=Place(), state="sampling") for _ in range(3)])
            context.progress(n, 5)
            context.checkpoint()

    watcher = threading.Thread(target=look)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        watcher.start()
        ids = [submit(queue, work, priority=n % 3, session=f"s{n % 5}", replaces=n % 4 == 0) for n in range(150)]
        for n in range(0, 150, 7):
            queue.cancel(ids[n])
        for job in ids:
            assert queue.wait(job, timeout_s=SOON).state in (JobState.DONE, JobState.CANCELLED)
    finally:
        sys.setswitchinterval(interval)
        stop.set()
        watcher.join()
    assert wrong == []
    assert queue.counts() == (0, 0)


def test_submitting_from_many_threads_makes_no_crowd_of_workers(queue):
    running, most, lock = [0], [0], threading.Lock()

    def work(context):
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        with lock:
            running[0] -= 1

    ids = []
    submitters = [
        threading.Thread(target=lambda: ids.extend(submit(queue, work, priority=1) for _ in range(20)))
        for _ in range(8)
    ]
    for thread in submitters:
        thread.start()
    for thread in submitters:
        thread.join()
    for job in ids:
        queue.wait(job, timeout_s=SOON)
    assert most == [1]
    assert sum(thread.name.startswith("jobs-") for thread in threading.enumerate()) == 1


def test_closing_cancels_everything_and_leaves_no_thread():
    queue = JobQueue()
    work, running = start(queue)
    parked, _ = start(queue, lane="disk", priority=2)
    parked.step()
    urgent, _ = start(queue, lane="disk", priority=0)
    waiting = submit(queue, lambda context: None)
    closing = threading.Thread(target=queue.close)
    closing.start()
    until(lambda: queue.job(waiting).state is JobState.CANCELLED)
    for each in (work, urgent):
        each.step()
    closing.join(SOON)
    assert not closing.is_alive()
    assert {job.state for job in queue.jobs()} == {JobState.CANCELLED}
    assert queue.counts() == (0, 0)
    with pytest.raises(EngineUnreachableError, match="being shut down"):
        submit(queue, lambda context: None)
    until(lambda: not any(thread.name.startswith("jobs-") for thread in threading.enumerate()))
    assert queue.job(running).state is JobState.CANCELLED


def test_closing_does_not_wait_for_ever():
    queue = JobQueue()
    work, job = start(queue)
    started = time.monotonic()
    queue.close(timeout_s=0.1)
    assert time.monotonic() - started < 5
    assert queue.job(job).message == "stopping"
    work.step()
    assert queue.wait(job, timeout_s=SOON).state is JobState.CANCELLED
