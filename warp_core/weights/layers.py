"""Which layer a tensor belongs to, and in which order layers are shown."""

import re

__all__ = ["GRANULARITIES", "group_of", "layer_of", "layer_order"]

GRANULARITIES = ("layer", "tensor", "model")
_HEADS = ("lm_head", "embed_out", "score", "v_head")


def layer_of(tensor_name: str) -> str:
    """The layer of a tensor: "model.layers.3.mlp.up_proj.weight" -> "model.layers.3", "lm_head.weight" -> "lm_head".

    A block is everything up to the first number in the name; what is in no block is a layer with its siblings
    (weight and bias of "model.norm"). This is the unit that gets one angle (paper, section 3.2).
    """
    parts = tensor_name.split(".")
    for index, part in enumerate(parts):
        if part.isdigit():
            return ".".join(parts[: index + 1])
    return ".".join(parts[:-1]) or tensor_name


def group_of(tensor_name: str, *, granularity: str) -> str:
    """The unit that shares one angle: the layer, the tensor itself, or "model" for all."""
    if granularity == "layer":
        return layer_of(tensor_name)
    return "model" if granularity == "model" else tensor_name


def layer_order(name: str) -> tuple[int, list[tuple[int, str]]]:
    """Sort key that follows the model: embeddings, blocks by number, final norm, head."""
    natural = [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"\.", name)]
    if any(part.isdigit() for part in name.split(".")):
        return 1, natural
    parts = set(name.split("."))
    if parts & set(_HEADS):
        return 3, natural
    first = any("emb" in part or part in ("wte", "wpe") for part in parts)
    return (0 if first else 2), natural
