"""Lanes, priorities, latest wins, cancel, progress, errors. Work is steered by events; nothing here sleeps for luck."""

import gc
import logging
import sys
import threading
import time
import weakref

import pytest

from warp_core.errors import EngineUnreachableError, RecipeError, UnknownJobError
from warp_core.service.jobs import KEPT_ENDED, LISTED_ENDED, Cancelled, JobQueue
from warp_core.service.protocol import Completion, JobState, Pane, Place

SOON = 10.0  # seconds; only a failing test waits so long


class OutOfMemoryError(RuntimeError):
    """Stands in for torch's."""


class Steered:
    """Work that goes from checkpoint to checkpoint when it is told to."""

    def __init__(self, *, result=None):
        self.result = result
        self.began, self.over = threading.Event(), threading.Event()
        self.steps = threading.Semaphore(0)
        self.passed = threading.Semaphore(0)
        self.is_last = False
        self.context = None

    def __call__(self, context):
        self.context = context
        self.began.set()
        try:
            while True:
                assert self.steps.acquire(timeout=SOON)
                if self.is_last:
                    return self.result
                context.checkpoint()
                self.passed.release()
        finally:
            self.over.set()

    def step(self):
        """Let it come to a checkpoint; whether it passed it is in `passed`."""
        self.steps.release()

    def finish(self):
        self.is_last = True
        self.steps.release()


@pytest.fixture
def queue():
    queue = JobQueue()
    yield queue
    queue.close(timeout_s=SOON)


def submit(queue, work, **options):
    asked = {"kind": "measure", "session": "a", "title": "Measure", "lane": "device", "priority": 2} | options
    return queue.submit(work, **asked).id


def start(queue, **options):
    work = Steered()
    job = submit(queue, work, **options)
    assert work.began.wait(SOON)
    return work, job


def until(condition):
    deadline = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_a_job_from_submission_to_its_result(queue):
    before = time.time()
    work, job_id = start(queue, title="Measure SLERP")
    work.result = {"keys": ["x"]}
    job = queue.job(job_id)
    assert (job.kind, job.session, job.title, job.state, job.position) == (
        "measure", "a", "Measure SLERP", JobState.RUNNING, 0,
    )  # fmt: skip
    assert before <= job.created_at <= job.started_at <= time.time()
    assert (job.progress, job.seconds_left, job.result, job.ended_at) == (None, None, None, None)
    work.finish()
    job = queue.wait(job_id, timeout_s=SOON)
    assert (job.state, job.result, job.progress, job.error) == (JobState.DONE, {"keys": ["x"]}, 1.0, None)
    assert job.started_at <= job.ended_at
    assert queue.job(job_id) is job


def test_a_lane_runs_one_job_at_a_time_in_order(queue):
    running, most, order = [], [], []

    def work(name):
        def run(context):
            running.append(name)
            most.append(len(running))
            for _ in range(3):
                context.checkpoint()
            order.append(name)
            running.remove(name)

        return run

    ids = [submit(queue, work(n), priority=1) for n in range(20)]
    for job in ids:
        assert queue.wait(job, timeout_s=SOON).state is JobState.DONE
    assert order == list(range(20))
    assert max(most) == 1


def test_lanes_do_not_wait_for_each_other(queue):
    device, first = start(queue, lane="device")
    disk, second = start(queue, lane="disk", kind="export")
    assert queue.counts() == (0, 2)
    disk.finish()
    assert queue.wait(second, timeout_s=SOON).state is JobState.DONE
    assert queue.job(first).state is JobState.RUNNING
    device.finish()


def test_the_most_urgent_waits_least_and_positions_say_so(queue):
    blocker, _ = start(queue, priority=0)
    order = []
    ids = [
        submit(queue, lambda context, p=priority: order.append(p), priority=priority) for priority in (2, 1, 2, 0, 1)
    ]
    assert [queue.job(job).position for job in ids] == [4, 2, 5, 1, 3]
    assert queue.counts() == (5, 1)
    blocker.finish()
    for job in ids:
        queue.wait(job, timeout_s=SOON)
    assert order == [0, 1, 1, 2, 2]


def test_a_running_job_that_would_let_it_pass_does_not_come_before(queue):
    slow, _ = start(queue, priority=2)
    first = submit(queue, lambda context: None, priority=0)
    second = submit(queue, lambda context: None, priority=2)
    assert (queue.job(first).position, queue.job(second).position) == (0, 2)
    slow.finish()


def test_a_more_urgent_job_goes_first_and_then_the_other_goes_on(queue):
    slow, slow_id = start(queue, priority=2)
    slow.step()
    assert slow.passed.acquire(timeout=SOON)
    urgent = Steered()
    urgent_id = submit(queue, urgent, kind="preview", priority=0)
    assert not urgent.began.wait(0.05)  # the running job has the lane until it comes to a checkpoint
    slow.step()
    assert urgent.began.wait(SOON)
    assert not slow.passed.acquire(timeout=0.05)
    paused = queue.job(slow_id)
    assert (paused.state, paused.message) == (JobState.RUNNING, "paused: another job goes first")
    urgent.step()
    assert urgent.passed.acquire(timeout=SOON)  # nothing is more urgent: it does not wait
    urgent.finish()
    assert slow.passed.acquire(timeout=SOON)
    assert queue.job(urgent_id).state is JobState.DONE
    assert queue.job(slow_id).message == ""
    slow.finish()
    assert queue.wait(slow_id, timeout_s=SOON).state is JobState.DONE


def test_equally_urgent_jobs_do_not_interrupt(queue):
    first, _ = start(queue, priority=0)
    second = Steered()
    submit(queue, second, priority=0)
    first.step()
    assert first.passed.acquire(timeout=SOON)
    assert not second.began.is_set()
    first.finish()
    assert second.began.wait(SOON)
    second.finish()


def test_three_deep(queue):
    works = {}
    for priority in (2, 1, 0):
        if works:
            works[priority + 1].step()
        works[priority], _ = start(queue, priority=priority)
    assert queue.counts() == (0, 3)
    waiting = submit(queue, lambda context: None, priority=0)
    assert queue.job(waiting).position == 1
    for priority in (0, 1, 2):
        works[priority].finish()
        assert works[priority].over.wait(SOON)
        if priority < 2:
            assert works[priority + 1].passed.acquire(timeout=SOON)
    assert queue.job(waiting).state is JobState.DONE
    assert threading.active_count() < 10


def test_the_latest_preview_of_a_session_wins(queue):
    running, first = start(queue, kind="preview", priority=0)
    options = {"kind": "preview", "priority": 0, "replaces": True}
    other = submit(queue, lambda context: None, **options | {"session": "b"})
    measure = submit(queue, lambda context: None)
    second = submit(queue, lambda context: {"never": True}, **options)
    third = submit(queue, lambda context: {"text": "third"}, **options)
    assert queue.job(second).state is JobState.CANCELLED
    assert (queue.job(first).state, queue.job(first).message) == (JobState.RUNNING, "stopping")
    running.step()
    done = queue.wait(third, timeout_s=SOON)
    assert (done.state, done.result) == (JobState.DONE, {"text": "third"})
    assert queue.job(first).state is JobState.CANCELLED
    assert queue.job(second).started_at is None
    assert queue.wait(other, timeout_s=SOON).state is JobState.DONE
    assert queue.wait(measure, timeout_s=SOON).state is JobState.DONE


def test_cancel_what_waits(queue):
    blocker, _ = start(queue)
    called = []
    job = submit(queue, lambda context: called.append(1))
    after = submit(queue, lambda context: None)
    assert queue.job(after).position == 2
    cancelled = queue.cancel(job)
    assert (cancelled.state, cancelled.position, cancelled.error) == (JobState.CANCELLED, 0, None)
    assert cancelled.ended_at is not None
    assert queue.job(after).position == 1
    blocker.finish()
    queue.wait(after, timeout_s=SOON)
    assert called == []


def test_cancel_what_runs_keeps_what_it_has_shown(queue):
    work, job = start(queue)
    pane = Pane(
        id="left", place=Place(), state="sampling", completions=(Completion(text="a", num_tokens=1, done=False),)
    )
    work.context.show([pane])
    work.context.progress(3, 10, "point 3 of 10")
    assert queue.cancel(job).message == "stopping"
    work.step()
    ended = queue.wait(job, timeout_s=SOON)
    assert (ended.state, ended.panes, ended.progress, ended.message) == (
        JobState.CANCELLED, (pane,), 0.3, "point 3 of 10",
    )  # fmt: skip
    assert queue.cancel(job) == ended  # once more does nothing


def test_a_job_that_is_cancelled_while_it_is_paused_ends_when_its_turn_comes(queue):
    slow, slow_id = start(queue, priority=2)
    slow.step()
    urgent, _ = start(queue, kind="preview", priority=0)
    queue.cancel(slow_id)
    assert not slow.over.wait(0.05)  # its clean-up would touch what the urgent one uses
    urgent.finish()
    assert queue.wait(slow_id, timeout_s=SOON).state is JobState.CANCELLED


def test_a_cancelled_job_ends_before_the_next_urgent_one_begins(queue):
    slow, slow_id = start(queue, priority=2)
    slow.step()
    first, _ = start(queue, kind="preview", priority=0)
    seen = []
    second = submit(queue, lambda context: seen.append(queue.job(slow_id).state), kind="preview", priority=0)
    queue.cancel(slow_id)
    first.finish()
    queue.wait(second, timeout_s=SOON)
    assert seen == [JobState.CANCELLED]


def test_work_that_ends_by_itself_is_done_though_it_was_cancelled_late(queue):
    work, job = start(queue)
    queue.cancel(job)
    work.finish()
    assert queue.wait(job, timeout_s=SOON).state is JobState.DONE


def test_progress_has_a_rate_without_pauses():
    now = [0.0]
    queue = JobQueue(clock=lambda: now[0])
    slow, slow_id = start(queue)
    slow.context.progress(0, 10, "point 1 of 10")
    now[0] = 4.0
    slow.context.progress(2, 10)
    job = queue.job(slow_id)
    assert (job.progress, job.seconds_left, job.message) == (0.2, 16.0, "point 1 of 10")
    urgent = Steered()
    submit(queue, urgent, priority=0)
    slow.step()
    assert urgent.began.wait(SOON)
    now[0] = 1000.0
    assert queue.job(slow_id).seconds_left == 16.0
    urgent.finish()
    assert slow.passed.acquire(timeout=SOON)
    now[0] = 1001.0
    slow.context.say("merging")
    job = queue.job(slow_id)
    assert (job.seconds_left, job.message) == (15.0, "merging")
    slow.finish()
    assert queue.wait(slow_id, timeout_s=SOON).seconds_left is None
    queue.close()


def test_marks_count_from_the_submission_and_the_first_one_counts():
    now = [50.0]
    queue = JobQueue(clock=lambda: now[0])
    blocker, _ = start(queue)
    work = Steered()
    job = submit(queue, work)
    now[0] = 53.0
    blocker.finish()
    assert work.began.wait(SOON)
    now[0] = 54.5
    work.context.mark("merged")
    now[0] = 60.0
    work.context.mark("merged")
    work.finish()
    assert queue.wait(job, timeout_s=SOON).timings_s == {"started": 3.0, "merged": 4.5}
    queue.close()


def test_a_users_mistake_is_the_error_of_the_job(queue, caplog):
    def work(context):
        raise RecipeError("eta 3 is out\nof range")

    job = queue.wait(submit(queue, work), timeout_s=SOON)
    assert (job.state, job.error, job.result) == (JobState.FAILED, "eta 3 is out of range", None)
    assert caplog.records == []


@pytest.mark.parametrize("error", [MemoryError(), OutOfMemoryError("CUDA")])
def test_out_of_memory_in_plain_words(queue, error):
    def work(context):
        raise error

    assert queue.wait(submit(queue, work), timeout_s=SOON).error.startswith("out of memory: choose a smaller model")


@pytest.mark.parametrize("error", [KeyError("secret"), SystemExit(0)])
def test_a_fault_of_ours_goes_to_the_log_and_the_lane_goes_on(queue, caplog, error):
    def work(context):
        raise error

    with caplog.at_level(logging.ERROR):
        job = queue.wait(submit(queue, work, title="Measure X"), timeout_s=SOON)
    assert job.error.startswith("a fault of warp-core")
    assert "secret" not in job.error
    (record,) = caplog.records
    assert "Measure X" in record.getMessage()
    assert record.exc_info[1] is error
    assert queue.wait(submit(queue, lambda context: None), timeout_s=SOON).state is JobState.DONE


def test_cancelled_is_no_error_that_work_catches_by_accident():
    assert not issubclass(Cancelled, (ValueError, OSError, RuntimeError))


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
