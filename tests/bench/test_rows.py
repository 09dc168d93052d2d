import json
from dataclasses import replace

import pytest
from pydantic import ValidationError

from bench.rows import read_rows, rows_to_json, write_rows


def test_rows_come_back_as_they_were(tmp_path, rows):
    write_rows(tmp_path / "rows.json", rows)
    assert read_rows((tmp_path / "rows.json").read_bytes()) == rows


def test_fields_that_say_nothing_are_left_out(rows):
    assert rows_to_json(rows)[1] == {
        "bench": "front",
        "case": "11 etas",
        "quantity": "wall time",
        "value": 30.0,
        "unit": "s",
    }


def test_a_number_without_a_unit_comes_back(tmp_path, rows):
    bare = replace(rows[1], unit="", value=0.0)
    write_rows(tmp_path / "rows.json", [bare])
    assert read_rows((tmp_path / "rows.json").read_bytes()) == [bare]


def test_a_number_that_misses_its_aim_is_kept_as_such(tmp_path, rows):
    missed = [{**rows_to_json(rows)[0], "meets": False}]
    assert read_rows(json.dumps(missed))[0].meets is False


@pytest.mark.parametrize("wrong", ["{}", '[{"bench": "merge"}]', "no JSON"])
def test_what_is_no_list_of_rows_is_refused(wrong):
    with pytest.raises(ValidationError):
        read_rows(wrong)
