"""How fast this machine multiplies and copies, which is what the roofline is made of."""

from __future__ import annotations

from collections.abc import Callable

import torch

from earlybert_kernels.backends import cpu

from .device_timer import DeviceTimer

_REPEATS = 8
#: Rows and columns of the matrices: large enough for full speed.
_MATRIX = {"cpu": 1024, "cuda": 8192}
#: Bytes copied: more than any cache holds.
_COPY = {"cpu": 2**28, "cuda": 2**31}


def measure_rates(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """The best of some runs of a matrix product, torch's or the library's if that is faster, and of torch's copy.

    Returns:
        `flops_per_second` of a product in `dtype`, and `bytes_per_second` (read and written) of a copy. Tensors that
        fit a cache move faster than that.
    """
    size = _MATRIX[device.type]
    # Random numbers: some processors multiply zeros faster.
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    products: list[Callable[[], object]] = [lambda: a @ b]
    if cpu.unavailable() is None and cpu.refuses(a) is None:
        products.append(lambda: cpu.linear.forward(a, cpu.linear.Kept(b), None))
    source = torch.randn(2**18, device=device).repeat(_COPY[device.type] // 2**20)
    target = torch.zeros_like(source)
    return {
        "flops_per_second": 2 * size**3 / min(_best(product, device) for product in products),
        "bytes_per_second": 2 * source.nbytes / _best(lambda: target.copy_(source), device),
    }


def _best(run: Callable[[], object], device: torch.device) -> float:
    timer = DeviceTimer(lambda _: run, device)
    timer.warm_up()
    return min(timer.seconds() for _ in range(_REPEATS))
