"""python:module.function."""

import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from warp_core.errors import RewardError
from warp_core.rewards import RewardBatch, load_reward

BATCH = RewardBatch(prompts=("p", "q"), completions=("a", "bcd"), num_tokens=(1, 3))
SOURCE = """
import os, time, torch

def brevity(prompts, completions):
    assert prompts == ["p", "q"]
    return [-len(text) / 2 for text in completions]

def broken(prompts, completions):
    raise RuntimeError("the server is down")

def leaves(prompts, completions):
    raise SystemExit(3)

def sleeps(prompts, completions):
    time.sleep(5)

def sleeps_half_way(prompts, completions):
    return (time.sleep(5) for text in completions)

def rude(prompts, completions):
    print("noise")
    os.chdir("/")
    torch.set_default_dtype(torch.float64)
    torch.set_float32_matmul_precision("medium")
    return [0.0 for text in completions]

number = 4
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """The name of a module with SOURCE in the current folder, new to the interpreter for each test."""
    name = f"rewards_of_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield name
    sys.modules.pop(name, None)


def test_a_function_of_the_current_folder_is_found_and_weighted(module):
    scores = load_reward([f"python:{module}.brevity:0.5"])(BATCH)
    assert scores.parts[f"python:{module}.brevity"].tolist() == [-0.5, -1.5]
    assert scores.total_B.tolist() == [-0.25, -0.75]


def test_the_current_folder_is_searched_last(module, tmp_path):
    load_reward([f"python:{module}.brevity"])
    assert sys.path[-1] == str(tmp_path)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("broken", "raised RuntimeError: the server is down"),
        ("leaves", r"tried to end the program \(SystemExit\(3\)\)"),
    ],
)
def test_a_function_that_fails(module, function, message):
    reward = load_reward([f"python:{module}.{function}"])
    with pytest.raises(RewardError, match=message):
        reward(BATCH)


def test_what_it_changes_for_the_whole_process_is_put_back(module, tmp_path, capsys):
    before = torch.get_default_dtype(), torch.get_float32_matmul_precision()
    assert load_reward([f"python:{module}.rude"])(BATCH).total_B.tolist() == [0.0, 0.0]
    assert (torch.get_default_dtype(), torch.get_float32_matmul_precision()) == before
    assert Path.cwd() == tmp_path
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "noise\n")


@pytest.mark.parametrize("function", ["sleeps", "sleeps_half_way"])
def test_a_function_that_hangs_is_given_up(function, module):
    reward = load_reward([f"python:{module}.{function}"], timeout_s=0.05)
    began = time.monotonic()
    with pytest.raises(RewardError, match=r"gave no answer for 2 completions in 0.05 s"):
        reward(BATCH)
    assert time.monotonic() - began < 2
    assert any(thread.name.startswith("reward python:") and thread.daemon for thread in threading.enumerate())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("python:{}.number", "'number' is not a function in module"),
        ("python:{}.brevit", "'brevit' does not exist in module"),
        ("python:no_such_module.f", "there is no module 'no_such_module'"),
        ("python:nothing", "write python:module.function"),
        ("python:", "write python:module.function"),
    ],
)
def test_names_that_lead_nowhere(module, name, message):
    with pytest.raises(RewardError, match=message):
        load_reward([name.format(module)])


def test_a_module_that_does_not_import(module, tmp_path):
    (tmp_path / f"{module}.py").write_text("1 / 0")
    with pytest.raises(RewardError, match=rf"importing '{module}' raised ZeroDivisionError: division by zero"):
        load_reward([f"python:{module}.brevity"])


def test_the_id_follows_the_source(module, tmp_path):
    first = load_reward([f"python:{module}.brevity"])
    assert first.id == load_reward([f"python:{module}.brevity"]).id
    before = first.id
    (tmp_path / f"{module}.py").write_text(SOURCE.replace("/ 2", "/ 3"))
    assert load_reward([f"python:{module}.brevity"]).id != before


def test_a_function_written_in_c_has_an_id_too():
    assert load_reward(["python:operator.eq"]).id
