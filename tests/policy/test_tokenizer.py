"""One tokenizer for all folders that have the same: loading one for each job lets a process grow."""

import json
import shutil

import pytest

from tests.tiny import make_model
from warp_core.errors import CheckpointError
from warp_core.policy.model import load_policy
from warp_core.policy.tokenizer import KEPT, load_tokenizer


def test_folders_with_the_same_files_share_a_tokenizer(tmp_path):
    one, two = (make_model("llama", tmp_path / name, seed=seed) for name, seed in (("a", 0), ("b", 1)))
    assert load_tokenizer(one) is load_tokenizer(two)
    assert load_policy(one).tokenizer is load_policy(two).tokenizer


@pytest.mark.parametrize("name", ["chat_template.jinja", "tokenizer_config.json", "additional_chat_templates/a.jinja"])
def test_a_file_that_changes_gives_another_tokenizer(tmp_path, name):
    folder = make_model("llama", tmp_path / "a")
    before = load_tokenizer(folder)
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".json":
        path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token": "<pad>"}))
    else:
        path.write_text("another {{ messages[0]['content'] }}")
    after = load_tokenizer(folder)
    assert after is not before
    assert (after.eos_token, after.chat_template) != (before.eos_token, before.chat_template)


def test_a_folder_that_has_none_any_longer_is_refused(tmp_path):
    folder = make_model("llama", tmp_path / "a")
    load_tokenizer(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match="no usable tokenizer in"):
        load_tokenizer(folder)


def test_few_are_kept(tmp_path):
    first = make_model("llama", tmp_path / "0")
    kept = load_tokenizer(first)
    for number in range(1, KEPT + 1):
        folder = tmp_path / str(number)
        shutil.copytree(first, folder)
        (folder / "chat_template.jinja").write_text(f"{number}")
        load_tokenizer(folder)
    assert load_tokenizer(first) is not kept
