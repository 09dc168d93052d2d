import pytest

from bench import timing


def test_calls_take_turns_and_the_first_rounds_do_not_count(monkeypatch):
    clock, order = [0.0], []
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])

    def call(name, seconds):
        order.append(name)
        clock[0] += seconds * (10 if len(order) <= 2 else 1)

    found = timing.interleaved_s({"a": lambda: call("a", 1.0), "b": lambda: call("b", 2.0)}, repeats=2)
    assert order == ["a", "b"] * 3
    assert found == {"a": [1.0, 1.0], "b": [2.0, 2.0]}


def test_the_median_of_an_uneven_call(monkeypatch):
    clock, steps = [0.0], iter([5.0, 1.0, 9.0, 2.0])
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])

    def call():
        clock[0] += next(steps)

    assert timing.median_s(call, repeats=3) == pytest.approx(2.0)
