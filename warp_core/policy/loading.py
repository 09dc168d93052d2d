"""Load any checkpoint as a policy: a full model, or an adapter put into its base."""

import numpy as np
import torch

from warp_core.policy.model import Policy, load_policy
from warp_core.weights import Checkpoint, Coefficients, ResidentMerge
from warp_core.weights.opening import open_all, open_model

__all__ = ["load_checkpoint", "open_all", "open_model"]


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
