"""A forward pass without gradients for models built like Llama: few large products and little around them.

A step of decoding is many small operations, and in transformers' general code those cost more than the products.
Here query, key and value are one product, gate and up another, the cache is written in place, and padding is left out:
only real tokens go through the layers, only positions that are asked for through the head.

Shape suffixes: B rows, T new tokens of each, S slots of the cache in use, N real tokens among B T, H hidden features,
J query heads, K key heads, G = J / K, D features of a head, I inner features of the MLP, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import LlamaForCausalLM, MistralForCausalLM, PreTrainedModel, Qwen2ForCausalLM, Qwen3ForCausalLM

from warp_core.policy.kernels import make_kernel

__all__ = ["FusedLlama", "KeyValues", "Place", "is_like_llama", "rows_stay"]

Apply = Callable[[torch.Tensor], torch.Tensor]

_FAMILIES = {LlamaForCausalLM: "Llama", MistralForCausalLM: "Mistral", Qwen2ForCausalLM: "Qwen2"} | {
    Qwen3ForCausalLM: "Qwen3"
}
_ROPE_TYPES = ("default", "linear", "llama3", "yarn")  # the others change with the length
_MAX_SCORES = 1 << 24  # above so many attention scores they are not written to memory


@dataclass(frozen=True, kw_only=True, eq=False)
class Place:
    """Where N new tokens stand: in slots start..start+T-1 of B rows.

    Attributes:
        start: slots that were in use before.
        shape: B and T.
        in_rows: whether the parts of a layer are to see B rows of T tokens, because their number says what they are.
        real_N: index b T + t of each token that is computed; None where all are.
        cos_N1D, sin_N1D: rotation of each token; the sign of the rotated half is in the sine.
        bias_B1TS: 0 where a token sees a slot and -inf elsewhere; None where every token sees every slot.
    """

    start: int
    shape: tuple[int, int]
    in_rows: bool
    real_N: torch.Tensor | None
    cos_N1D: torch.Tensor
    sin_N1D: torch.Tensor
    bias_B1TS: torch.Tensor | None


class KeyValues:
    """Keys and values of all layers for B rows, written in place.

    On the CPU they are held in float32: products of few rows are no slower there, and more exact.
    """

    def __init__(self, model: "FusedLlama", *, rows: int, slots: int) -> None:
        shape = (len(model.layers), 2, rows, model.key_heads, slots, model.head_dim)
        self.data = torch.zeros(shape, dtype=model.attention_dtype, device=model.device)

    def write(self, number: int, key_NKD: torch.Tensor, value_NKD: torch.Tensor, place: Place) -> None:
        """Put the keys and values of a layer's new tokens into their slots."""
        rows, tokens = place.shape
        slots = slice(place.start, place.start + tokens)
        for half, new_NKD in enumerate((key_NKD, value_NKD)):
            held_BKSD = self.data[number, half]
            if place.real_N is None:
                held_BKSD[:, :, slots] = new_NKD.view(rows, tokens, *new_NKD.shape[1:]).transpose(1, 2)
            else:
                row_N = place.real_N.div(tokens, rounding_mode="floor")
                held_BKSD[row_N, :, place.start + place.real_N % tokens] = new_NKD.to(held_BKSD.dtype)

    def repeated(self, times: int, *, slots: int) -> "KeyValues":
        """Return each row `times` times in a row, with room for `slots`."""
        layers, two, rows, heads, used, width = self.data.shape
        copy = object.__new__(KeyValues)
        copy.data = self.data.new_zeros(layers, two, rows, times, heads, slots, width)
        copy.data[..., :used, :] = self.data[:, :, :, None]
        copy.data = copy.data.view(layers, two, rows * times, heads, slots, width)
        return copy

    def keep(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order; those that stay in their place cost nothing."""
        moved = [(place, row) for place, row in enumerate(rows) if place != row]
        if moved:
            places, sources = zip(*moved, strict=True)
            self.data[:, :, list(places)] = self.data[:, :, list(sources)]
        self.data = self.data[:, :, : len(rows)]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Layer:
    """The parts of a layer, each a function of [N, H]."""

    before: Apply
    qkv: Apply
    query_norm: Apply | None
    key_norm: Apply | None
    out: Apply
    after: Apply
    gate_up: Apply
    down: Apply
    scale: float


class FusedLlama:
    """A model's layers, ready to be computed; the weights are packed where that pays and `pack` is set.

    A part that is not a plain module (a LoRA layer, a layer of an adapter bank, one with hooks) is called as it is.

    Args:
        model: one that `is_like_llama`.
        pack: lay the weights out anew, in a copy; without, they are used where they are.
    """

    def __init__(self, model: PreTrainedModel, *, pack: bool) -> None:
        self.inner: Any = model.base_model
        self.embed: Any = model.get_input_embeddings()
        self.device = self.embed.weight.device
        self.attention_dtype = torch.float32 if self.device.type == "cpu" else self.embed.weight.dtype
        config = model.config
        self.key_heads = int(config.num_key_value_heads)
        self.heads = int(config.num_attention_heads)
        self.head_dim = int(self.inner.layers[0].self_attn.head_dim)
        self.layers = [_layer(layer, pack=pack) for layer in self.inner.layers]
        self.norm = _norm(self.inner.norm)
        self.head = _joined([model.get_output_embeddings()], pack=pack)
        self._model = model

    @property
    def rows_stay(self) -> bool:
        """Whether, at present, the number of a row says what it is: then every token is computed and no row leaves."""
        return rows_stay(self._model)

    def rotations(self, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return cosines and signed sines [length, D] of the first positions."""
        positions = torch.arange(length, device=self.device)[None]
        cos_1LD, sin_1LD = self.inner.rotary_emb(self.embed.weight[:1].to(self.attention_dtype), positions)
        half = self.head_dim // 2
        return cos_1LD[0], torch.cat([-sin_1LD[0, :, :half], sin_1LD[0, :, half:]], dim=-1)

    def hidden(self, ids_BT: torch.Tensor, cache: KeyValues, place: Place) -> torch.Tensor:
        """Run B T tokens through the layers and write the cache; return the last hidden states of N tokens [N, H]."""
        embedded_BTH = self.embed(ids_BT)
        x_NH = embedded_BTH.flatten(0, 1)
        if place.real_N is not None:
            x_NH = x_NH[place.real_N]
        for number, layer in enumerate(self.layers):
            mixed_NH = self._attention(layer, number, self._seen(layer.before, x_NH, place), cache, place)
            x_NH = x_NH + mixed_NH
            inner_NI = _gated(self._seen(layer.gate_up, self._seen(layer.after, x_NH, place), place))
            x_NH = x_NH + self._seen(layer.down, inner_NI, place)
        return self._seen(self.norm, x_NH, place)

    def logits(self, hidden_NH: torch.Tensor) -> torch.Tensor:
        """Return the logits [N, V] of hidden states."""
        return self.head(hidden_NH)

    def _seen(self, part: Apply, x: torch.Tensor, place: Place) -> torch.Tensor:
        """Apply a part to the tokens; where rows have a meaning, the part sees them as rows."""
        if not place.in_rows:
            return part(x)
        return part(x.view(*place.shape, -1)).flatten(0, 1)

    def _attention(
        self, layer: _Layer, number: int, x_NH: torch.Tensor, cache: KeyValues, place: Place
    ) -> torch.Tensor:
        """The attention of a layer over everything in the cache and the new tokens."""
        qkv = self._seen(layer.qkv, x_NH, place).view(len(x_NH), -1, self.head_dim)
        query, key, value = torch.split(qkv, [self.heads, self.key_heads, self.key_heads], dim=1)
        if layer.query_norm is not None and layer.key_norm is not None:
            turned = _rotated(torch.cat([layer.query_norm(query), layer.key_norm(key)], dim=1), place)
        else:
            turned = _rotated(qkv[:, : self.heads + self.key_heads], place)
        cache.write(number, turned[:, self.heads :], value, place)
        (rows, tokens), stop = place.shape, place.start + place.shape[1]
        query = turned[:, : self.heads].flatten(1)
        if place.real_N is not None:
            query = query.new_zeros(rows * tokens, query.shape[1]).index_copy_(0, place.real_N, query)
        query_BKGTD = query.view(rows, tokens, self.key_heads, -1, self.head_dim).permute(0, 2, 3, 1, 4)
        key_BKSD, value_BKSD = cache.data[number, :, :, :, :stop]
        mixed_BKGTD = _attend(query_BKGTD, key_BKSD, value_BKSD, place.bias_B1TS, scale=layer.scale)
        mixed_NX = mixed_BKGTD.permute(0, 3, 1, 2, 4).reshape(rows * tokens, -1)
        if place.real_N is not None:
            mixed_NX = mixed_NX[place.real_N]
        return self._seen(layer.out, mixed_NX.to(x_NH.dtype), place)


def _rotated(x_NJD: torch.Tensor, place: Place) -> torch.Tensor:
    x_NJD = x_NJD.to(place.cos_N1D.dtype)
    return (x_NJD * place.cos_N1D).addcmul_(x_NJD.roll(x_NJD.shape[-1] // 2, dims=-1), place.sin_N1D)


def _attend(
    query_BKGTD: torch.Tensor,
    key_BKSD: torch.Tensor,
    value_BKSD: torch.Tensor,
    bias_B1TS: torch.Tensor | None,
    *,
    scale: float,
) -> torch.Tensor:
    """Softmax attention; the G query heads of a key head are as many more queries, so nothing is repeated."""
    rows, keys, group, tokens, width = query_BKGTD.shape
    slots = key_BKSD.shape[2]
    if query_BKGTD.device.type != "cpu" or rows * keys * group * tokens * slots > _MAX_SCORES:
        query = query_BKGTD.reshape(rows, keys * group, tokens, width)
        return functional.scaled_dot_product_attention(
            query, key_BKSD, value_BKSD, attn_mask=bias_B1TS, scale=scale, enable_gqa=group > 1
        ).view(rows, keys, group, tokens, width)
    # For few queries and keys two batched products are several times faster than torch's attention on the CPU.
    query = query_BKGTD.reshape(rows, keys, group * tokens, width)
    scores = torch.matmul(query, key_BKSD.transpose(2, 3)).view(rows, keys, group, tokens, slots)
    if bias_B1TS is None:
        scores.mul_(scale)
    else:
        scores = torch.add(bias_B1TS[:, :, None], scores, alpha=scale)
    weights = scores.softmax(dim=-1).view(rows, keys, group * tokens, slots)
    return torch.matmul(weights, value_BKSD).view(rows, keys, group, tokens, width)


def _gated(gate_up_NI: torch.Tensor) -> torch.Tensor:
    gate_NI, up_NI = gate_up_NI.chunk(2, dim=-1)
    return functional.silu(gate_NI).mul_(up_NI)


def rows_stay(model: nn.Module) -> bool:
    """Whether a module says, by an attribute of this name, that the number of a row says what the row is."""
    return any(getattr(module, "rows_stay", False) for module in model.modules())


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))


def _norm(module: Any) -> Apply:
    weight_H: torch.Tensor = module.weight
    shape, epsilon = tuple(weight_H.shape), float(module.variance_epsilon)

    def norm(x: torch.Tensor) -> torch.Tensor:
        # A bank gives its norms hooks when the first mix needs them.
        out: torch.Tensor = module(x) if _has_hooks(module) else functional.rms_norm(x, shape, weight_H, epsilon)
        return out

    return norm


def _joined(modules: Sequence[Any], *, pack: bool) -> Apply:
    """One product for linear layers of the same input, where they are plain and packed; otherwise one each."""
    plain = [type(module) is nn.Linear and not _has_hooks(module) for module in modules]
    if not all(plain) or not pack:
        parts = [_single(module, pack=pack) for module in modules]
        return parts[0] if len(parts) == 1 else lambda x: torch.cat([part(x) for part in parts], dim=-1)
    weights = [module.weight.detach() for module in modules]
    biases = [module.bias for module in modules]
    bias = None
    if any(one is not None for one in biases):
        zeros = (weight.new_zeros(len(weight)) for weight in weights)
        bias = torch.cat([zero if one is None else one.detach() for one, zero in zip(biases, zeros, strict=True)])
    return make_kernel(weights[0] if len(weights) == 1 else torch.cat(weights), bias)


def _single(module: Any, *, pack: bool) -> Apply:
    if type(module) is not nn.Linear or _has_hooks(module):
        return module
    if pack:
        return make_kernel(module.weight.detach(), module.bias)
    return lambda x: functional.linear(x, module.weight, module.bias)


def _layer(layer: Any, *, pack: bool) -> _Layer:
    attention, mlp = layer.self_attn, layer.mlp
    norms = [_norm(one) if one is not None else None for one in _head_norms(attention)]
    return _Layer(
        before=_norm(layer.input_layernorm),
        qkv=_joined([attention.q_proj, attention.k_proj, attention.v_proj], pack=pack),
        query_norm=norms[0],
        key_norm=norms[1],
        out=_joined([attention.o_proj], pack=pack),
        after=_norm(layer.post_attention_layernorm),
        gate_up=_joined([mlp.gate_proj, mlp.up_proj], pack=pack),
        down=_joined([mlp.down_proj], pack=pack),
        scale=float(attention.scaling),
    )


def _head_norms(attention: Any) -> list[Any]:
    return [getattr(attention, name, None) for name in ("q_norm", "k_norm")]


def is_like_llama(model: PreTrainedModel) -> bool:
    """Whether `FusedLlama` computes exactly what the model does: every part is known, and no setting changes it."""
    family = _FAMILIES.get(type(model))
    if family is None or model.training or _has_hooks(model) or _has_hooks(model.base_model):
        return False
    config = model.config
    windowed = getattr(config, "sliding_window", None) is not None and (
        family == "Mistral" or getattr(config, "use_sliding_window", True)
    )
    rope = getattr(config, "rope_parameters", None)
    if windowed or config.hidden_act != "silu" or not isinstance(rope, dict):
        return False
    if rope.get("rope_type") not in _ROPE_TYPES or rope.get("partial_rotary_factor", 1.0) != 1.0:
        return False
    inner: Any = model.base_model
    if set(dict(inner.named_children())) != {"embed_tokens", "layers", "norm", "rotary_emb"}:
        return False
    if type(inner.embed_tokens) is not nn.Embedding or type(inner.norm).__name__ != f"{family}RMSNorm":
        return False
    return all(_is_known(layer, family) for layer in inner.layers)


def _is_known(layer: Any, family: str) -> bool:
    """Whether a layer has the parts that are computed here, and no other."""
    attention, mlp = layer.self_attn, layer.mlp
    norms = (layer.input_layernorm, layer.post_attention_layernorm, *filter(None, _head_norms(attention)))
    types = [(layer, "DecoderLayer"), (attention, "Attention"), (mlp, "MLP"), *((norm, "RMSNorm") for norm in norms)]
    if any(type(module).__name__ != f"{family}{name}" for module, name in types):
        return False
    extra = {"q_norm", "k_norm"} if family == "Qwen3" else set()
    return (
        set(dict(layer.named_children())) == {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
        and set(dict(attention.named_children())) == {"q_proj", "k_proj", "v_proj", "o_proj"} | extra
        and set(dict(mlp.named_children())) == {"gate_proj", "up_proj", "down_proj", "act_fn"}
        and not any(map(_has_hooks, (layer, attention, mlp)))
    )
