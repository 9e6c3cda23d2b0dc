"""Calls the CUDA extension `earlybert_kernels._cuda`: tensors in, tensors out, on torch's current stream.

Importing this loads the extension but touches no GPU and needs no driver. With `EARLYBERT_CUDA_EMULATED=1` it loads
`earlybert_kernels._cuda_emulated` instead, the same kernels run by the processor (csrc/emulator), and takes tensors on
the CPU: that proves what they compute without a GPU.
"""

from __future__ import annotations

import os
import re
from functools import cache
from typing import Any

import torch
from torch import Tensor

from .. import architecture_of, build_record, load_extension
from ..backend import Backend

#: Whether kernels run on the CPU.
EMULATED = os.environ.get("EARLYBERT_CUDA_EMULATED", "0") == "1"

extension: Any
missing: str | None
extension, missing = load_extension("_cuda_emulated" if EMULATED else "_cuda")

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_CODES = {} if extension is None else {getattr(torch, name): code for name, code in extension.DTYPES.items()}


@cache
def unavailable() -> str | None:
    """Why no op can run on this backend in this process, or None."""
    if missing is not None:
        return missing
    if EMULATED:
        return None
    if not torch.cuda.is_available():
        return "torch sees no CUDA GPU"
    reasons = [lacks_code(gpu) for gpu in range(torch.cuda.device_count())]
    return reasons[0] if all(reasons) else None


@torch.compiler.assume_constant_result
def lacks_code(gpu: int) -> str | None:
    """Why no kernel of the extension can run on the GPU of that index, or None."""
    return _lacks_code(gpu)


@cache
def _lacks_code(gpu: int) -> str | None:  # apart: the compiler looks through what `cache` wraps
    built = re.findall(r"code=((?:sm|compute)_\w+)", " ".join(build_record().get("_cuda", {}).get("flags", ())))
    here = architecture_of(gpu)
    if not built or any(runs_on(code, here) for code in built):  # without a record, launching will tell
        return None
    return (
        f"earlybert_kernels._cuda holds code for {', '.join(built)}, and none of it runs on this GPU (sm_{here}): "
        "build it where the GPU is, or with EARLYBERT_CUDA_ARCHS"
    )


def runs_on(code: str, architecture: int) -> bool:
    """Whether code that nvcc made for "sm_80", "sm_90a", "sm_100f" or "compute_80" runs on a GPU of that architecture.

    Machine code runs within its major version from its minor one on, that of an "a" architecture on no other one. PTX
    is compiled by the driver for whatever is newer.
    """
    kind, number, feature = re.findall(r"^(sm|compute)_(\d+)([af]?)$", code)[0]
    target = int(number)
    if feature == "a":
        return architecture == target
    return architecture >= target and (architecture // 10 == target // 10 or (kind, feature) == ("compute", ""))


def refuses_device(*tensors: Tensor | None) -> str | None:
    """Why these tensors cannot be taken where they are, or None."""
    for tensor in tensors:
        if tensor is None:
            continue
        if tensor.device.type != ("cpu" if EMULATED else "cuda"):
            return f"it takes CUDA tensors, got one on {tensor.device}"
        if not EMULATED and (reason := lacks_code(tensor.get_device())) is not None:
            return reason
    return None


def refuses(*tensors: Tensor | None, **facts: int) -> str | None:
    """Why these tensors cannot be taken (device, dtype), or None."""
    for tensor in tensors:
        if tensor is not None and tensor.is_floating_point() and tensor.dtype not in DTYPES:
            return f"it takes float32, float16 and bfloat16 tensors, got {tensor.dtype}"
    return refuses_device(*tensors)


def product_dtype(weight: Tensor) -> torch.dtype:
    """The dtype that the products of a linear layer's weight have: its own, or autocast's for float32."""
    if weight.dtype == torch.float32 and torch.is_autocast_enabled(weight.device.type):
        return torch.get_autocast_dtype(weight.device.type)
    return weight.dtype


def launch(tensor: Tensor) -> tuple[int, int]:
    """Where to launch: the tensor's device and that device's current stream, as the extension's first arguments."""
    if EMULATED:
        return 0, 0
    device = tensor.get_device()
    # Without the Stream object that `torch.cuda.current_stream` makes: a few hundred nanoseconds less a launch.
    return device, torch._C._cuda_getCurrentRawStream(device)


def code(tensor: Tensor) -> int:
    """The extension's number for a tensor's dtype."""
    return _CODES[tensor.dtype]


# The kernels' modules need what stands above.
from . import activation as activation  # noqa: E402
from . import attention as attention  # noqa: E402
from . import attention_sublayer as attention_sublayer  # noqa: E402
from . import dropout_add_layer_norm as dropout_add_layer_norm  # noqa: E402
from . import embedding_layer_norm as embedding_layer_norm  # noqa: E402
from . import feed_forward as feed_forward  # noqa: E402
from . import feed_forward_sublayer as feed_forward_sublayer  # noqa: E402
from . import gather_units as gather_units  # noqa: E402
from . import optimizer_step as optimizer_step  # noqa: E402
from . import padding as padding  # noqa: E402
from . import ticket_distance as ticket_distance  # noqa: E402
from . import ticket_masks as ticket_masks  # noqa: E402
from . import units as units  # noqa: E402

BACKEND = Backend(
    name="cuda",
    rank=0,
    devices=("cuda",),
    emulated=EMULATED,
    unavailable=unavailable,
    refuses=refuses,
    refusals={
        "attention": attention.refuses,
        "attention_sublayer": attention_sublayer.refuses,
        "dropout_add_layer_norm": dropout_add_layer_norm.refuses,
        "embedding_layer_norm": embedding_layer_norm.refuses,
        "feed_forward": units.refuses,
        "feed_forward_sublayer": feed_forward_sublayer.refuses,
        "gather_units": gather_units.refuses,
        "optimizer_step": optimizer_step.refuses,
        "pad": padding.refuses,
        "ticket_masks": ticket_masks.refuses,
        "unpad": padding.refuses,
    },
    gathers_units=True,
    joins_projections=True,
)
