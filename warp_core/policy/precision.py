"""How fast a device multiplies in each dtype, and which one training should compute in.

Weights, EMA and optimizer are float32 whatever is chosen here; it is the dtype of the products.
"""

import time
from collections.abc import Callable

import torch

from warp_core.policy.kernels import make_kernel

__all__ = ["choose_dtype", "has_bfloat16", "product_gflops"]

ROWS, WIDTH, OUT = 256, 1024, 3072  # a layer of a small model under a small batch
GAIN = 1.3  # below it bfloat16's rounding buys too little
TIME_S = 0.05


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device has instructions for bfloat16; without them it is emulated, and slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return device.type == "cpu" and any(getattr(torch.cpu, name, bool)() for name in names)


def product_gflops(device: torch.device, dtype: torch.dtype) -> float:
    """Return the best rate of a layer's product, in the layout in which frozen weights are held, in GFLOP/s."""
    weight_OI = torch.ones(OUT, WIDTH, device=device, dtype=dtype)
    x = torch.ones(ROWS, WIDTH, device=device, dtype=dtype)
    kernel = make_kernel(weight_OI, None)
    return 2 * ROWS * WIDTH * OUT / _best_s(lambda: float(kernel(x)[0, 0])) / 1e9


def choose_dtype(device: torch.device) -> str:
    """Return `bfloat16` where the device has it and a short measurement says that it pays, otherwise `float32`."""
    if not has_bfloat16(device):
        return "float32"
    gain = product_gflops(device, torch.bfloat16) / product_gflops(device, torch.float32)
    return "bfloat16" if gain >= GAIN else "float32"


def _best_s(call: Callable[[], object]) -> float:
    """Seconds of a call, the best of those that fit into a moment after the first, which prepares kernels."""
    call()
    times_s: list[float] = []
    while sum(times_s) < TIME_S and len(times_s) < 100:
        start = time.perf_counter()
        call()
        times_s.append(time.perf_counter() - start)
    return min(times_s)
