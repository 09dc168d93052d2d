"""Tiny models for every command, a workspace and a cache of its own for every test, and the command line to call."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.tiny import make_adapter, make_model, make_policies
from warp_core.cli import main
from warp_core.workspace import sources

PROMPTS = ("The film was", "I thought the", "A story of", "Never again")
SHORT = ("--max-new-tokens", "6")
TRAINING = {
    "training.steps": 2,
    "training.prompts_per_step": 2,
    "training.completions_per_prompt": 2,
    "training.max_new_tokens": 4,
    "training.evaluate_every": 1,
    "training.learning_rate": 0.02,
    "training.warmup_steps": 0,
    "adapter.rank": 4,
    "reward.terms": '["words", "uppercase:0.5"]',
    "evaluation.prompts": 3,
    "evaluation.etas": "[0.0, 0.5, 1.0]",
}


@dataclass(frozen=True)
class Said:
    """What a command said: exit code, stdout, stderr."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one document on stdout, nothing else, no NaN."""
        assert self.code == 0, self.err
        assert self.out.count("\n") == 1
        return json.loads(self.out, parse_constant=lambda name: pytest.fail(f"{name} in the JSON"))


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WARP_WORKSPACE", str(tmp_path / "workspace"))
    monkeypatch.setenv("WARP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sources, "embedded_model", lambda say: pytest.fail("a test asks for the embedded model"))


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """Call the command line with these arguments, whatever they are, as text."""

    def call(*argv: object) -> Said:
        capsys.readouterr()
        try:
            code = main([str(arg) for arg in argv])
        except SystemExit as end:  # argparse
            code = int(end.code or 0)
        said = capsys.readouterr()
        return Said(code, said.out, said.err)

    return call


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Folders of tiny models, and a file of prompts; not to be changed."""
    folder = tmp_path_factory.mktemp("tiny-cli")
    init = make_model("llama", folder / "init")
    prompts = folder / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS) + "\n", encoding="utf-8")
    return SimpleNamespace(
        folder=folder,
        init=init,
        policies=make_policies(init, folder, num=2, scale=0.05),
        adapters=[make_adapter(init, folder / f"adapter{m}", seed=m) for m in range(2)],
        gpt2=make_model("gpt2", folder / "gpt2"),
        prompts=prompts,
    )


def settings(model: Path, **changes: object) -> list[str]:
    """--set options of a run that takes a second."""
    said = {"model.name": model} | TRAINING | {name.replace("__", "."): value for name, value in changes.items()}
    return [word for name, value in said.items() for word in ("--set", f"{name}={value}")]
