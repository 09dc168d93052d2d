"""Opened tiny checkpoints for the tests of merges."""

from pathlib import Path

import torch

from tests import tiny
from warp_core.weights import compute_geometry, make_recipe, merge_to_folder, open_checkpoint


def full_set(tmp_path, family="llama", *, num=2, scale=0.02, **model):
    """init and `num` policies of a family as opened checkpoints."""
    init = tiny.make_model(family, tmp_path / "init", **model)
    policies = tiny.make_policies(init, tmp_path, num=num, scale=scale)
    return open_checkpoint(init), [open_checkpoint(policy) for policy in policies]


def adapter_set(tmp_path, family="llama", *, num=2, with_init=False, shared_a=False, dtype=torch.float32, **lora):
    """(init, policies): adapters over one base; init is the base, or an adapter itself."""
    base = tiny.make_model(family, tmp_path / "base", dtype=dtype)
    seed_a = {"seed_a": 99} if shared_a else {}
    adapters = [
        tiny.make_adapter(base, tmp_path / f"adapter{m}", seed=m, **seed_a, **lora) for m in range(num + with_init)
    ]
    opened = [open_checkpoint(adapter, base=base) for adapter in adapters]
    return (opened[0], opened[1:]) if with_init else (open_checkpoint(base), opened)


def merge(init, policies, out: Path, *, towards=None, dtype=None, kind="full", max_shard_size="5GB", **recipe):
    """Recipe, geometry and streamed merge in one call; returns the report."""
    made = make_recipe(init, policies, towards=towards, **recipe)
    geometry = compute_geometry(init, policies, granularity=made.granularity)
    return merge_to_folder(
        made,
        init=init,
        policies=policies,
        geometry=geometry,
        out=out,
        towards=towards,
        dtype=dtype,
        kind=kind,
        max_shard_size=max_shard_size,
    )
