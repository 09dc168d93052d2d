"""Work for a job queue that goes from checkpoint to checkpoint when it is told to."""

import threading
import time

SOON = 10.0  # seconds; only a failing test waits so long


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
