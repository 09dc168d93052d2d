"""The documentation is true: its code runs, its generated parts are up to date, what it names exists."""

import importlib.util
import re
import socket
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests import tiny
from tests.service.served import served
from warp_core.service.fake import FakeEngine

# Where docs/engine.md has its engine; the tests have theirs on a free port.
ENGINE_OF_THE_PAGES, TOKEN_OF_THE_PAGES = "http://127.0.0.1:8765", "choose-one"
ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PAGES = [
    README,
    ROOT / "CHANGELOG.md",
    ROOT / "bench" / "README.md",
    ROOT / "hostile" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]

CONFIG = """
model.name = "init"
adapter.rank = 2
reward.terms = ["length"]
prompts = { train = "prompts.txt", evaluation = "prompts.txt" }
training = { steps = 2, prompts_per_step = 2, completions_per_prompt = 2, max_new_tokens = 4, evaluate_every = 0 }
warp = { policies = 2, iterations = 2 }
evaluation = { prompts = 2, samples_per_prompt = 1 }
"""


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def code_in(path: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", text_of(path), re.MULTILINE | re.DOTALL)


def script(name: str) -> ModuleType:
    """A file of scripts/ as a module."""
    spec = importlib.util.spec_from_file_location(f"scripts_{name}", ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def offline(monkeypatch):
    """Every attempt to reach another machine fails."""

    def refuse(*args: object) -> None:
        raise AssertionError(f"a connection was tried: {args}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def test_the_readme_trains_merges_and_writes_without_a_network(tmp_path, monkeypatch, offline):
    (code,) = [block for block in code_in(README) if "train_warp" in block]
    tiny.make_model("llama", tmp_path / "init")
    (tmp_path / "prompts.txt").write_text("one film\nanother film\n", encoding="utf-8")
    (tmp_path / "run.toml").write_text(CONFIG, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WARP_CACHE", str(tmp_path / "cache"))
    found: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), found)
    recipe = tiny.read_json(tmp_path / "merged" / "warp_recipe.json")["recipe"]
    assert (recipe["method"], recipe["eta"], len(recipe["policies"])) == ("slerp", 0.3, 2)
    assert recipe["towards"] is not None, "iteration 2 interpolates towards the SFT policy"
    merged, init = (tiny.logits_of(tiny.load_model(tmp_path / name)) for name in ("merged", "init"))
    assert (merged - init).abs().max() > 1e-6


def test_the_readme_merges_a_layer_by_the_paper():
    (code,) = [block for block in code_in(README) if "slerp_pair" in block]
    found: dict = {}
    exec(compile(code, "README.md", "exec"), found)
    init, merged, delta_1, delta_2 = (found[name] for name in ("init", "merged", "delta_1", "delta_2"))
    lengths = [float(delta.norm()) for delta in (merged - init, delta_1, delta_2)]
    assert lengths[0] == pytest.approx((lengths[1] + lengths[2]) / 2, rel=0.02)  # Lemma 1: the length is kept
    start, between, end = found["chosen"]
    assert (start == init).all()
    assert (end == merged).all()
    assert float((between - init).norm()) == pytest.approx(0.3 * lengths[0], rel=1e-5)


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page != README and code_in(page)], ids=lambda page: page.name
)
def test_code_in_the_pages_runs(page):
    names: dict[str, object] = {}
    with served(FakeEngine(), token=TOKEN_OF_THE_PAGES) as address:
        for block in code_in(page):
            exec(compile(block.replace(ENGINE_OF_THE_PAGES, address), page.name, "exec"), names)


def test_generated_parts_are_up_to_date():
    stale = [path.name for path, text in script("docs").pages().items() if text_of(path) != text]
    assert stale == [], "run `make docs`"


def test_every_command_and_option_is_documented():
    docs = script("docs")
    reference = text_of(ROOT / "docs" / "commands.md")
    commands = docs.commands_of(docs.build_parser())
    assert {"demo", "train", "geometry", "merge", "evaluate", "front", "sample", "export", "check", "doctor"} <= set(
        commands
    )
    for command in commands.values():
        assert f"`{docs.synopsis(command)}`" in text_of(README)
        for action in docs.arguments_of(command):
            assert f"| `{docs.signature(action)}` |" in reference
            assert action.help, f"{command.prog}: {action.dest} has no help"


def test_parts_need_both_markers():
    with_part = script("docs").with_part
    assert with_part("a\n<!-- begin:x -->\nold<!-- end:x -->b", "x", "new\n") == (
        "a\n<!-- begin:x -->\nnew\n<!-- end:x -->b"
    )
    with pytest.raises(ValueError, match="no part 'x'"):
        with_part("<!-- end:x --><!-- begin:x -->\n", "x", "new\n")


def test_the_tests_that_promises_name_exist():
    table = text_of(README).partition("## Promises")[2].partition("\n## ")[0]
    assert re.findall(r"^\| P(\d+) ", table, re.MULTILINE) == [str(number) for number in range(1, 15)]
    named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", table)
    assert len(named) > 15
    missing = [f"{file}::{name}" for file, name in named if f"def {name}(" not in text_of(ROOT / file)]
    assert missing == []


def test_the_file_tree_is_complete():
    table = text_of(README).partition("## What is where")[2].partition("\n## ")[0]
    named = {path.rstrip("/") for path in re.findall(r"`([\w./]+)`", table.replace("`demo.toml`", ""))} - {"make"}
    there = {"app", "assets", "bench", "hostile", "scripts", "tests", "docs", ".ci/run"}
    there |= {
        f"warp_core/{path.name}"
        for path in (ROOT / "warp_core").iterdir()
        if path.name not in ("__pycache__", "__init__.py")
    }
    assert named == there
    assert all((ROOT / path).exists() for path in named)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    targets = {target for target in re.findall(r"\]\(([^)#]+)\)", text_of(page)) if "://" not in target}
    missing = {
        str((page.parent / target).resolve().relative_to(ROOT))
        for target in targets
        if not (page.parent / target).exists()
    }
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_are_plain_ascii_and_name_no_place_of_ours(page):
    text = text_of(page)
    assert text.isascii()
    assert not re.search(r"/work/|/root/|/home/|\.\./shared", text)
    assert text.endswith("\n")
    assert not text.endswith("\n\n")


def test_packages_in_the_requirements_have_their_reason():
    reasons = text_of(ROOT / "docs" / "dependencies.md")
    files = ("requirements.txt", "requirements-dev.txt", "requirements-bench.txt")
    lines = [line for name in files for line in text_of(ROOT / name).splitlines()]
    names = [re.split(r"[=<>~]", line)[0] for line in lines if line and not line.startswith(("#", "-"))]
    assert [name for name in names if not re.search(rf"\b{name}\b", reasons)] == []


def test_make_help_names_every_command():
    makefile = text_of(ROOT / "Makefile")
    targets = set(re.findall(r"^(\w+):", makefile, re.MULTILINE)) - {"help"}
    named = set(re.findall(r"@echo 'make (\w+)", makefile))
    assert targets == named


def test_the_version_is_in_the_changelog():
    version = subprocess.run(
        [sys.executable, "-m", "warp_core", "--version"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()[-1]
    assert f"\n## {version} - " in text_of(ROOT / "CHANGELOG.md")
