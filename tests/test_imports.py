"""Imports point one way, heavy libraries stay where they belong, and the command line starts without torch."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ENGINE = "warp_core"

# part of warp_core -> the parts it may import, beside itself, errors and environment
BELOW: dict[str, set[str]] = {
    "errors": set(),
    "environment": set(),
    "slerp": set(),
    "workspace": set(),
    "weights": {"workspace", "slerp"},
    "rewards": {"workspace"},
    "policy": {"workspace", "weights", "rewards"},
    "evaluation": {"workspace", "weights", "rewards", "policy"},
    "training": {"workspace", "weights", "rewards", "policy", "evaluation"},
    "service": {"slerp", "workspace", "weights", "rewards", "policy", "evaluation", "training"},
    "studies": {"workspace", "weights", "rewards", "policy", "evaluation", "training"},
    "commands": {"workspace", "weights", "rewards", "policy", "evaluation", "training", "studies", "service"},
    "cli": {"workspace", "weights", "rewards", "policy", "evaluation", "training", "service", "commands"},
    "__main__": {"cli"},
}
EVERYWHERE = {"errors", "environment"}
# What the app may know of the engine: the wire and what is light. Everything else comes over HTTP.
FOR_THE_APP = {
    "errors",
    "evaluation.preferences",
    "service.client",
    "service.documents",
    "service.fake",
    "service.interface",
    "service.places",
    "service.protocol",
    "slerp",
    "workspace.paths",
}
HEAVY = {"torch", "transformers", "peft", "safetensors"}
DRAWING = {f"{ENGINE}/evaluation/{name}.py" for name in ("report", "page", "picture", "series")}
DRAWING |= {f"{ENGINE}/studies/page.py"}


def sources(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def modules_in(text: str, *, package: str = "") -> Iterator[str]:
    """Every module that a source imports, anywhere in it, as a dotted name."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            name = ".".join([*base, *([node.module] if node.module else [])])
            # `from warp_core import weights` imports warp_core.weights
            yield from (f"{name}.{alias.name}" for alias in node.names) if name == ENGINE else [name]


@cache
def imported_by(path: Path) -> list[str]:
    return list(modules_in(path.read_text(encoding="utf-8"), package=".".join(path.relative_to(ROOT).parts[:-1])))


def part_of(path: Path) -> str:
    return path.relative_to(ROOT / ENGINE).parts[0].removesuffix(".py")


def upward(part: str, modules: list[str]) -> list[str]:
    """The modules of warp_core that `part` has no business with."""
    allowed = {part} | EVERYWHERE | BELOW[part]
    inner = [name for name in modules if name.startswith(f"{ENGINE}.") and name != f"{ENGINE}.__version__"]
    return [name for name in inner if name.split(".")[1] not in allowed]


def test_every_part_has_its_place():
    parts = {part_of(path) for path in sources(ENGINE)} - {"__init__"}
    assert parts - BELOW.keys() == set(), "say in BELOW what it may import"
    assert {"errors", "workspace", "weights", "rewards", "policy", "evaluation", "training"} <= parts


@pytest.mark.parametrize("part", BELOW)
def test_imports_point_downwards(part: str):
    wrong = {
        str(path.relative_to(ROOT)): found
        for path in sources(ENGINE)
        if part_of(path) == part and (found := upward(part, imported_by(path)))
    }
    assert wrong == {}


def test_the_directions_that_matter_most_would_be_found():
    assert upward("evaluation", ["warp_core.training.config"]) == ["warp_core.training.config"]
    assert upward("weights", ["warp_core.policy.lora", "warp_core.errors", "torch"]) == ["warp_core.policy.lora"]
    assert upward("rewards", list(modules_in("from warp_core import policy"))) == ["warp_core.policy"]
    assert upward("workspace", list(modules_in("from ..weights import x", package="warp_core.workspace")))
    assert upward("errors", list(modules_in("def f():\n    import warp_core.workspace.paths"))) != []
    assert upward("weights", ["warp_core.workspace.paths", "warp_core.weights.layers", "warp_core.__version__"]) == []


def users_of(library: str, folder: str) -> set[str]:
    return {
        str(path.relative_to(ROOT))
        for path in sources(folder)
        if any(name.split(".")[0] == library for name in imported_by(path))
    }


def test_streamlit_is_the_apps_alone():
    assert users_of("streamlit", ENGINE) == set()


def test_only_the_report_draws():
    assert users_of("plotly", ENGINE) <= DRAWING


@pytest.mark.parametrize("library", sorted(HEAVY))
def test_the_app_knows_no_tensor(library: str):
    assert users_of(library, "app") == set()


def test_the_app_knows_the_wire_alone():
    wrong = {
        str(path.relative_to(ROOT)): found
        for path in sources("app")
        if (
            found := [
                name
                for name in imported_by(path)
                if name.split(".")[0] == ENGINE and name.removeprefix(f"{ENGINE}.") not in FOR_THE_APP
            ]
        )
    }
    assert wrong == {}


def test_what_the_app_imports_brings_no_tensor_library():
    modules = sorted({f"{ENGINE}.{name}" for name in FOR_THE_APP} | {name for name in app_modules() if "pages" in name})
    code = (
        f"import sys, importlib; [importlib.import_module(name) for name in {modules}];"
        f"print(sorted({HEAVY} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def app_modules() -> list[str]:
    return [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in sources("app")]


def test_the_engine_does_not_know_the_app():
    assert users_of("app", ENGINE) == set()


@pytest.mark.parametrize("folder", [ENGINE, "scripts", "bench"])
def test_the_engine_does_not_know_the_tests(folder: str):
    assert users_of("tests", folder) == set()


@pytest.mark.parametrize("folder", [ENGINE, "app", "scripts"])
def test_nobody_needs_the_benches(folder: str):
    assert users_of("bench", folder) == set()


def test_the_command_line_starts_without_heavy_libraries():
    if not (ROOT / ENGINE / "cli.py").exists():
        pytest.skip("there is no command line yet")
    code = (
        "import sys, warp_core.cli; print(sorted({'torch', 'transformers', 'pandas', 'plotly'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
