"""What is offered for copying runs, whatever folders and prompts are called."""

import ast
import contextlib
import io

import pytest

from tests.service.selections import TINY, Heard
from warp_core.service.exports import export
from warp_core.service.protocol import ExportRequest, Place
from warp_core.service.snippets import VLLM_RANKS, adapter_snippets, model_snippets

NASTY = "it's a \"film\"\n'''\\ {x} \u2028 '); import os; os.abort() #"
HOW = {"max_new_tokens": 5, "temperature": 0.9}


@pytest.mark.parametrize("chat", [False, True])
def test_names_and_prompts_are_only_ever_texts(chat):
    texts = [
        *model_snippets(NASTY, prompt=NASTY, chat=chat, **HOW),
        *adapter_snippets(NASTY, base=NASTY, name=NASTY, rank=4, prompt=NASTY, chat=chat, **HOW),
    ]
    for text in texts:
        nodes = list(ast.walk(ast.parse(text)))
        assert any(isinstance(node, ast.Constant) and node.value == NASTY for node in nodes)
        imported = {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
        assert imported <= {"transformers", "peft", "vllm", "vllm.lora.request"}
        assert not any(isinstance(node, ast.Import) for node in nodes)
        assert ("chat" in text) == chat


@pytest.mark.parametrize(("rank", "allowed"), [(1, 8), (8, 8), (9, 16), (48, 64), (512, 512), (600, 600)])
def test_vllm_gets_a_rank_that_it_knows(rank, allowed):
    _, vllm = adapter_snippets("f", base="b", name="n", rank=rank, prompt="p", chat=False, **HOW)
    assert f"max_lora_rank={allowed})" in vllm
    assert list(VLLM_RANKS) == sorted(VLLM_RANKS)


@pytest.mark.parametrize("form", ["full", "adapter"])
@pytest.mark.parametrize("chat", [False, True])
def test_the_first_snippet_runs(library, form, chat):
    config = library.run_folder("tiny").config_file
    config.write_text(config.read_text().replace("chat_template = false", f"chat_template = {str(chat).lower()}"))
    request = ExportRequest(
        session="s", selection=TINY, place=Place(iteration=2, eta=0.3), name="out", form=form, verify=False
    )
    report = export(library, request, Heard())
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(report["snippet_transformers"], {})
    assert library.prompts(TINY)[0] in said.getvalue()
    assert report["out"] in report["snippet_vllm"]


def test_an_adapter_of_several_ranks_asks_for_the_largest(library, made):
    request = ExportRequest(
        session="s", selection=made.lora, place=Place(eta=0.5), name="out", form="adapter", verify=False
    )
    report = export(library, request, Heard())
    assert "max_lora_rank=16)" in report["snippet_vllm"]  # three adapters of rank 4, each with its own A
