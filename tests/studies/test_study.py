"""The command `study` on tiny models: all studies are whole, share their runs, stop and go on to the same numbers."""

import csv
import json
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import pytest
from filelock import FileLock

from warp_core import cli
from warp_core.commands import study as command
from warp_core.commands.study import _Sitting
from warp_core.policy.model import pick_device
from warp_core.service.studies import read_studies
from warp_core.studies.catalogue import NAMES, STUDIES
from warp_core.studies.forecast import Forecast
from warp_core.studies.lab import Lab
from warp_core.studies.outcome import gather
from warp_core.studies.scales import make_scale
from warp_core.studies.trainings import Trainings

ISSUE = {
    "anchor", "slerp", "liti", "scaling-m", "iterate", "weights", "hyper", "length", "diversity", "preference",
    "benchmark",
}  # fmt: skip


def test_the_studies_are_those_of_the_paper():
    assert set(NAMES) == ISSUE
    assert set(cli.STUDIES.split(", ")) == ISSUE


def test_all_studies_are_complete(smoke):
    assert smoke.documents.keys() == ISSUE
    for name, document in smoke.documents.items():
        assert document["complete"], name
        assert set(document["missing"].values()) == {0}
        assert document["verdict"] in ("held", "failed", "undecided")
        assert document["claims"]
        assert all(claim["interval"] for claim in document["claims"] if claim["counts"]) or name == "preference"
        assert document["sentence"].startswith(document["verdict"].capitalize())
        assert document["observation"] == STUDIES[name].observation
        assert {"title", "paper", "scale", "seeds", "prompts", "commit", "date", "files", "second_judge"} <= set(
            document
        )


def test_every_study_asks_the_second_judge(smoke):
    for name, document in smoke.documents.items():
        assert document["judge"], name
        assert all(claim["interval"] is not None for claim in document["judge"]), name
        assert any(point["judge"] is not None for point in document["points"]), name


def test_every_file_of_a_study_is_there_and_can_be_read(smoke):
    for name, document in smoke.documents.items():
        folder = smoke.out / name
        with (folder / "smoke.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == len(document["points"]) > 0
        assert float(rows[0]["reward"]) == document["points"][0]["reward"]
        with (folder / "smoke-claims.csv").open(newline="") as file:
            assert len(list(csv.DictReader(file))) == len(document["claims"]) + len(document["judge"])
        picture = ElementTree.parse(folder / "smoke.svg").getroot()
        assert len(picture.findall(".//{*}polyline")) > 1
        page = (folder / "smoke.html").read_text()
        assert "Content-Security-Policy" in page
        assert "<script src" not in page, "the page opens offline"


def test_the_engine_lists_them_for_the_app(smoke, caplog):
    studies = read_studies([smoke.out])
    assert {one.summary.name for one in studies} == ISSUE
    assert caplog.text == ""
    for one in studies:
        document = smoke.documents[one.summary.name]
        assert one.summary.sentence == document["sentence"]
        assert len(one.claims) == len(document["claims"])
        drawn = [line for panel in one.panels for line in panel.lines]
        assert drawn
        assert all(len(line.x_P) == len(line.y_P) > 0 for line in drawn)


def test_the_page_of_results_has_a_sentence_of_each(smoke):
    page = (smoke.out / "results.md").read_text()
    assert page.isascii()
    for name, document in smoke.documents.items():
        assert document["sentence"] in page
        assert f"](./{name}/smoke.svg)" in page


def test_runs_are_shared(smoke):
    runs = [path for path in (smoke.workspace / "studies" / "runs").iterdir() if path.is_dir()]
    # WARP's own, its second iteration, two SFT anchors, mu, beta, one more eta of the init, length with and without.
    assert len(runs) == 9
    assert len(list((smoke.workspace / "studies" / "runs").glob("*/iteration-1/policy-3"))) == 1


def test_a_second_call_finds_everything_and_says_the_same(beside, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(Lab, "do", lambda *_: pytest.fail("there is nothing left to do"))
    assert cli.main(["study", "anchor", "--scale", "smoke", "--json", "--out", str(tmp_path)]) == 0
    said = json.loads(capsys.readouterr().out)
    assert set(said["missing"].values()) == {0}
    assert said["studies"][0]["sentence"] == beside.documents["anchor"]["sentence"]
    assert (
        json.loads((tmp_path / "anchor" / "smoke.json").read_text())["points"] == beside.documents["anchor"]["points"]
    )


def test_a_plan_says_what_is_missing_and_does_nothing(fresh, capsys):
    assert cli.main(["study", "slerp", "--scale", "smoke", "--json", "--plan"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["missing"] == {"runs": 2, "steps": 8, "points": 6, "judged": 3, "texts": 0}
    assert said["left_s"] > 0
    assert said["studies"] == []
    assert not (fresh / "workspace" / "studies" / "smoke").exists()


def test_a_study_that_is_stopped_says_so_and_goes_on_to_the_same_numbers(smoke, fresh, capsys, monkeypatch):
    calls = [0]

    def is_over(self) -> bool:
        calls[0] += 1
        self.over = getattr(self, "over", False) or calls[0] % 4 == 0
        return self.over

    monkeypatch.setattr(_Sitting, "is_over", is_over)
    sittings, partial = 0, None
    while True:
        assert cli.main(["study", "slerp", "--scale", "smoke", "--json", "--out", str(fresh / "out")]) == 0
        said = json.loads(capsys.readouterr().out)
        sittings += 1
        if not any(said["missing"].values()):
            break
        partial = json.loads((fresh / "out" / "slerp" / "smoke.json").read_text())
        assert sittings < 30
    assert sittings > 3
    assert partial is not None
    assert not partial["complete"]
    assert partial["verdict"] == "undecided"
    assert "not finished, missing" in partial["sentence"]
    done = json.loads((fresh / "out" / "slerp" / "smoke.json").read_text())
    whole = smoke.documents["slerp"]
    assert done["points"] == whole["points"]
    assert done["sentence"] == whole["sentence"]


def test_two_processes_share_the_work_and_find_the_same_numbers(smoke, fresh):
    command_line = [sys.executable, "-m", "warp_core", "study", "iterate", "--scale", "smoke", "--json", "--out"]
    processes = [
        subprocess.Popen([*command_line, str(fresh / name)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for name in ("one", "other")
    ]
    said = [process.communicate(timeout=240) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    steps = [line.split(":")[0] for _, err in said for line in err.splitlines() if "KL to the anchor" in line]
    assert len(steps) == 2 * 4 + 2 * 2 == len(set(steps)), "no step is made twice"
    whole = smoke.documents["iterate"]
    for name, (out, _) in zip(("one", "other"), said, strict=True):
        assert set(json.loads(out)["missing"].values()) == {0}
        found = json.loads((fresh / name / "iterate" / "smoke.json").read_text())
        assert found["sentence"] == whole["sentence"]
        # Other studies have had some of its models judged, or given them texts.
        both = ([point | {"judge": None, "nll": None} for point in one["points"]] for one in (found, whole))
        assert next(both) == next(both)


def test_what_another_process_does_is_left_to_it(fresh):
    scale, study = make_scale("smoke"), STUDIES["slerp"]
    root = fresh / "workspace" / "studies"
    lab, other = (
        Lab(scale, root=root, device=pick_device(), trainings=Trainings(root / "runs", device=pick_device()))
        for _ in range(2)
    )
    try:
        config = study.measured(scale, 0)
        pieces = list(lab.pieces(study.curves(scale, 0), config))
        first, second = (piece for piece in pieces if piece.kind == "run")
        point, judge = (next(piece for piece in pieces if piece.kind == kind) for kind in ("point", "judge"))
        with FileLock(lab._lock_file(first, config)):
            assert not other.do(first, config)
            assert other.do(second, config)
            assert not other.do(point, config), "its runs are not done"
        assert other.do(first, config)
        assert not other.do(judge, config), "there is nothing to judge yet"
        assert lab.do(point, config)
        with FileLock(lab._lock_file(point, config)):
            assert not other.do(point, config)
        assert other.do(point, config), "it is there already"
        assert lab.found(point.model, config).judge is None
        assert other.do(judge, config)
        list(lab.pieces(study.curves(scale, 0), config))
        assert lab.found(judge.model, config).judge, "what was known without is looked up again"
    finally:
        lab.close()
        other.close()


def test_seeds_are_run_in_order_and_count_when_begun(smoke, beside, monkeypatch, tmp_path):
    two = {"seeds": (0, 1)}
    made = command.make_scale
    monkeypatch.setattr(command, "make_scale", lambda *a, **o: replace(made(*a, **o), **two))
    monkeypatch.setattr(_Sitting, "is_over", lambda self: True)
    assert cli.main(["study", "slerp", "--scale", "smoke", "--out", str(tmp_path)]) == 0
    document = json.loads((tmp_path / "slerp" / "smoke.json").read_text())
    assert (document["seeds"], document["seeds_planned"]) == ([0], [0, 1])
    assert document["complete"], "the seed that was run is"


def test_a_budget_ends(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("warp_core.commands.study.time.monotonic", lambda: now[0])
    sitting = _Sitting(budget_s=60.0, wished=lambda: False)
    assert not sitting.is_over()
    now[0] = 160.0
    assert sitting.is_over()
    assert not sitting.was_interrupted
    assert _Sitting(budget_s=None, wished=lambda: True).is_over()


def test_what_is_measured_is_what_the_curves_describe(beside):
    scale = make_scale("smoke")
    root = beside.workspace / "studies"
    lab = Lab(scale, root=root, device=pick_device(), trainings=Trainings(root / "runs", device=pick_device()))
    try:
        evidence = gather(STUDIES["liti"], lab, [0])
        (table,) = evidence.tables
        single = {"LITI of M = 1", "LITI of M = 1, policy 2"}
        assert table.keys() == {"LITI of SLERP", "RL run", "moving average", "extrapolation"} | single
        warp, run, alone = table["LITI of SLERP"], table["RL run"], table["LITI of M = 1"]
        for readings in table.values():
            assert readings.kl_PG.shape == readings.reward_PG.shape == (len(readings.at_P), 8)
        assert (warp.kl_PG[0] == 0).all(), "eta = 0 is the SFT policy"
        assert (run.reward_PG[0] == warp.reward_PG[0]).all()
        assert (run.reward_PG[-1] == alone.reward_PG[-1]).all(), "the end of the run is eta = 1 of that policy"
        assert (run.kl_PG[-1] == alone.kl_PG[-1]).all()
        assert (table["extrapolation"].reward_PG[0] == warp.reward_PG[-1]).all()
        assert warp.kl_PG[-1].mean() > warp.kl_PG[1].mean() > 0
        nothing = Forecast.of(list(STUDIES.values()), lab)
        assert nothing.in_words() == "nothing is missing"
        assert nothing.seconds == 0
    finally:
        lab.close()


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["study", "anchr", "--scale", "smoke"], "no study 'anchr'"),
        (["study", "slerp", "--scale", "smoke", "--text", "nowhere.txt"], "nowhere.txt"),
    ],
)
def test_mistakes_are_one_line(fresh, capsys, argv, named):
    assert cli.main(argv) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert len(said.err.splitlines()) == 1
    assert named in said.err
