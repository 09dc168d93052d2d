"""Every mistake ends with exit code 2, nothing on stdout, and one line on stderr that says what and where."""

import errno
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.cli.conftest import SHORT, settings
from tests.tiny import make_adapter, make_model, make_policies, read_json
from warp_core import cli as command_line
from warp_core.commands import models as models_command
from warp_core.environment import QUIET_THREADS, quiet_threads

OPPOSITE = "model.layers.1.mlp.up_proj.weight"
REWARDS = """
import os, warnings


def raises(prompts, completions):
    return completions[0][99999]


def gives_nan(prompts, completions):
    return [0.0] * (len(completions) - 1) + [float("nan")]


def too_few(prompts, completions):
    return [1.0]


def leaves(prompts, completions):
    raise SystemExit(0)


def chatty(prompts, completions):
    print("a reward that talks")
    return [float(len(text)) for text in completions]
"""


def edited(folder, file, **fields):
    content = read_json(folder / file) | fields
    (folder / file).write_text(json.dumps(content), encoding="utf-8")
    return folder


def with_tensors(source, folder, change):
    shutil.copytree(source, folder)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def bad(tiny, tmp_path_factory):
    """A folder full of mistakes, which is the current folder of every test here."""
    folder = tmp_path_factory.mktemp("bad")
    for name in ("init", "policy0", "policy1", "adapter0", "adapter1", "gpt2", "prompts.txt"):
        (folder / name).symlink_to(tiny.folder / name)
    init = load_file(tiny.init / "model.safetensors")
    step = load_file(tiny.policies[0] / "model.safetensors")[OPPOSITE] - init[OPPOSITE]
    with_tensors(tiny.init, folder / "plus", lambda t: t[OPPOSITE].add_(step))
    with_tensors(tiny.init, folder / "minus", lambda t: t[OPPOSITE].sub_(step))
    with_tensors(tiny.init, folder / "nan", lambda t: t["model.norm.weight"].fill_(float("nan")))
    make_model("llama", folder / "wide", hidden_size=64)
    words = make_model("llama", folder / "words")
    text = (words / "tokenizer.json").read_text(encoding="utf-8")
    (words / "tokenizer.json").write_text(text.replace('"<|user|>"', '"<|human|>"'), encoding="utf-8")
    make_model("llama", folder / "bigger", vocab_size=300)
    (make_model("llama", folder / "mute") / "chat_template.jinja").unlink()
    pickled = make_model("llama", folder / "pickled")
    torch.save(load_file(pickled / "model.safetensors"), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    lost = make_adapter(tiny.init, folder / "lost", seed=2)
    edited(lost, "adapter_config.json", base_model_name_or_path="/nowhere/at/all")
    other = make_policies(tiny.init, folder, num=1, names=("elsewhere",))[0]
    make_adapter(other, folder / "foreign", seed=2)
    (folder / "empty.txt").write_text("\n  \n", encoding="utf-8")
    (folder / "latin.txt").write_bytes(b"caf\xe9\n")
    (folder / "bad.jsonl").write_text('{"prompt": "a"}\n{"text": "b"}\n', encoding="utf-8")
    (folder / "bad.toml").write_text("[training\nsteps = 2\n", encoding="utf-8")
    (folder / "field.toml").write_text("[training]\nstep = 2\n", encoding="utf-8")
    (folder / "good.toml").write_text("", encoding="utf-8")
    (folder / "full").mkdir()
    (folder / "full" / "precious.txt").write_text("keep", encoding="utf-8")
    (folder / "misuse_rewards.py").write_text(REWARDS, encoding="utf-8")
    return SimpleNamespace(folder=folder)


@pytest.fixture(autouse=True)
def _there(bad, monkeypatch, tmp_path):
    monkeypatch.chdir(bad.folder)
    monkeypatch.syspath_prepend(str(bad.folder))
    monkeypatch.setenv("OUT", str(tmp_path / "out"))


def refused(said):
    """The one line, after a check that it is one."""
    assert (said.code, said.out) == (2, ""), said
    assert said.err.endswith("\n")
    (line,) = said.err.splitlines()
    assert line.startswith("warp-core")
    assert "Traceback" not in line
    return line


GEOMETRY = "geometry --init init --policies"
MERGE = "merge --init init --policies policy0 policy1 --out $OUT"
EVALUATE = "evaluate --policy policy0 --anchor init --prompts prompts.txt --reward words --max-new-tokens 3"
FRONT = "front --init init --policies policy0 --prompts prompts.txt --reward words --max-new-tokens 3"
TRAIN = "train good.toml --out $OUT"
MISTAKES = {
    # The command itself.
    "": "COMMAND",
    "frobnicate": "invalid choice: 'frobnicate'",
    "geometry --init init --policies policy0 a\x1b[31mb --bogus\x07": r"--bogus\x07",
    "merge": "--init, --policies, --out",
    "geometry --init init --policies policy0 --granularity word": "'layer', 'tensor', 'model'",
    f"{MERGE} --bogus": "unrecognized arguments: --bogus",
    # Checkpoints.
    f"{GEOMETRY} nowhere": "'nowhere'",
    f"{GEOMETRY} prompts.txt": "'prompts.txt'",
    f"{GEOMETRY} full": "full",
    f"{GEOMETRY} gpt2": "gpt2 does not fit init",
    f"{GEOMETRY} wide": "wide does not fit init",
    f"{GEOMETRY} words": "tokenizer",
    f"{GEOMETRY} bigger": "vocab_size",
    f"{GEOMETRY} nan": "'model.norm.weight'",
    f"{GEOMETRY} pickled": "safetensors",
    f"{GEOMETRY} foreign": "base",
    f"{GEOMETRY} adapter0 policy0": "policies of one kind",
    f"{GEOMETRY} owner/name": "network",
    # Recipes.
    f"{MERGE} --weights .5 .6": "sum to 1",
    f"{MERGE} --weights 1": "give 2 numbers",
    f"{MERGE} --weights -.5 1.5": "non-negative",
    f"{MERGE} --weights nan 1": "nan",
    f"{MERGE} --weights half half": "'half'",
    f"{MERGE} --eta 2.5": "0 <= eta <= 2",
    f"{MERGE} --eta -0.1": "0 <= eta <= 2",
    f"{MERGE} --eta nan": "nan",
    f"{MERGE} --eta much": "'much'",
    f"{MERGE} --method mean": "'slerp-weights'",
    "merge --init init --policies plus minus --out $OUT": "'model.layers.1'",
    "merge --init init --policies nan policy1 --out $OUT": "'model.norm.weight'",
    # Outputs.
    f"{MERGE} --dtype int8": "'bfloat16'",
    f"{MERGE} --max-shard-size plenty": "'plenty'",
    f"{MERGE} --max-shard-size -5GB": "--max-shard-size",
    f"{MERGE} --max-shard-size 0": "'0'",
    f"{MERGE} --as adapter": "full model",
    "merge --init init --policies adapter0 adapter1 --method slerp-weights --as adapter --out $OUT": "slerp-weights",
    "merge --init init --policies policy0 --out full": "not empty",
    "merge --init init --policies policy0 --out prompts.txt": "not a folder",
    "merge --init init --policies policy0 --out prompts.txt/deeper": "prompts.txt is a file",
    "merge --init init --policies policy0 --out /": "/",
    "merge --init init --policies policy0 --out ": "not empty",
    "merge --init init --policies policy0 --out /proc/warp/out": "/proc",
    f"merge --init init --policies policy0 --out {'x' * 300}/out": "xxx",
    # Measuring.
    f"{EVALUATE} --prompts nowhere.txt": "'nowhere.txt'",
    f"{EVALUATE} --prompts full": "'full'",
    f"{EVALUATE} --prompts empty.txt": "no prompt in 'empty.txt'",
    f"{EVALUATE} --prompts latin.txt": "UTF-8",
    f"{EVALUATE} --prompts bad.jsonl": "line 2",
    f"{EVALUATE} --num-prompts 5": "has 4",
    f"{EVALUATE} --num-prompts 0": "at least 1",
    f"{EVALUATE} --samples -1": "at least 1",
    f"{EVALUATE} --samples 1.5": "whole number",
    f"{EVALUATE} --max-new-tokens many": "whole number",
    f"{EVALUATE} --temperature 0": "0.01 to 100",
    f"{EVALUATE} --temperature nan": "0.01 to 100",
    f"{EVALUATE} --temperature warm": "0.01 to 100",
    f"{EVALUATE} --seed x": "'x'",
    f"{EVALUATE} --kl reverse": "'exact', 'mc'",
    f"{EVALUATE} --policy words": "different vocabularies",
    f"{EVALUATE} --policy bigger": "different vocabularies",
    f"{EVALUATE} --policy mute --chat": "chat template",
    f"{EVALUATE} --policy nowhere": "'nowhere'",
    f"{EVALUATE} --policy lost": "/nowhere/at/all",
    f"{EVALUATE} --anchor nan": "nan: tensor 'model.norm.weight'",
    f"{EVALUATE} --reward sentimnt": "did you mean 'sentiment'",
    f"{EVALUATE} --reward words": "2 times",
    f"{EVALUATE} --reward :2": "no name",
    f"{EVALUATE} --reward length:inf": "finite",
    f"{EVALUATE} --reward ./nowhere": "'./nowhere'",
    f"{EVALUATE} --reward init": "init",
    f"{EVALUATE} --reward python:misuse_rewards": "python:module.function",
    f"{EVALUATE} --reward python:no_such_module.f": "'no_such_module'",
    f"{EVALUATE} --reward python:misuse_rewards.nothing": "'nothing'",
    f"{EVALUATE} --reward python:misuse_rewards.raises": "IndexError",
    f"{EVALUATE} --reward python:misuse_rewards.gives_nan": "completion 7",
    f"{EVALUATE} --reward python:misuse_rewards.too_few": "1 numbers for 8",
    f"{EVALUATE} --reward python:misuse_rewards.leaves": "SystemExit",
    "sample --policy policy0 --prompt ": "no token",
    f"{EVALUATE} --policy gpt2 --anchor gpt2 --max-new-tokens 250": "256 positions of",
    f"{FRONT} --max-new-tokens 250": "256 positions of",
    "sample --policy gpt2 --prompt x --max-new-tokens 256": "256 positions of",
    "sample --policy nan --prompt x": "nan: tensor 'model.norm.weight'",
    "sample --policy policy0 --prompt x --n 0": "at least 1",
    "sample --policy policy0 --prompt x --reward sentimnt": "did you mean",
    # Fronts.
    "front": "either a RUN, or --init",
    "front --init init": "--policies",
    "front --policies policy0": "either a RUN, or --init",
    f"{FRONT} --iteration 1": "--iteration",
    f"{FRONT} --etas .5 3": "0 <= eta <= 2",
    f"{FRONT} --etas nan": "nan",
    f"{FRONT} --weights .5 .5": "give 1 numbers",
    f"{FRONT} --html full": "full is a folder",
    f"{FRONT} --csv prompts.txt/table.csv": "prompts.txt is a file",
    f"{FRONT} --anchor gpt2": "gpt2 does not fit init",
    f"{FRONT} --anchor adapter0": "give a full model",
    # Runs.
    "front nowhere": "'nowhere'",
    "front ../..": "is not a run",
    "front init": "is not a run",
    "export init --eta 1 --out $OUT": "is not a run",
    "export nowhere --eta 1 --out $OUT": "'nowhere'",
    "export init --out $OUT": "--eta",
    # Configurations.
    "train nowhere.toml --out $OUT": "nowhere.toml",
    "train full --out $OUT": "full",
    "train bad.toml --out $OUT": "bad.toml is not valid TOML",
    "train field.toml --out $OUT": "training.step: unknown field",
    "train latin.txt --out $OUT": "latin.txt",
    f"{TRAIN} --set nonsense": "'nonsense'",
    f"{TRAIN} --set training.steps": "'training.steps'",
    f"{TRAIN} --set training.steps=0": "training.steps",
    f"{TRAIN} --set training.steps=many": "training.steps",
    f"{TRAIN} --set training.temperature=nan": "training.temperature",
    f"{TRAIN} --set training.anchor=moon": "training.anchor",
    f"{TRAIN} --set nothing.at=all": "nothing",
    f"{TRAIN} --set training.bogus=1": "training.bogus",
    f"{TRAIN} --set model.name=adapter0": "is an adapter",
    f"{TRAIN} --set model.name=gpt2 --set training.max_new_tokens=250": "256 positions of",
    "train good.toml --out full": "full exists and is not empty",
    "train good.toml --out prompts.txt": "not a folder",
    "demo --headless --out prompts.txt": "not a folder",
    "demo --headless --set training.steps=-1": "training.steps",
}


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_2(cli, line, tmp_path):
    # An argument that is empty is written as a blank at the end.
    argv = [*line.split(), *([""] if line.endswith(" ") else [])]
    said = cli(*[word.replace("$OUT", str(tmp_path / "out")) for word in argv])
    if said.code == 2 and said.err.startswith("sampling: "):
        pytest.fail("found after the work was done")
    assert MISTAKES[line] in refused(said)
    assert not (tmp_path / "out").exists()
    if "--json" not in line and argv and not line.startswith("frobnicate"):
        with_json = cli(*[word.replace("$OUT", str(tmp_path / "out")) for word in argv], "--json")
        assert (with_json.code, with_json.out) == (2, "")
    assert [file.name for file in Path("full").iterdir()] == ["precious.txt"]


def test_an_adapter_from_another_machine_is_taken_to_be_over_the_init(cli):
    lost, named = (cli(*GEOMETRY.split(), policy, "--json") for policy in ("lost", "adapter0"))
    assert (lost.code, named.code) == (0, 0)
    assert "base" in refused(cli(*GEOMETRY.split(), "lost", "--base", "gpt2"))


@pytest.fixture(scope="module")
def half_a_run(tiny, tmp_path_factory):
    """A run that was stopped after its first policy."""
    folder = tmp_path_factory.mktemp("half")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WARP_CACHE", str(folder / "cache"))
        argv = ["train", os.devnull, "--out", str(folder / "run"), *settings(tiny.init)]
        assert command_line.main(argv) == 0
    shutil.rmtree(folder / "run" / "iteration-1" / "policy-2" / "checkpoint")
    return folder / "run"


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("front",), "policy 2 of iteration 1 is not trained yet"),
        (("export", "--eta", "1", "--out", "$OUT"), "policy 2 of iteration 1 is not trained yet"),
        (("front", "--iteration", "2"), "this run has 1"),
        (("export", "--iteration", "9", "--eta", "1", "--out", "$OUT"), "this run has 1"),
        (("front", "--policies", "policy0"), "--policies"),
        (("front", "--anchor", "init"), "--anchor"),
        (("front", "--seed", "-3"), "evaluation.seed"),
    ],
)
def test_what_a_run_does_not_have(cli, half_a_run, tmp_path, options, named):
    command, *rest = [word.replace("$OUT", str(tmp_path / "out")) for word in options]
    assert named in refused(cli(command, half_a_run, *rest))


def test_a_run_that_is_damaged_or_of_the_future(cli, half_a_run, tmp_path):
    for content, named in (("{", "run.json cannot be read"), ('{"format": 99}', "newer version"), ("[]", "run.json")):
        run = shutil.copytree(half_a_run, tmp_path / "run", dirs_exist_ok=True)
        (run / "run.json").write_text(content, encoding="utf-8")
        assert named in refused(cli("front", run))


def test_other_settings_do_not_continue_a_run(cli, half_a_run, tiny):
    said = cli("train", os.devnull, "--out", half_a_run, "--resume", *settings(tiny.init, training__beta=0.5))
    assert "other settings" in refused(said)


def test_results_that_are_damaged(cli, half_a_run, tiny, tmp_path):
    run = shutil.copytree(half_a_run, tmp_path / "run")
    shutil.copytree(run / "iteration-1" / "policy-1" / "checkpoint", run / "iteration-1" / "policy-2" / "checkpoint")
    (run / "results.sqlite").write_text("no database" * 100, encoding="utf-8")
    assert "results.sqlite" in refused(cli("front", run))


def test_a_reward_that_prints_does_not_spoil_the_answer(cli):
    said = cli(*EVALUATE.split(), "--reward", "python:misuse_rewards.chatty", "--json")
    assert said.json["rewards"].keys() == {"words", "python:misuse_rewards.chatty"}
    assert "a reward that talks" in said.err


def test_a_fault_of_ours_shows_its_trace_and_how_to_report_it(cli, monkeypatch):
    def broken(*args, **kwargs):
        raise KeyError("the mistake of a programmer")

    monkeypatch.setattr(models_command, "open_all", broken)
    said = cli(*GEOMETRY.split(), "policy0", "--json")
    assert (said.code, said.out) == (1, "")
    assert "Traceback" in said.err
    assert "the mistake of a programmer" in said.err
    assert said.err.splitlines()[-1].startswith("warp-core: a fault of warp-core")


@pytest.mark.parametrize(
    ("error", "code", "named"),
    [
        (MemoryError(), 1, "out of memory"),
        (torch.OutOfMemoryError("CUDA out of memory"), 1, "out of memory"),
        (OSError(errno.ENOSPC, "No space left on device", "/some/file"), 2, "/some/file: No space left on device"),
        (PermissionError(errno.EACCES, "Permission denied", "/some/file"), 2, "/some/file: Permission denied"),
    ],
)
def test_what_the_machine_refuses_is_one_line(cli, monkeypatch, error, code, named):
    def refuse(*args, **kwargs):
        raise error

    monkeypatch.setattr(models_command, "compute_geometry", refuse)
    said = cli(*GEOMETRY.split(), "policy0")
    assert (said.code, said.out, len(said.err.splitlines())) == (code, "", 1)
    assert named in said.err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_merge_that_is_interrupted_leaves_nothing(cli, monkeypatch, tmp_path, number):
    def interrupt(what, done, total):
        if what == "merging":
            os.kill(os.getpid(), number)

    monkeypatch.setattr(models_command, "show_progress", interrupt)
    said = cli(*MERGE.replace("$OUT", str(tmp_path / "merged")).split())
    assert (said.code, said.out, len(said.err.splitlines())) == (130, "", 1)
    assert [file.name for file in tmp_path.iterdir() if file.name != "cache"] == []


class LastWords:
    """Its end is signalled, where Python drops the exception."""

    def __del__(self):
        signal.raise_signal(signal.SIGTERM)


def test_a_signal_that_python_drops_comes_again(cli, monkeypatch, tmp_path):
    def interrupt(what, done, total):
        if what == "merging":
            LastWords()
            time.sleep(10)

    monkeypatch.setattr(models_command, "show_progress", interrupt)
    began = time.monotonic()
    said = cli(*MERGE.replace("$OUT", str(tmp_path / "merged")).split())
    assert (said.code, said.out, len(said.err.splitlines())) == (130, "", 1)
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_before_there_is_a_command_is_one_line(cli, monkeypatch, number):
    monkeypatch.setattr(command_line, "build_parser", lambda: signal.raise_signal(number))
    said = cli("doctor")
    assert (said.code, said.out, said.err) == (130, "", "warp-core: interrupted; what was done is kept\n")


def test_the_libraries_are_told_to_be_quiet_before_they_are_imported(cli, monkeypatch):
    for name in ("TQDM_DISABLE", "HF_HUB_DISABLE_TELEMETRY", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    seen = {}

    def look(name):
        seen.update(os.environ)
        return sys.modules[name]

    sys.modules["warp_core.commands.models"] = models_command
    monkeypatch.setattr(command_line.importlib, "import_module", look)
    assert cli(*GEOMETRY.split(), "policy0", *()).code == 0
    assert (seen["TQDM_DISABLE"], seen["HF_HUB_DISABLE_TELEMETRY"]) == ("1", "1")
    assert (seen["OMP_WAIT_POLICY"], seen["GOMP_SPINCOUNT"]) == ("PASSIVE", "4000")


@pytest.mark.parametrize(("name", "value"), [("OMP_WAIT_POLICY", "ACTIVE"), ("GOMP_SPINCOUNT", "7")])
def test_whoever_sets_how_threads_wait_keeps_it(monkeypatch, name, value):
    for each in QUIET_THREADS:
        monkeypatch.delenv(each, raising=False)
    monkeypatch.setenv(name, value)
    quiet_threads()
    assert {each: os.environ[each] for each in QUIET_THREADS if each in os.environ} == {name: value}


def test_short_runs_of_every_measuring_command_say_nothing_but_progress(cli):
    said = cli(*EVALUATE.split(), *SHORT)
    assert said.err == "sampling: 8 of 8 completions\n"
    assert cli("sample", "--policy", "adapter0", "--prompt", "x", *SHORT).err == ""


class PanicException(BaseException):
    """Stands in for that of PyO3, which is no Exception."""


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("PyObject pointer is null", "warp-core: out of memory"),
        ("index out of bounds", "warp-core: a fault of warp-core"),
    ],
)
def test_a_panic_of_a_library_in_rust_ends_in_one_line(cli, monkeypatch, words, named):
    def panics(*args, **kwargs):
        raise PanicException(words)

    monkeypatch.setattr(models_command, "open_all", panics)
    said = cli(*GEOMETRY.split(), "policy0", "--json")
    assert (said.code, said.out) == (1, "")
    assert said.err.splitlines()[-1].startswith(named)
    assert ("Traceback" in said.err) == ("fault" in named)
