"""The resumable state of one RL run: masters, EMA and Adam in one safetensors file, the step in JSON. No pickle.

No random state is saved: everything random is derived from the seed and the step. Both files say which step they are
of, so that neither can be changed without the other.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from warp_core.errors import WorkspaceError
from warp_core.workspace.publish import publish_folder, recover_folder
from warp_core.workspace.reading import read_regular

__all__ = ["RunState", "load_state", "save_state"]

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class RunState:
    """What a run resumes from after `step` steps; `fingerprint` says which configuration it belongs to."""

    step: int
    fingerprint: str
    masters: Tensors
    ema: Tensors
    exp_avg: Tensors
    exp_avg_sq: Tensors


_PARTS = ("masters", "ema", "exp_avg", "exp_avg_sq")


def save_state(folder: Path, state: RunState) -> None:
    """Publish the state at `folder` in place of an older one: whole or absent after any crash."""
    tensors = {
        f"{part}/{name}": tensor.detach().cpu().contiguous()
        for part in _PARTS
        for name, tensor in getattr(state, part).items()
    }
    # Storage shared between two names is refused by safetensors; masters and EMA never share after step 0.
    about = {"step": state.step, "fingerprint": state.fingerprint}
    # One entry: safetensors writes several in any order, and a state would not have the same bytes each time.
    sealed = {"state": json.dumps(about)}
    with publish_folder(folder, replace=True) as out:
        save_file(tensors, out / "state.safetensors", metadata=sealed)
        (out / "state.json").write_text(json.dumps({"format": 1} | about), encoding="utf-8")


def load_state(folder: Path, *, fingerprint: str) -> RunState | None:
    """Return the state at `folder`, or None where there is none.

    Raises:
        WorkspaceError: it belongs to another configuration, or is damaged.
    """
    recover_folder(folder)
    if not folder.is_dir():
        return None
    try:
        header: Mapping[str, object] = json.loads(read_regular(folder / "state.json"))
        parts: dict[str, Tensors] = {part: {} for part in _PARTS}
        with safe_open(folder / "state.safetensors", framework="pt") as file:
            sealed = file.metadata()
        for key, tensor in load_file(folder / "state.safetensors").items():
            part, name = key.split("/", 1)
            parts[part][name] = tensor
        step, saved_as = int(str(header["step"])), header["fingerprint"]
        # States of before 2026-11-23 have no metadata.
        if sealed and json.loads(sealed["state"]) != {"step": step, "fingerprint": saved_as}:
            raise ValueError(f"state.json says step {step}, state.safetensors {sealed['state']}")
    except MemoryError:
        raise
    except Exception as error:
        raise WorkspaceError(
            f"the saved state {folder} is damaged ({error}): remove it to start that run again"
        ) from error
    if saved_as != fingerprint:
        raise WorkspaceError(f"{folder} was saved with other training settings: resume with the run's own config.toml")
    return RunState(step=step, fingerprint=fingerprint, **parts)
