"""What counts as built like Llama: nothing that would compute something else."""

import pytest
import torch
from torch import nn

from tests.tiny import FAMILIES, build_model
from warp_core.policy.llama import is_like_llama, rows_stay


@pytest.mark.parametrize("family", FAMILIES)
def test_families(family):
    assert is_like_llama(build_model(family)) == (family in ("llama", "qwen2", "qwen3"))


def changed(how: str):
    model = build_model("llama")
    layer = model.base_model.layers[1]
    match how:
        case "training":
            model.train()
        case "a hook on the model":
            model.register_forward_hook(lambda module, args, output: None)
        case "a hook on a layer":
            layer.register_forward_pre_hook(lambda module, args: None)
        case "a hook on the attention":
            layer.self_attn.register_forward_hook(lambda module, args, output: None)
        case "another forward":
            layer.mlp.forward = lambda x: x
        case "one more part":
            layer.post_norm = nn.Identity()
        case "one more part of the attention":
            layer.self_attn.gate = nn.Identity()
        case "another norm":
            layer.input_layernorm = nn.LayerNorm(32)
        case "another MLP":
            layer.mlp = nn.Sequential()
        case "another embedding":
            model.set_input_embeddings(nn.EmbeddingBag(262, 32))
        case "another model":
            model = type("OtherForCausalLM", (type(model),), {})(model.config).eval()
    return model


CHANGES = (
    "training",
    "a hook on the model",
    "a hook on a layer",
    "a hook on the attention",
    "another forward",
    "one more part",
    "one more part of the attention",
    "another norm",
    "another MLP",
    "another embedding",
    "another model",
)


@pytest.mark.parametrize("how", CHANGES)
def test_a_model_that_was_changed_is_not(how):
    assert not is_like_llama(changed(how))
    assert is_like_llama(changed("nothing"))


@pytest.mark.parametrize(
    ("family", "config"),
    [
        ("llama", {"hidden_act": "gelu"}),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}),
    ],
)
def test_a_setting_that_changes_what_is_computed(family, config):
    assert not is_like_llama(build_model(family, **config))


def test_rows_stay_where_a_module_says_so():
    model = build_model("llama")
    assert not rows_stay(model)
    model.base_model.layers[0].self_attn.q_proj.rows_stay = True
    assert rows_stay(model)


def test_a_linear_layer_of_another_kind_is_called_as_it_is():
    """LoRA layers and a bank's are modules of their own: their output is what counts, in the place of the weight."""

    class Doubled(nn.Module):
        def __init__(self, inner: nn.Linear) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * self.inner(x)

    from warp_core.policy.llama import FusedLlama, KeyValues

    model = build_model("llama")
    for name in ("self_attn.k_proj", "mlp.up_proj", "self_attn.o_proj"):
        path = f"model.layers.0.{name}"
        model.set_submodule(path, Doubled(model.get_submodule(path)))
    assert is_like_llama(model)
    ids = torch.randint(0, 256, (2, 1), generator=torch.Generator().manual_seed(0))
    from warp_core.policy.decoding import LlamaDecoder

    with torch.no_grad():
        fused = FusedLlama(model, pack=True)
        assert KeyValues(fused, rows=2, slots=3).data.shape == (2, 2, 2, 2, 3, 8)
        found = LlamaDecoder(fused, max_new_tokens=1).prefill(ids, torch.ones_like(ids))
        torch.testing.assert_close(found, model(input_ids=ids).logits[:, -1], rtol=1e-4, atol=1e-4)
