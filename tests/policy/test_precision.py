"""The choice of a dtype: bfloat16 needs the instructions and a measurement that says so."""

import pytest
import torch

from warp_core.policy import precision
from warp_core.policy.precision import choose_dtype, has_bfloat16, product_gflops

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_rate_is_work_over_time(dtype, monkeypatch):
    assert product_gflops(CPU, dtype) > 0
    monkeypatch.setattr(precision, "_best_s", lambda call: 0.001)
    assert product_gflops(CPU, dtype) == pytest.approx(2 * 256 * 1024 * 3072 / 0.001 / 1e9)


@pytest.mark.parametrize(
    ("instructions", "rate", "chosen"),
    [(True, 200.0, "bfloat16"), (True, 131.0, "bfloat16"), (True, 129.0, "float32"), (False, 900.0, "float32")],
)
def test_bfloat16_where_it_is_there_and_pays(instructions, rate, chosen, monkeypatch):
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: instructions)
    monkeypatch.setattr(precision, "product_gflops", lambda device, dtype: rate if dtype == torch.bfloat16 else 100.0)
    assert choose_dtype(CPU) == chosen


def test_a_torch_that_does_not_tell_has_none(monkeypatch):
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.delattr(torch.cpu, name, raising=False)
    assert not has_bfloat16(CPU)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_is_measured_too():
    assert product_gflops(torch.device("cuda"), torch.float32) > 0
