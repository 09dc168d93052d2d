import json
from dataclasses import replace

import pytest

from bench import scale
from bench.growth import PARTS
from bench.models import SHAPES
from bench.processes import Done, ProcessError
from bench.rows import read_rows, rows_to_json
from bench.scale import Series, Spot, exponent, fit_line, plans, rows_of


def spots(values):
    return tuple(Spot(label=str(x), x=float(x), seconds=seconds) for x, seconds in values)


def series(values, *, fitted=None, along="batch"):
    found = spots(values)
    return Series(
        part="sampling",
        along=along,
        case="135M",
        expected="linear",
        spots=found,
        fitted=len(found) if fitted is None else fitted,
    )


def test_exponents_of_powers_are_found():
    assert exponent(spots([(x, 3 * x**1.5) for x in (1, 2, 7, 40)])) == pytest.approx(1.5)
    assert exponent(spots([(1, 2.0), (2, 2.0)])) == pytest.approx(0.0)


def test_a_line_and_the_distance_from_it():
    assert fit_line(spots([(1, 3.0), (2, 5.0), (3, 7.0)])) == pytest.approx((1.0, 2.0, 0.0))
    # 1, 4, 1: the line is their mean 2, which is a whole 1 away from the first.
    assert fit_line(spots([(1, 1.0), (2, 4.0), (3, 1.0)])) == pytest.approx((2.0, 0.0, 1.0))


@pytest.mark.parametrize(("power", "verdict"), [(1.0, "linear"), (0.5, "below linear"), (1.3, "above linear")])
def test_rows_say_whether_it_is_linear(power, verdict):
    *_, last = rows_of(series([(x, 0.1 * x**power) for x in (1, 2, 4)]))
    assert last.value == pytest.approx(power)
    assert last.note.startswith(f"{verdict}; expected: linear")
    assert last.meets is (power < 1.15)
    assert last.quantity == "exponent in batch"
    assert read_rows(json.dumps(rows_to_json([last]))) == [last]


def test_overhead_is_shown_and_not_fitted():
    found = rows_of(series([(1, 100.0), (10, 1.0), (20, 2.0), (40, 4.0)], fitted=3))
    assert [row.value for row in found[:-1]] == [100_000, 1000, 2000, 4000]
    assert found[-1].value == pytest.approx(1.0)
    assert len(rows_of(series([(1, 1.0), (2, 2.0)], fitted=1))) == 2


def test_every_plan_is_work_that_exists():
    for quick in (False, True):
        for part, along, _, _, tasks in plans(quick):
            assert part in PARTS
            assert along in ("parameters", "policies", "batch")
            assert all(task["size"] in SHAPES for task in tasks)
            assert len(tasks) > 1 or (quick and along == "parameters")
    assert [task["batch"] for task in plans(False)[3][4]] == [1, 4, 16, 64]
    assert [task["m"] for task in plans(False)[1][4]] == [2, 3, 5]


@pytest.fixture
def pretended(monkeypatch, tmp_path):
    """Inputs that cost nothing and processes that say what they were asked; batch 4 fails."""

    def run(command, **_):
        task = json.loads((tmp_path / command[-1] / "task.json").read_text(encoding="ascii"))
        if task["batch"] == 4 and task["part"] == "sampling":
            raise ProcessError("no luck")
        return Done(wall_s=1.0, private_mb=1.0, out=json.dumps({"seconds": 0.01 * task["batch"] * task["m"]}))

    def inputs(scratch, _, *, size, dtype, policies):
        folders = tuple(scratch / f"{number}" for number in range(policies))
        return _Inputs(scratch / size, folders)

    monkeypatch.setattr(scale, "run_measured", run)
    monkeypatch.setattr(scale, "make_inputs", inputs)


class _Inputs:
    def __init__(self, init, policies, size_bytes=1000):
        self.init, self.policies, self.size_bytes = init, policies, size_bytes


def test_what_fails_is_told_and_the_rest_is_kept(pretended, settings, capsys):
    found = scale.measure(settings)
    cases = [row.case for row in found]
    assert "sampling: tiny, batch 1" in cases
    assert "sampling: tiny, batch 4" not in cases
    assert "no luck" in capsys.readouterr().err
    assert {path.name for path in settings.scratch.iterdir()} == {"scale.svg", "scale.html"}


def test_a_size_without_room_is_left_out(pretended, settings, monkeypatch, capsys):
    monkeypatch.setattr(scale, "make_inputs", lambda *_, **__: _Inputs(settings.scratch, (), 10**15))
    assert scale.measure(replace(settings, quick=True)) == []
    assert "too little" in capsys.readouterr().err
