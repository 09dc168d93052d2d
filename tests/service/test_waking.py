"""An engine that is asked before it is there: calls wait for it, and hear why there is none."""

import threading

import pytest

from warp_core.errors import WorkspaceError
from warp_core.service.fake import FakeEngine
from warp_core.service.protocol import Selection
from warp_core.service.waking import WakingEngine


class Closable(FakeEngine):
    is_closed = False

    def close(self):
        self.is_closed = True


def test_calls_wait_and_are_answered_by_the_engine():
    may_be, engine, answers = threading.Event(), Closable(), []

    def make():
        assert may_be.wait(20)
        return engine

    waking = WakingEngine(make)
    caller = threading.Thread(target=lambda: answers.append(waking.runs()))
    caller.start()
    caller.join(0.05)
    assert answers == []
    may_be.set()
    caller.join(20)
    assert [run.name for run in answers[0]] == [run.name for run in engine.runs()]
    selection = Selection(run=answers[0][0].name)
    assert waking.prompts(selection) == engine.prompts(selection)
    waking.close()
    assert engine.is_closed


def test_why_there_is_none_is_heard_by_everybody():
    may_fail, heard = threading.Event(), threading.Event()

    def make():
        assert may_fail.wait(20)
        raise WorkspaceError("no room")

    waking = WakingEngine(make)
    waking.when_failed(heard.set)
    assert not heard.is_set()
    may_fail.set()
    assert heard.wait(20)
    for call in (waking.runs, waking.close):
        with pytest.raises(WorkspaceError, match="no room"):
            call()
    late = threading.Event()
    waking.when_failed(late.set)
    assert late.is_set()


def test_it_has_the_methods_of_an_engine_alone():
    waking = WakingEngine(Closable)
    assert not hasattr(waking, "nonsense")
    failed = threading.Event()
    assert waking.status().version
    waking.when_failed(failed.set)
    assert not failed.is_set()
