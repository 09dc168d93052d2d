"""The Studies page over made-up studies."""

import pytest

from tests.app.pages_seen import codes, figures, seen
from warp_core.errors import EngineUnreachableError


def test_a_study_is_shown_with_its_figure_and_claims(open_page):
    page = open_page("studies")
    assert not page.exception
    text = seen(page)
    assert "Held: LITI of SLERP lies above the runs by 0.42 [0.31, 0.55]" in text
    assert "Tested: LITI of SLERP lies above the RL trajectories." in text
    (plot,) = figures(page)
    assert [trace["name"] for trace in plot["data"]] == ["SLERP", "RL run"]
    assert plot["data"][0]["hovertext"][1] == "eta 0.3, seed 0"
    assert plot["layout"]["xaxis"]["title"]["text"].startswith("KL")
    claims, judge = (table.value for table in page.dataframe)
    assert list(claims["verdict"]) == ["held", "undecided"]
    assert list(judge["claim"]) == ["second judge: 1.2 [0.9, 1.5]"]
    assert codes(page)[0].splitlines()[0] == "/workspace/runs/studies/cpu/liti/cpu.csv"


def test_one_that_is_not_finished_says_so(open_page):
    page = open_page("studies")
    assert "not finished" in page.radio(key="study").proto.captions[1]
    page.radio(key="study").set_value(1).run()
    assert not page.exception
    assert "Undecided: nothing measured yet; not finished, missing 3 runs." in seen(page)
    assert figures(page) == []


def test_without_studies_the_command_is_there(open_page, fake, monkeypatch):
    monkeypatch.setattr(fake, "studies", list)
    page = open_page("studies")
    assert "No study was run yet" in seen(page)
    assert codes(page) == ["warp-core study all --budget-minutes 60"]


def test_hostile_names_are_text(open_page, fake, monkeypatch):
    (first, _) = (fake.study("liti", "cpu"), None)
    text = "<img src=x onerror=alert(1)> :red[x] [a](http://b)"
    line = first.panels[0].lines[0].model_copy(update={"name": text})
    panel = first.panels[0].model_copy(update={"lines": (line,)})
    summary = first.summary.model_copy(update={"title": text})
    study = first.model_copy(update={"summary": summary, "panels": (panel,)})
    monkeypatch.setattr(fake, "studies", lambda: [summary])
    monkeypatch.setattr(fake, "study", lambda name, scale: study)
    page = open_page("studies")
    assert not page.exception
    assert figures(page)[0]["data"][0]["name"].startswith("&lt;img")
    assert "\\[x\\]" in page.subheader[0].value


def test_an_engine_that_is_gone(open_page, fake):
    fake.down = True
    with pytest.raises(EngineUnreachableError):
        fake.studies()
    assert open_page("studies").exception
