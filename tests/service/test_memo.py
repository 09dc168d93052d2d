"""Answers are kept exactly as long as their files are the same."""

import os
import time

from warp_core.service.memo import Memo, stamp_of


def aged(file, seconds=60):
    then = time.time() - seconds
    os.utime(file, (then, then))


def test_a_stamp_is_the_same_while_a_file_is(tmp_path):
    file = tmp_path / "a"
    file.write_text("one")
    aged(file)
    before = stamp_of([file, tmp_path / "none"])
    assert stamp_of([file, tmp_path / "none"]) == before
    file.write_text("two")
    aged(file, 30)
    assert stamp_of([file, tmp_path / "none"]) != before


def test_a_file_that_changed_just_now_is_never_taken_for_the_same(tmp_path):
    """Two writes within one tick of the file system's clock have the same time."""
    file = tmp_path / "a"
    file.write_text("one")
    assert stamp_of([file]) != stamp_of([file])


def test_a_file_that_comes_or_goes(tmp_path):
    file = tmp_path / "a"
    before = stamp_of([file])
    assert before == stamp_of([file]) == (None,)
    file.write_text("one")
    aged(file)
    assert stamp_of([file]) != before


def test_an_answer_is_computed_once_for_a_stamp():
    memo, made = Memo(), []
    for stamp in (1, 1, 2, 2, 1):
        memo.get("key", stamp, lambda stamp=stamp: made.append(stamp))
    assert made == [1, 2, 1]
    assert memo.get("other", 1, lambda: "x") == "x"


def test_only_the_latest_are_kept():
    memo, made = Memo(size=2), []
    for key in ("a", "b", "c", "a", "c"):
        memo.get(key, 0, lambda key=key: made.append(key) or key)
    assert made == ["a", "b", "c", "a"]
