"""The saved state of a run: bit for bit, refused when foreign or damaged, replaced as a whole."""

import json

import pytest
import torch

from tests.training.helpers import copies, equal
from warp_core.errors import WorkspaceError
from warp_core.training.state import RunState, load_state, save_state


def make_state(step: int = 3, fingerprint: str = "abc") -> RunState:
    generator = torch.Generator().manual_seed(step)
    tensors = {
        part: {name: torch.randn(2, 3, generator=generator) for name in ("x.b_OR", "y/odd name")}
        for part in ("masters", "ema", "exp_avg", "exp_avg_sq")
    }
    tensors["masters"]["x.b_OR"] = torch.randn(3, 2, generator=generator).T.requires_grad_(True)  # not contiguous
    return RunState(step=step, fingerprint=fingerprint, **tensors)


def same(one: RunState, other: RunState) -> bool:
    parts = ("masters", "ema", "exp_avg", "exp_avg_sq")
    return one.step == other.step and all(equal(copies(getattr(one, p)), copies(getattr(other, p))) for p in parts)


def test_round_trip_and_replacement(tmp_path):
    folder = tmp_path / "state"
    assert load_state(folder, fingerprint="abc") is None
    for step in (3, 4):
        state = make_state(step)
        save_state(folder, state)
        assert same(load_state(folder, fingerprint="abc"), state)
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_the_same_state_has_the_same_bytes(tmp_path):
    for number in range(8):
        save_state(tmp_path / str(number), make_state())
    assert len({(tmp_path / str(number) / "state.safetensors").read_bytes() for number in range(8)}) == 1


def test_no_pickle(tmp_path):
    save_state(tmp_path / "state", make_state())
    assert sorted(path.name for path in (tmp_path / "state").iterdir()) == ["state.json", "state.safetensors"]


def test_another_configuration_is_refused(tmp_path):
    save_state(tmp_path / "state", make_state())
    with pytest.raises(WorkspaceError, match="other training settings"):
        load_state(tmp_path / "state", fingerprint="other")


@pytest.mark.parametrize("fault", ["cut", "json", "gone", "keys", "tensors", "step", "other"])
def test_damage_is_said(fault, tmp_path):
    folder = tmp_path / "state"
    save_state(folder, make_state())
    weights, header = folder / "state.safetensors", folder / "state.json"
    if fault == "cut":
        weights.write_bytes(weights.read_bytes()[:-5])
    elif fault == "json":
        header.write_text("{")
    elif fault == "gone":
        weights.unlink()
    elif fault == "keys":
        header.write_text(json.dumps({"step": 3}))
    elif fault == "step":
        header.write_text(json.dumps(json.loads(header.read_text()) | {"step": 9}))
    elif fault == "other":
        save_state(tmp_path / "later", make_state(8))
        weights.write_bytes((tmp_path / "later" / "state.safetensors").read_bytes())
    else:
        from safetensors.torch import save_file

        save_file({"masters": torch.ones(1)}, weights)
    with pytest.raises(WorkspaceError, match="is damaged") as caught:
        load_state(folder, fingerprint="abc")
    assert "\n" not in str(caught.value)


def test_a_replacement_that_was_cut_short_is_undone(tmp_path):
    """A kill between the two renames of a replacement leaves the old state under a hidden name."""
    folder = tmp_path / "state"
    save_state(folder, make_state(7))
    folder.rename(tmp_path / ".state.old-999999-00c0ffee")
    assert load_state(folder, fingerprint="abc").step == 7
