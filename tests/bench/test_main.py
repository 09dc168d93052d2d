import json
import re

import pytest

from bench import __main__ as command
from bench import document
from bench.rows import Row
from bench.running import Outcome


@pytest.fixture
def ran(monkeypatch, tmp_path):
    """Benches that are pretended; what was run with which limits."""
    done = []

    def run_bench(name, settings, *, timeout_s):
        done.append((name, dict(settings.limits)))
        if name == "front":
            return Outcome(name=name, rows=[], problem="ended with code 1")
        if name == "serving":
            raise KeyboardInterrupt
        return Outcome(name=name, rows=[Row(bench=name, case="copy_gb_s", quantity="q", value=2.0, unit="s")])

    readme = tmp_path / "README.md"
    readme.write_text("<!-- begin:results -->\n<!-- end:results -->\n", encoding="ascii")
    monkeypatch.setattr(command, "run_bench", run_bench)
    monkeypatch.setattr(command, "embedded_model", lambda: tmp_path)
    monkeypatch.setattr(command, "RESULTS", tmp_path / "results")
    performance = tmp_path / "performance.md"
    performance.write_text(readme.read_text(encoding="ascii"), encoding="ascii")
    monkeypatch.setattr(document, "README", readme)
    monkeypatch.setattr(document, "PERFORMANCE", performance)
    return done


def run(tmp_path, *arguments):
    return command.main([*arguments, "--peers", "none", "--scratch", str(tmp_path / "scratch")])


def test_limits_are_measured_first_and_given_to_the_others(ran, tmp_path, capsys):
    assert run(tmp_path, "merge", "--quick") == 0
    assert ran == [("limits", {}), ("merge", {"copy_gb_s": 2.0})]
    assert "### merge" in capsys.readouterr().out
    assert not (tmp_path / "results").exists(), "a part of the benches is printed, not published"


def test_one_that_fails_does_not_stop_the_others(ran, tmp_path):
    out = tmp_path / "x.json"
    assert run(tmp_path, "front", "merge", "--out", str(out)) == 1
    assert [name for name, _ in ran] == ["limits", "front", "merge"]
    found = json.loads(out.read_text(encoding="ascii"))
    assert found["problems"] == {"front": "ended with code 1"}
    assert [row["bench"] for row in found["rows"]] == ["limits", "merge"]
    assert found["complete"] is False


def test_an_interrupt_keeps_what_was_measured(ran, tmp_path, capsys):
    out = tmp_path / "x.json"
    assert run(tmp_path, "merge", "serving", "scale", "--out", str(out)) == 130
    assert [row["bench"] for row in json.loads(out.read_text(encoding="ascii"))["rows"]] == ["limits", "merge"]
    assert "interrupted" in capsys.readouterr().err


def test_a_whole_run_that_is_interrupted_stays_partial(ran, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "BENCHES", ("limits", "merge", "serving"))
    assert run(tmp_path) == 130
    (file,) = (tmp_path / "results").iterdir()
    assert file.name.endswith(".partial.json")
    assert json.loads(file.read_text(encoding="ascii"))["complete"] is False
    assert "merge" not in (tmp_path / "README.md").read_text(encoding="ascii")


def test_a_whole_run_is_dated_and_stands_in_the_readme(ran, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "BENCHES", ("limits", "merge"))
    assert run(tmp_path) == 0
    (file,) = (tmp_path / "results").iterdir()
    assert re.fullmatch(r"20\d\d-\d\d-\d\d\.json", file.name)
    assert json.loads(file.read_text(encoding="ascii"))["complete"] is True
    assert "### merge" in (tmp_path / "README.md").read_text(encoding="ascii")


def test_a_bench_that_is_not_there_is_refused(ran, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run(tmp_path, "merg")
    assert "no bench is called 'merg'" in capsys.readouterr().err
    assert ran == []
