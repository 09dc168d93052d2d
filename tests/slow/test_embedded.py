"""The embedded model itself: it speaks, and the demo's whole path works on it. Fetches 93 MB; takes minutes."""

import json

import pytest
import torch

from warp_core.cli import main
from warp_core.policy.model import load_policy
from warp_core.workspace.assets import assets_root
from warp_core.workspace.sources import embedded_folder, embedded_model

pytestmark = pytest.mark.slow


def test_smollm2_was_converted_and_knows_its_trade():
    policy = load_policy(embedded_model(), device=torch.device("cpu"))
    assert sum(parameter.numel() for parameter in policy.model.parameters()) == 134_515_008
    assert not (embedded_folder() / "model.safetensors.index.json").exists()
    encoded = policy.tokenizer("The capital of France is", return_tensors="pt")
    with torch.no_grad():
        logits = policy.model(**encoded).logits[0, -1]
    assert policy.tokenizer.decode(logits.argmax()).strip() == "Paris"
    # A wrong order of rotary halves or of dequantised rows would leave it near 10.8, the log of the vocabulary.
    text = "Once upon a time, there was a little girl who lived in a small house near the forest with her mother."
    ids = policy.tokenizer(text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        loss = policy.model(input_ids=ids, labels=ids).loss
    assert 1.0 < float(loss) < 3.0


def test_the_demo_from_its_command(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("WARP_WORKSPACE", str(tmp_path))
    small = ["training.steps=2", "training.evaluate_every=0", "evaluation.prompts=4", "evaluation.etas=[0.0,0.5,1.0]"]
    command = ["demo", "--headless", "--json", *(part for setting in small for part in ("--set", setting))]
    assert main(command) == 0
    first = json.loads(capsys.readouterr().out)
    points = first["points"]
    assert [point["kind"] for point in points].count("policy") == 2
    sft = next(point for point in points if point["kind"] == "sft")
    merged = {point["eta"]: point for point in points if point["kind"] == "merge"}
    assert sft["kl"] == 0.0 == merged[0.0]["kl"]
    assert merged[0.0]["reward"] == sft["reward"]
    assert 0 < merged[0.5]["kl"] < merged[1.0]["kl"] < 1.0
    assert (tmp_path / "demo" / "front.html").stat().st_size > 1_000_000

    # The second time everything is there: the same document, and no model is loaded for it.
    monkeypatch.setattr("warp_core.evaluation.sweep.load_policy", None)
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out) == first


def test_the_bundled_run_is_read_without_a_model_and_without_changing_a_byte(capsys, monkeypatch):
    run = assets_root() / "demo-run"
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    monkeypatch.setattr("warp_core.evaluation.sweep.load_policy", None)
    assert main(["front", str(run), "--json"]) == 0
    front = json.loads(capsys.readouterr().out)
    assert len(front["points"]) == 1 + 2 * 3 + 2 * 2 * 6
    assert {point["step"] for point in front["training"] if point["iteration"] == 1} == {10, 20, 30, 40}
    assert {file: file.read_bytes() for file in run.rglob("*") if file.is_file()} == before
