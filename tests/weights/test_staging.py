"""Pieces arrive in order, ahead of their use; a resident merge on a device has the numbers of one on the CPU."""

import pytest
import torch

from tests import tiny
from tests.weights.helpers import full_set
from tests.weights.test_resident import coefs_of
from warp_core.weights import ResidentMerge, resident
from warp_core.weights.staging import Staging, place_for

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")


def test_pieces_are_asked_for_one_step_ahead_and_come_in_order():
    asked, used = [], []

    def jobs():
        for number in range(4):
            asked.append(number)
            yield number, [torch.full((3,), float(number)), torch.tensor([number])]

    for number, (piece, other) in Staging(torch.device("cpu")).staged(jobs()):
        assert len(asked) == min(number + 2, 4)
        assert piece.tolist() == [float(number)] * 3
        used.append(int(other))
    assert used == [0, 1, 2, 3]
    assert list(Staging(torch.device("cpu")).staged([])) == []


def test_sources_are_held_beside_the_model_where_they_fit(monkeypatch):
    assert place_for(torch.device("cpu"), 10**18) == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 2000))
    assert place_for(torch.device("cuda"), 800) == torch.device("cuda")
    assert place_for(torch.device("cuda"), 801) == torch.device("cpu")


def test_what_moves_on_a_device_is_what_moves_on_cores(monkeypatch, tmp_path):
    init, policies = full_set(tmp_path, dtype=torch.bfloat16)
    moved = []
    for on_device in (False, True):
        model = tiny.load_model(init.path, dtype=torch.float32)
        merge = ResidentMerge(model, init=init, policies=policies)
        monkeypatch.setattr(resident, "_ACCELERATOR_NUMEL", 1000)
        if on_device:  # its logic is the same on any device
            monkeypatch.setattr(merge, "_write_on_cores", merge._write_on_device)
        merge.move(coefs_of(init, policies, eta=0.4))
        moved.append({name: parameter.clone() for name, parameter in model.named_parameters()})
    assert all(torch.equal(moved[0][name], moved[1][name]) for name in moved[0])


@needs_cuda
@pytest.mark.parametrize("host", [False, True])
def test_a_resident_merge_on_cuda_is_that_on_the_cpu(host, monkeypatch, tmp_path):
    init, policies = full_set(tmp_path)
    model = tiny.load_model(init.path)
    ResidentMerge(model, init=init, policies=policies).move(coefs_of(init, policies, eta=0.4))
    if host:
        monkeypatch.setattr(resident, "place_for", lambda device, size_bytes: torch.device("cpu"))
        monkeypatch.setattr(resident, "_STAGED_NUMEL", 1000)
    other = tiny.load_model(init.path).to("cuda")
    merge = ResidentMerge(other, init=init, policies=policies)
    merge.move(coefs_of(init, policies, eta=0.4))
    held = merge.parameters_of(init)
    assert all(tensor.is_pinned() if host else tensor.is_cuda for tensor in held.values())
    for (name, want), got in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.allclose(got.cpu(), want, rtol=1e-6, atol=1e-7), name
