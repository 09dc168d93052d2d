"""What only a process of its own can show: stdout, signals, a reader that leaves, quiet libraries."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import SHORT, settings

NOISY = """
import os, subprocess, sys, warnings


def noisy(prompts, completions):
    print("python talks", flush=True)
    os.write(1, b"C talks\\n")
    subprocess.run([sys.executable, "-c", "print('a child talks')"], check=True)
    return [float(len(text)) for text in completions]
"""


def start(*argv, **options):
    environment = dict(os.environ, OMP_NUM_THREADS="1", PYTHONPATH=os.pathsep.join([str(Path.cwd()), *sys.path]))
    for name in ("TQDM_DISABLE", "TRANSFORMERS_VERBOSITY", "HF_HUB_DISABLE_PROGRESS_BARS"):
        environment.pop(name, None)  # the program has to see to that itself
    command = [sys.executable, "-m", "warp_core", *map(str, argv)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment} | options
    return subprocess.Popen(command, **pipes)


@pytest.mark.parametrize(("argv", "code"), [((), 2), (("frobnicate",), 2), (("--version",), 0)])
def test_the_exit_code_of_the_program(argv, code):
    process = start(*argv)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert bool(out) is (code == 0)
    assert len(err.splitlines()) == (1 if code else 0)


@pytest.mark.skipif(os.name != "posix", reason="file names are bytes there")
def test_names_beyond_ascii_are_understood_where_python_is_told_not_to_use_utf_8(tiny, tmp_path):
    place = tmp_path / "\u00e9\u0416\u6f22"
    shutil.copytree(tiny.init, place / "init")
    ascii_only = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    process = start("sample", "--policy", place / "init", "--prompt", "\u00e9", *SHORT, "--json", env=ascii_only)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, "")
    assert json.loads(out)["completions"]


def test_nothing_but_the_answer_reaches_stdout(tiny, tmp_path):
    (tmp_path / "noisy_reward.py").write_text(NOISY, encoding="utf-8")
    process = start(
        "evaluate", "--policy", tiny.adapters[0], "--anchor", tiny.init, "--prompts", tiny.prompts, *SHORT,
        "--reward", "python:noisy_reward.noisy", "--reward", "sentiment", "--json", cwd=tmp_path,
    )  # fmt: skip
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert json.loads(out)["n"] == 8
    assert out.count("\n") == 1
    # And nothing but what was asked for reaches stderr: no bars, no warnings.
    said = sorted(err.splitlines())
    assert said == ["C talks", "a child talks", "python talks", "sampling: 8 of 8 completions"]


def test_full_fine_tuning_is_stopped_by_a_signal_and_says_nothing_else(tiny, tmp_path):
    config = tmp_path / "run.toml"
    config.write_text('[adapter]\nkind = "full"\n', encoding="utf-8")
    options = settings(tiny.init, training__steps="[2, 100000]", warp__iterations=2, training__evaluate_every=0)
    process = start("train", config, "--out", tmp_path / "run", *options, "--json")
    lines = []
    for line in process.stderr:
        lines.append(line)
        if line.startswith("iteration 2/2, policy 1/2, step 1/"):
            process.send_signal(signal.SIGTERM)
            break
    out, rest = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    said = "".join(lines) + rest
    endings = ["stopping after this step; what is done is kept (once more to stop at once)"]
    endings.append("warp-core: interrupted; what was done is kept")
    others = [line for line in said.splitlines() if not line.startswith("iteration ")]
    assert others == endings
    assert (tmp_path / "run" / "iteration-2" / "policy-1" / "state").is_dir()
    assert (tmp_path / "run" / "iteration-1" / "policy-2" / "checkpoint" / "model.safetensors").is_file()


def test_a_reader_that_leaves_is_no_reason_to_complain(tiny):
    with start("geometry", "--init", tiny.init, "--policies", *tiny.policies, "--json") as process:
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 1
