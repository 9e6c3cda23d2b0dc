"""Calls the CPU extension `earlybert_kernels._cpu`: tensors in, tensors out. One module an op.

Everything here takes contiguous or strided tensors on the CPU, floating ones in float32; `refuses` says what else it
was given.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import address, load_extension
from ..backend import Backend

# The extension uses OpenMP but links no OpenMP library: two runtimes in one process are two pools of
# threads that fight for the cores. Its symbols come from the runtime that `import torch` above has
# loaded for everybody; where torch was built with another one, from the system's.
if not hasattr(ctypes.CDLL(None), "GOMP_parallel"):
    with contextlib.suppress(OSError):  # then loading the extension says what is missing
        ctypes.CDLL("libgomp.so.1", mode=ctypes.RTLD_GLOBAL)

extension, missing = load_extension("_cpu")

if extension is not None and os.environ.get("EARLYBERT_INSTRUCTION_SET"):
    try:
        extension.use_instruction_set(os.environ["EARLYBERT_INSTRUCTION_SET"])
    except ValueError as error:
        raise ValueError(f"EARLYBERT_INSTRUCTION_SET: {error}") from None


def unavailable() -> str | None:
    """Why no op can run on this backend in this process, or None."""
    return missing


def openmp_runtimes() -> tuple[str | None, list[str]]:
    """The file of the OpenMP runtime that the extension computes with, and the files of others in the process.

    Others come with packages that bring one of their own, as scikit-learn does, and compute for those alone. Where the
    system does not list what a process has loaded (it has no /proc), None and nothing.
    """
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return None, []
    function = getattr(ctypes.CDLL(None), "GOMP_parallel", None)
    address = None if function is None else ctypes.cast(function, ctypes.c_void_p).value
    own, loaded = None, set()
    for start, end, file in re.findall(r"^(\w+)-(\w+) .*?(/.*)$", maps.read_text(), re.MULTILINE):
        if re.match(r"lib(gomp|iomp|omp)\b", Path(file).name):
            loaded.add(file)
        if address is not None and int(start, 16) <= address < int(end, 16):
            own = file
    return own, sorted(loaded - {own})


def refuses(*tensors: Tensor | None, **facts: int) -> str | None:
    """Why these tensors cannot be taken (device, dtype), or None."""
    return _refuses(tensors, torch.float32)


def _refuses(tensors: Iterable[Tensor | None], *dtypes: torch.dtype) -> str | None:
    for tensor in tensors:
        if tensor is None:
            continue
        if tensor.device.type != "cpu":
            return f"it takes CPU tensors, got one on {tensor.device}"
        if tensor.is_floating_point() and tensor.dtype not in dtypes:
            return f"it takes {' or '.join(map(_name, dtypes))} tensors, got {tensor.dtype}"
    return None


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def refuses_autocast(first: Tensor, *others: Tensor | None, **facts: int) -> str | None:
    """As `refuses`, for ops with matrix products that round float32 to bfloat16 under autocast to it.

    They take what is bfloat16 itself, too, if the first tensor is.
    """
    low = first.dtype == torch.bfloat16 and not torch.is_autocast_enabled("cpu")
    dtypes = (torch.float32, torch.bfloat16) if low else (torch.float32,)
    return _refuses_autocast_dtype() or _refuses((first, *others), *dtypes)


def _refuses_autocast_dtype() -> str | None:
    if torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") != torch.bfloat16:
        return f"its products are in float32 or bfloat16, and autocast to {torch.get_autocast_dtype('cpu')} is on"
    return None


def refuses_heads(q: Tensor, k: Tensor, v: Tensor, *others: Tensor | None, **facts: int) -> str | None:
    """As `refuses_autocast`, for attention, which takes queries, keys and values in bfloat16 as well."""
    heads = _refuses((q, k, v), torch.float32, torch.bfloat16)
    return _refuses_autocast_dtype() or heads or refuses(*others)


def refuses_rows(hidden: Tensor, labels: Tensor, weight: Tensor, bias: Tensor | None, **facts: int) -> str | None:
    """As `refuses_autocast`, of rows that under it may be bfloat16, as torch's layer norm makes them."""
    if torch.is_autocast_enabled("cpu") and hidden.dtype == torch.bfloat16 and hidden.device.type == "cpu":
        return refuses_autocast(weight, bias, labels)
    return refuses_autocast(hidden, labels, weight, bias)


def refuses_block(x: Tensor, *others: Tensor | None, **facts: int) -> str | None:
    """As `refuses_autocast`, of an x that under it may be bfloat16, as torch's products make it."""
    if torch.is_autocast_enabled("cpu"):
        return _refuses_autocast_dtype() or _refuses((x, *others), torch.float32, torch.bfloat16)
    return refuses_autocast(x, *others)


def empty(*shape: Any) -> Tensor:
    """What kernels write to: float32, whatever torch's default dtype is."""
    return torch.empty(*shape, dtype=torch.float32)


def place(tensor: Tensor | None) -> tuple[int, bool]:
    """A tensor's address, 0 for none, and whether it is bfloat16."""
    return address(tensor), tensor is not None and tensor.dtype == torch.bfloat16


def run(kernel: Callable[..., None], *arguments: Any) -> None:
    """Calls one of the extension's kernels on as many threads as torch has been told to use."""
    # OpenMP counts for each Python thread apart, and takes all cores in one where torch has not told it this way.
    torch.get_num_threads()
    kernel(*arguments)


# The kernels' modules need what stands above.
from . import attention as attention  # noqa: E402
from . import attention_sublayer as attention_sublayer  # noqa: E402
from . import dropout_add_layer_norm as dropout_add_layer_norm  # noqa: E402
from . import embedding_layer_norm as embedding_layer_norm  # noqa: E402
from . import encoder as encoder  # noqa: E402
from . import feed_forward as feed_forward  # noqa: E402
from . import feed_forward_sublayer as feed_forward_sublayer  # noqa: E402
from . import linear as linear  # noqa: E402
from . import masked_lm_loss as masked_lm_loss  # noqa: E402
from . import optimizer_step as optimizer_step  # noqa: E402

BACKEND = Backend(
    name="cpu",
    rank=2,
    devices=("cpu",),
    unavailable=unavailable,
    refuses=refuses,
    refusals={
        "attention": refuses_heads,
        "feed_forward": refuses_block,
        "attention_sublayer": refuses_autocast,
        "feed_forward_sublayer": refuses_autocast,
        "masked_lm_loss": refuses_rows,
    },
    wants_indices=True,
    rounds_factors=True,
)
