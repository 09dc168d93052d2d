import pytest
import torch
import transformers

from bench import models
from bench.models import make_inputs, parameters_of
from tests import tiny
from warp_core.weights import open_checkpoint


@pytest.fixture
def smollm2(tmp_path):
    """A stand-in: its tokenizer and config are what the sizes are made from."""
    return tiny.make_model("llama", tmp_path / "smollm2")


def test_a_random_model_has_its_shape_and_loads(tmp_path, smollm2):
    made = make_inputs(tmp_path / "scratch", smollm2, size="tiny", dtype="float32", policies=0)
    model = transformers.AutoModelForCausalLM.from_pretrained(made.init)
    assert sum(one.numel() for one in model.parameters()) == parameters_of("tiny")
    assert made.policies == ()
    assert made.size_bytes == pytest.approx(4 * parameters_of("tiny"), rel=0.01)
    assert model.lm_head.weight is model.get_input_embeddings().weight


def test_the_sizes_are_what_they_are_called():
    assert parameters_of("135M") == 134_515_008
    assert parameters_of("360M") == 361_821_120
    assert parameters_of("1.1B") == pytest.approx(1.07e9, rel=0.01)


def test_policies_differ_by_task_vectors_of_one_length_and_no_common_direction(tmp_path, smollm2):
    made = make_inputs(tmp_path, smollm2, size="tiny", dtype="float32", policies=2)
    start, one, other = (tiny.load_model(folder).state_dict() for folder in (made.init, *made.policies))
    name = "model.embed_tokens.weight"
    first, second = ((one[name] - start[name]).flatten(), (other[name] - start[name]).flatten())
    for vector in (first, second):
        assert float(vector.norm()) == pytest.approx(models.TASK_VECTOR * float(start[name].norm()), rel=0.01)
    assert abs(float(torch.cosine_similarity(first, second, dim=0))) < 0.01


def test_what_is_there_is_not_made_again(tmp_path, smollm2):
    made = make_inputs(tmp_path, smollm2, size="tiny", dtype="bfloat16", policies=1)
    (made.init / "mark").touch()
    again = make_inputs(tmp_path, smollm2, size="tiny", dtype="bfloat16", policies=2)
    assert (again.init / "mark").exists()
    assert [folder.name for folder in again.policies] == ["policy-1", "policy-2"]


def test_large_models_are_sharded_with_an_index(tmp_path, smollm2, monkeypatch):
    monkeypatch.setattr(models, "SHARD_BYTES", 7_000_000)
    made = make_inputs(tmp_path, smollm2, size="tiny", dtype="float32", policies=1)
    for folder in (made.init, *made.policies):
        files = sorted(file.name for file in folder.glob("*.safetensors"))
        assert files == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
        assert set(tiny.read_json(folder / "model.safetensors.index.json")["weight_map"].values()) == set(files)
        assert open_checkpoint(folder).kind == "full"


def test_inputs_are_listed_and_deleted(tmp_path, smollm2, monkeypatch, capsys):
    make_inputs(tmp_path, smollm2, size="tiny", dtype="bfloat16", policies=1)
    monkeypatch.setattr("sys.argv", ["models", "--scratch", str(tmp_path)])
    assert models.main() == 0
    assert "tiny-bfloat16: init, policy-1" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["models", "--scratch", str(tmp_path), "--delete"])
    assert models.main() == 0
    assert [path.name for path in tmp_path.iterdir()] == ["smollm2"]
