"""Studies as the engine lists them: what `warp-core study` wrote, and nothing that only looks like it."""

import json

import pytest

from warp_core.errors import WorkspaceError
from warp_core.service.studies import find_study, read_studies, study_folders
from warp_core.workspace.paths import workspace_root

STORED = {
    "study": "liti",
    "scale": "cpu",
    "title": "LITI",
    "paper": {"figure": "Fig. 4a, 9"},
    "observation": "it holds",
    "verdict": "held",
    "sentence": "Held.",
    "complete": True,
    "date": "2026-11-23",
    "claims": [{"verdict": "held", "sentence": "a", "counts": True, "name": "x"}],
    "judge": [],
    "panels": [
        {
            "x_label": "KL",
            "y_label": "reward",
            "lines": [
                {
                    "name": "SLERP",
                    "color": "#3b6fd4",
                    "dash": "solid",
                    "x": [0, 1.5],
                    "y": [0.0, 1.0],
                    "y_se": [],
                    "notes": [],
                    "in_legend": True,
                }
            ],
        }
    ],
    "made": "so",
    "files": {"points": "cpu.csv"},
}


def put(folder, **changes):
    stored = STORED | changes
    path = folder / stored["study"] / f"{stored['scale']}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(stored))
    return path


def test_the_order_is_that_of_the_paper_and_the_first_folder_wins(tmp_path):
    put(tmp_path / "a", sentence="Mine.")
    put(tmp_path / "b")
    put(tmp_path / "b", study="length", paper={"figure": "Fig. 18"})
    put(tmp_path / "b", study="preference", paper={"figure": "Table 1"})
    put(tmp_path / "b", study="anchor", paper={"figure": "Fig. 3a, 12"})
    studies = read_studies([tmp_path / "a", tmp_path / "b", tmp_path / "none"])
    assert [one.summary.name for one in studies] == ["anchor", "liti", "length", "preference"]
    liti = find_study(studies, "liti", "cpu")
    assert liti.summary.sentence == "Mine."
    assert liti.panels[0].lines[0].x_P == (0.0, 1.5)
    assert liti.files == ("cpu.csv",)
    with pytest.raises(WorkspaceError, match="no study 'liti' of scale 'gpu'"):
        find_study(studies, "liti", "gpu")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[" * 100_000,
        "[]",
        '{"run": 1}',
        json.dumps(STORED | {"verdict": "great"}),
        json.dumps(STORED | {"panels": [{"lines": 3}]}),
        json.dumps({**STORED, "panels": [{**STORED["panels"][0], "lines": [{"color": "url(x)"}]}]}),
        '{"study": "a", "panels": [], "x": NaN}',
        "\x00\xff",
    ],
)
def test_what_is_damaged_is_left_out(text, tmp_path):
    put(tmp_path)
    path = put(tmp_path, study="broken")
    path.write_bytes(text.encode("latin-1"))
    assert [one.summary.name for one in read_studies([tmp_path])] == ["liti"]


def test_a_study_that_was_written_again_is_read_again(tmp_path):
    path = put(tmp_path)
    assert read_studies([tmp_path])[0].summary.sentence == "Held."
    path.write_text(json.dumps(STORED | {"sentence": "Held, after all."}))
    assert read_studies([tmp_path])[0].summary.sentence == "Held, after all."


def test_runs_of_studies_are_none():
    (workspace_root() / "studies" / "runs").mkdir(parents=True)
    (workspace_root() / "studies" / "smoke").mkdir()
    names = [folder.name for folder in study_folders()]
    assert names == ["smoke", "studies"]
