from dataclasses import replace

import pytest

from bench import document
from bench.document import begin_document, pages, read_document, with_outcome, write_document
from bench.rows import Row
from bench.running import Outcome

TEXT = "before\n<!-- begin:results -->\nold\n<!-- end:results -->\nafter\n"


def test_a_document_keeps_rows_limits_and_problems(tmp_path, settings, rows):
    limit = Row(bench="limits", case="copy_gb_s", quantity="memory copy", value=21.5, unit="GB/s")
    found = begin_document(settings)
    found = with_outcome(found, Outcome(name="limits", rows=[limit]))
    found = with_outcome(found, Outcome(name="merge", rows=rows))
    found = with_outcome(found, Outcome(name="front", rows=[], problem="ended with code 1"))
    assert found.limits == {"copy_gb_s": 21.5}
    assert found.rows == [limit, *rows]
    assert found.problems == {"front": "ended with code 1"}
    write_document(tmp_path / "deep" / "x.json", found)
    assert read_document(tmp_path / "deep" / "x.json") == found
    assert not list(tmp_path.glob("deep/*.tmp"))


def test_a_document_says_where_it_was_made(settings):
    made = begin_document(settings)
    assert made.quick is True
    assert made.versions["torch"]
    assert made.machine["cores"] >= 1
    assert made.date.startswith("20")


@pytest.fixture
def two_pages(tmp_path, monkeypatch):
    """The pages that show a run."""
    for name in ("README", "PERFORMANCE"):
        (tmp_path / name).write_text(TEXT, encoding="ascii")
        monkeypatch.setattr(document, name, tmp_path / name)
    return tmp_path / "README", tmp_path / "PERFORMANCE"


def test_the_tables_stand_between_their_markers(two_pages, settings, rows):
    readme, performance = two_pages
    made = replace(begin_document(settings), rows=rows, problems={"scale": "took longer than 900 s"})
    found = pages(made)
    for text in found.values():
        assert text.startswith("before\n<!-- begin:results -->\n20")
        assert text.endswith("<!-- end:results -->\nafter\n")
        assert "old" not in text
        assert "`scale` gave no rows: took longer than 900 s." in text
        assert "### merge" in text
    assert "### front" in found[readme]
    assert "### front" not in found[performance], "it has no aim"
    assert "scale.svg" not in found[readme]
    grown = pages(replace(made, rows=[*rows, replace(rows[1], bench="scale")]))
    assert "results/scale.svg" in grown[readme]
    assert "scale.svg" not in grown[performance]
    readme.write_text(found[readme], encoding="ascii")
    assert pages(made) == found
    readme.write_text("no markers", encoding="ascii")
    with pytest.raises(ValueError, match="README needs <!-- begin:results -->"):
        pages(made)


def test_the_newest_document_is_found_by_its_date(tmp_path, monkeypatch):
    monkeypatch.setattr(document, "RESULTS", tmp_path)
    assert document.newest() is None
    for name in ("2026-01-31.json", "2026-02-01.json", "partial.json"):
        (tmp_path / name).touch()
    assert document.newest() == tmp_path / "2026-02-01.json"
