"""What holds for every bench: it exists, it can be imported, and bench/README.md says what its numbers mean."""

import ast
import importlib
import json

import pytest

from bench.__main__ import BENCHES
from bench.document import newest, pages, read_document
from bench.running import ROOT

FOLDER = ROOT / "bench"
README = FOLDER / "README.md"


@pytest.mark.parametrize("name", BENCHES)
def test_every_bench_measures_and_is_described(name):
    assert callable(importlib.import_module(f"bench.{name}").measure)
    assert f"### `{name}`\n" in README.read_text(encoding="ascii")


def test_peers_do_not_import_the_engine():
    for path in (FOLDER / "peers").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not [name for name in names if name.split(".")[0] in ("warp_core", "bench")], path.name


def test_every_committed_result_is_whole():
    for path in (FOLDER / "results").glob("20??-??-??.json"):
        found = read_document(path)
        assert path.stem == found.date[:10]
        assert found.complete
        assert not found.quick
        assert {row.bench for row in found.rows} <= set(BENCHES)
        assert json.loads(path.read_text(encoding="ascii"))["limits"] == found.limits


def test_the_pages_have_the_newest_tables():
    path = newest()
    if path is None:
        pytest.skip("no run is committed yet")
    for page, text in pages(read_document(path)).items():
        assert page.read_text(encoding="ascii") == text


def test_the_peers_stand_beside_the_same_torch_and_transformers():
    ours, theirs = (
        dict(line.split("==") for line in (ROOT / name).read_text(encoding="utf-8").splitlines() if "==" in line)
        for name in ("requirements.txt", "requirements-bench.txt")
    )
    assert {name: theirs[name] for name in ("torch", "transformers", "safetensors", "peft")} == {
        name: ours[name] for name in ("torch", "transformers", "safetensors", "peft")
    }
    assert {"mergekit", "trl"} <= theirs.keys()
