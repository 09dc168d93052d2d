"""What was changed by one byte is not read back."""

import pytest

from warp_core.workspace.sealed import read_sealed, write_sealed

CONTENT = {"numbers": [0.1, 1e300, -3, None], "text": "a\n\u00fc", "deep": {"b": {"c": True}}}


def test_what_was_written_comes_back(tmp_path):
    write_sealed(tmp_path / "x.json", CONTENT)
    assert read_sealed(tmp_path / "x.json") == CONTENT


def test_every_changed_byte_is_found(tmp_path):
    path = tmp_path / "x.json"
    write_sealed(path, CONTENT)
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 2]) + whole[place + 1 :])
        assert read_sealed(path) in (None, CONTENT), place
        path.write_bytes(whole[:place])
        assert read_sealed(path) in (None, CONTENT), place


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", "3", '{"sha256": 1, "content": {}}', "[" * 100_000])
def test_anything_else_is_nothing(text, tmp_path):
    (tmp_path / "x.json").write_text(text)
    assert read_sealed(tmp_path / "x.json") is None
    assert read_sealed(tmp_path / "none.json") is None
