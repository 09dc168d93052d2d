"""The command `doctor`: versions, devices, measured speed of the dtypes."""

import platform
import time
from argparse import Namespace
from importlib import metadata
from typing import Any

import torch

import warp_core
from warp_core.commands.answer import Answer
from warp_core.policy.precision import choose_dtype, has_bfloat16, product_gflops
from warp_core.training.warp import devices_here
from warp_core.workspace.paths import cache_root, workspace_root
from warp_core.workspace.sources import embedded_folder

__all__ = ["doctor"]

PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "peft", "pydantic", "numpy")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LAYER_DTYPES = (torch.float32, torch.bfloat16)
SMALLEST, LARGEST = 256, 8192


def doctor(args: Namespace) -> Answer:
    """Say what this machine has and how fast it multiplies."""
    devices = [_device(device) for device in [*dict.fromkeys([torch.device("cpu"), *devices_here()])]]
    document: dict[str, Any] = {
        "warp_core": warp_core.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {name: metadata.version(name) for name in PACKAGES},
        "threads": torch.get_num_threads(),
        "devices": devices,
        "workspace": str(workspace_root()),
        "cache": str(cache_root()),
        "embedded_model": str(embedded_folder()) if embedded_folder().is_dir() else None,
    }
    lines = [f"warp-core {document['warp_core']}, Python {document['python']}, {document['platform']}"]
    lines.append(", ".join(f"{name} {version}" for name, version in document["versions"].items()))
    for device in devices:
        speeds = ", ".join(f"{name} {speed:,.0f}" for name, speed in device["gflops"].items())
        lines.append(f"{device['name']} ({device['device']}): GFLOP/s of matrix products: {speeds}")
        packed = ", ".join(f"{name} {speed:,.0f}" for name, speed in device["layer_gflops"].items())
        lines.append(f'  of a layer under a small batch: {packed}; model.dtype = "auto" is {device["auto_dtype"]} here')
    lines.append(f"runs: {document['workspace']}; cache: {document['cache']}")
    lines.append(f"embedded model: {document['embedded_model'] or 'not fetched yet'}")
    return Answer(document=document, text="\n".join(lines))


def _device(device: torch.device) -> dict[str, Any]:
    name = platform.processor() or platform.machine()
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    return {
        "device": str(device),
        "name": name,
        "gflops": {str(dtype).removeprefix("torch."): round(_gflops(device, dtype), 1) for dtype in DTYPES},
        "layer_gflops": {
            str(dtype).removeprefix("torch."): round(product_gflops(device, dtype), 1) for dtype in LAYER_DTYPES
        },
        "has_bfloat16": has_bfloat16(device),
        "auto_dtype": choose_dtype(device),
    }


def _gflops(device: torch.device, dtype: torch.dtype) -> float:
    """Best rate of a square matrix product, at a size for which it takes some milliseconds."""
    size, best_s = SMALLEST, _product_s(device, dtype, SMALLEST)
    while best_s < 0.005 and size < LARGEST:
        size *= 2
        best_s = _product_s(device, dtype, size)
    return 2 * size**3 / best_s / 1e9


def _product_s(device: torch.device, dtype: torch.dtype, size: int) -> float:
    """Seconds of one product, the best of those that fit into 50 ms after the first."""
    a, b = (torch.ones(size, size, device=device, dtype=dtype) for _ in range(2))
    float((a @ b)[0, 0])  # the first one prepares kernels
    times_s: list[float] = []
    while sum(times_s) < 0.05 and len(times_s) < 100:
        start = time.perf_counter()
        float((a @ b)[0, 0])  # waits for the device
        times_s.append(time.perf_counter() - start)
    return min(times_s)
