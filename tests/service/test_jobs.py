"""Lanes, priorities, latest wins, cancel, progress, errors. Work is steered by events; nothing here sleeps for luck."""

import logging
import threading
import time

import pytest

from tests.service.steered import SOON, Steered, start, submit
from warp_core.errors import RecipeError
from warp_core.service.jobs import Cancelled, JobQueue
from warp_core.service.protocol import Completion, JobState, Pane, Place


class OutOfMemoryError(RuntimeError):
    """Stands in for torch's."""


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
