"""Prompt files, chat templates, padding on the left, groups."""

import pytest
import torch

from tests.tiny import make_tokenizer
from tests.toy import CPU
from warp_core.errors import PromptError
from warp_core.policy.prompts import BUILT_IN_PROMPTS, encode_prompts, prompts_id, read_prompts


def test_text_files_give_one_prompt_a_line(tmp_path):
    file = tmp_path / "p.txt"
    file.write_text("  The film \n\n\tA plot\r\n\u00fcber\n", encoding="utf-8")
    assert read_prompts(str(file)) == ("The film", "A plot", "\u00fcber")


def test_json_lines(tmp_path):
    file = tmp_path / "p.jsonl"
    file.write_text('{"prompt": "two\\nlines", "id": 3}\n\n{"prompt": " x "}\n', encoding="utf-8")
    assert read_prompts(str(file)) == ("two\nlines", "x")


@pytest.mark.parametrize("line", ["plain", "[1]", '{"text": "x"}', '{"prompt": 3}', '{"prompt": "  "}'])
def test_a_bad_line_is_named(line, tmp_path):
    file = tmp_path / "p.jsonl"
    file.write_text(f'{{"prompt": "x"}}\n{line}\n', encoding="utf-8")
    with pytest.raises(PromptError, match=r"p\.jsonl, line 2"):
        read_prompts(str(file))


def test_missing_empty_and_binary_files(tmp_path):
    with pytest.raises(PromptError, match="No such file"):
        read_prompts(str(tmp_path / "none.txt"))
    with pytest.raises(PromptError, match="directory"):
        read_prompts(str(tmp_path))
    (tmp_path / "blank.txt").write_text(" \n\n")
    with pytest.raises(PromptError, match="no prompt in"):
        read_prompts(str(tmp_path / "blank.txt"))
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PromptError, match="not UTF-8"):
        read_prompts(str(tmp_path / "binary.txt"))


def test_built_in_sets_are_disjoint():
    train, held_out = (read_prompts(name) for name in BUILT_IN_PROMPTS)
    assert len(train) >= 100
    assert len(held_out) >= 64
    assert not set(train) & set(held_out)
    assert len(set(train)) == len(train)
    assert len(set(held_out)) == len(held_out)


def test_padding_is_on_the_left_and_masked():
    batch = encode_prompts(["abc", "a"], make_tokenizer(), chat_template=False, device=CPU)
    assert batch.ids_BP.shape == (2, 3)
    assert batch.mask_BP.tolist() == [[1, 1, 1], [0, 0, 1]]
    assert batch.ids_BP[1, 2] == batch.ids_BP[0, 0]
    assert batch.ids_BP[1, :2].tolist() == [256, 256]


def test_the_chat_template_opens_the_assistants_turn():
    tokenizer = make_tokenizer()
    batch = encode_prompts(["hi"], tokenizer, chat_template=True, device=CPU)
    assert tokenizer.decode(batch.ids_BP[0]) == "<|user|>hi<eos><|assistant|>"
    assert batch.texts == ("hi",)


def test_no_chat_template_and_no_token():
    tokenizer = make_tokenizer()
    with pytest.raises(PromptError, match="has no token"):
        encode_prompts([""], tokenizer, chat_template=False, device=CPU)
    tokenizer.chat_template = None
    with pytest.raises(PromptError, match="no chat template"):
        encode_prompts(["hi"], tokenizer, chat_template=True, device=CPU)


def test_repeat_keeps_groups_and_rows_cut_them():
    batch = encode_prompts(["a", "bc"], make_tokenizer(), chat_template=False, device=CPU).repeat(3)
    assert batch.texts == ("a", "a", "a", "bc", "bc", "bc")
    assert batch.group == 3
    assert torch.equal(batch.ids_BP[3], batch.ids_BP[5])
    assert batch.rows(3, 6).group == 3
    assert batch.rows(3, 99).group == 3
    assert batch.rows(2, 6).group == 1
    assert batch.rows(0, 4).group == 1
    assert batch.repeat(2).group == 6


def test_the_id_depends_on_order():
    assert prompts_id(["a", "b"]) != prompts_id(["b", "a"])
    assert prompts_id(["ab"]) != prompts_id(["a", "b"])
    assert prompts_id(["a", "b"]) == prompts_id(("a", "b"))
