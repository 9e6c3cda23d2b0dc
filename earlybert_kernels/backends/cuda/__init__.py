"""Calls the CUDA extension `earlybert_kernels._cuda`: tensors in, tensors out, on torch's current stream.

Importing this loads the extension but touches no GPU and needs no driver. With `EARLYBERT_CUDA_EMULATED=1` it loads
`earlybert_kernels._cuda_emulated` instead, the same kernels run by the processor (csrc/emulator), and takes tensors on
the CPU: that proves what they compute without a GPU.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor

from .. import load_extension

#: Whether kernels run on the CPU.
EMULATED = os.environ.get("EARLYBERT_CUDA_EMULATED", "0") == "1"

extension, missing = load_extension("_cuda_emulated" if EMULATED else "_cuda")

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_CODES = {} if extension is None else {getattr(torch, name): code for name, code in extension.DTYPES.items()}


def unavailable() -> str | None:
    """Why no op can run on this backend in this process, or None."""
    if missing is not None:
        return missing
    return None if EMULATED or torch.cuda.is_available() else "torch sees no CUDA GPU"


def refuses_device(*tensors: Tensor | None) -> str | None:
    """Why these tensors cannot be taken where they are, or None."""
    for tensor in tensors:
        if tensor is not None and tensor.device.type != ("cpu" if EMULATED else "cuda"):
            return f"it takes CUDA tensors, got one on {tensor.device}"
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


#: How `ops.dispatch.register` is told of this backend. The emulator is far too slow to be chosen unasked.
AVAILABILITY = {"unavailable": unavailable, "refuses": refuses, "on_demand": EMULATED}

# The kernels' modules need what stands above.
from . import activation as activation  # noqa: E402
from . import attention as attention  # noqa: E402
from . import attention_sublayer as attention_sublayer  # noqa: E402
from . import dropout_add_layer_norm as dropout_add_layer_norm  # noqa: E402
from . import embedding_layer_norm as embedding_layer_norm  # noqa: E402
from . import feed_forward as feed_forward  # noqa: E402
from . import feed_forward_sublayer as feed_forward_sublayer  # noqa: E402
from . import gather_units as gather_units  # noqa: E402
from . import lamb_step as lamb_step  # noqa: E402
from . import padding as padding  # noqa: E402
from . import ticket_distance as ticket_distance  # noqa: E402
from . import ticket_masks as ticket_masks  # noqa: E402
from . import units as units  # noqa: E402
