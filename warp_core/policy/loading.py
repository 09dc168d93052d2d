"""Load any checkpoint as a policy: a full model, or an adapter put into its base."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from warp_core.policy.model import Policy, load_policy
from warp_core.weights import Checkpoint, Coefficients, ResidentMerge, adapter_base_name, open_checkpoint
from warp_core.workspace.sources import resolve_model

__all__ = ["load_checkpoint", "open_all", "open_model"]


def open_model(name: str, *, base: str | None = None) -> Checkpoint:
    """Open a checkpoint named by a folder, a Hub id or `smollm2-135m`; an adapter's base is found by its name.

    Args:
        name: the checkpoint.
        base: the base model of an adapter, where it is not where the adapter says.

    Raises:
        CheckpointError: nothing there, or not usable; for an adapter also its base.
    """
    folder: Path = resolve_model(name)
    wanted = adapter_base_name(folder)
    if wanted is None:
        return open_checkpoint(folder)
    return open_checkpoint(folder, base=resolve_model(base or wanted) if base or wanted else None)


def open_all(init: str, policies: Sequence[str], *, base: str | None = None) -> tuple[Checkpoint, list[Checkpoint]]:
    """Open an init and its policies. The base of an adapter is `base`, or the folder it names, or else the init's.

    Raises:
        CheckpointError: as `open_model` does.
    """
    opened = open_model(init, base=base)
    return opened, [_open_policy(name, base=base, default=opened.full.path) for name in policies]


def _open_policy(name: str, *, base: str | None, default: Path) -> Checkpoint:
    folder = Path(name).expanduser()
    named = adapter_base_name(folder) if folder.is_dir() else None
    # An adapter made on another machine names a folder that is not here; one that is here is what it was made over.
    lost = named is not None and not Path(named).expanduser().is_dir()
    return open_model(name, base=base or (str(default) if lost else None))


def load_checkpoint(
    checkpoint: Checkpoint, *, device: torch.device | None = None, dtype: torch.dtype = torch.float32
) -> Policy:
    """Load a checkpoint into memory; an adapter is folded into its base by the same code that merges."""
    policy = load_policy(checkpoint.full.path, device=device, dtype=dtype)
    if checkpoint.kind == "adapter":
        everything = Coefficients(
            layers=("model",),
            granularity="model",
            init_L=np.ones(1),
            coef_LM=np.ones((1, 1)),
            towards_L=np.zeros(1),
        )
        ResidentMerge(policy.model, init=checkpoint.full, policies=[checkpoint]).move(everything)
    return policy
