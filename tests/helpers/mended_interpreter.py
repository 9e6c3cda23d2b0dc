"""Triton's interpreter, mended where it is not what a GPU is."""

from __future__ import annotations

import numpy as np
import torch


def mend() -> None:
    """To be called once, before a kernel runs."""
    _mend_bfloat16()
    _mend_loops()


def _mend_loops() -> None:
    """A bound of a loop may be an argument, of which Triton 3.6 makes an array that is no index to numpy 2.4 and up."""
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def patched(tensor, scope):
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    interpreter._patch_lang_tensor = patched


def _mend_bfloat16() -> None:
    """Casts round to nearest, and products take numbers instead of their bits, as in no release up to 3.7.1."""
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    cast, dot = InterpreterBuilder.cast_impl, InterpreterBuilder.create_dot

    def widened(handle):
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        return TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    def cast_impl(self, src, dst_type):
        if src.dtype.scalar == tl.bfloat16 and dst_type.scalar == tl.float32:
            return widened(src)
        if src.dtype.scalar == tl.float32 and dst_type.scalar == tl.bfloat16:
            rounded = torch.from_numpy(np.ascontiguousarray(src.data)).bfloat16().view(torch.int16)
            return TensorHandle(rounded.numpy().view(np.uint16).reshape(src.data.shape), tl.bfloat16)
        return cast(self, src, dst_type)

    def create_dot(self, a, b, *rest):
        return dot(self, widened(a), widened(b), *rest)

    InterpreterBuilder.cast_impl, InterpreterBuilder.create_dot = cast_impl, create_dot
