"""Rates and what is left, on a clock that the test moves."""

import pytest

from warp_core.service.pace import Pace


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def test_nothing_is_known_before_the_first_report(clock):
    pace = Pace(clock)
    clock.now += 5
    assert (pace.share, pace.seconds_left) == (None, None)


def test_the_rate_counts_from_the_first_report(clock):
    pace = Pace(clock)
    clock.now += 60  # loading
    pace.report(2, 10)  # two were there already
    assert (pace.share, pace.seconds_left) == (0.2, None)
    clock.now += 4
    pace.report(4, 10)
    assert (pace.share, pace.seconds_left) == (0.4, 12.0)  # 2 s each, 6 left


def test_it_counts_down_between_reports_but_not_below_zero(clock):
    pace = Pace(clock)
    pace.report(0, 4)
    clock.now += 10
    pace.report(1, 4)
    assert pace.seconds_left == 30
    clock.now += 12.5
    assert pace.seconds_left == 17.5
    clock.now += 100
    assert pace.seconds_left == 0


def test_a_pause_counts_for_nothing(clock):
    pace = Pace(clock)
    pace.report(0, 4)
    clock.now += 3
    pace.pause()
    clock.now += 1000
    assert pace.seconds_left is None
    pace.resume()
    clock.now += 2
    pace.report(1, 4)
    assert pace.seconds_left == 15  # 5 s each
    pace.pause()
    clock.now += 1000
    assert pace.seconds_left == 15
    pace.resume()
    clock.now += 1
    assert pace.seconds_left == 14


def test_resuming_without_a_pause_changes_nothing(clock):
    pace = Pace(clock)
    pace.report(0, 2)
    clock.now += 1
    pace.resume()
    pace.report(1, 2)
    assert pace.seconds_left == 1


@pytest.mark.parametrize(("done", "total"), [(1, 8), (0, 4)])
def test_other_work_starts_anew(clock, done, total):
    pace = Pace(clock)
    pace.report(0, 4)
    clock.now += 10
    pace.report(2, 4)
    clock.now += 10
    pace.report(done, total)
    assert (pace.share, pace.seconds_left) == (done / total, None)
    clock.now += 1
    pace.report(done + 1, total)
    assert pace.seconds_left == total - done - 1


@pytest.mark.parametrize(("done", "total", "share"), [(5, 4, 1.0), (-1, 4, 0.0), (1, 0, None), (0, 0, None)])
def test_nonsense_stays_within_bounds(clock, done, total, share):
    pace = Pace(clock)
    pace.report(0, total)
    clock.now += 1
    pace.report(done, total)
    assert pace.share == share
    assert pace.seconds_left in (None, 0.0)


def test_two_reports_at_the_same_moment_give_no_rate(clock):
    pace = Pace(clock)
    pace.report(0, 3)
    pace.report(1, 3)
    assert pace.seconds_left is None
