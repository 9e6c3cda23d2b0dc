"""Activations inside kernels, by the names of `reference.feed_forward.ACTIVATIONS`; arithmetic in float32."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def tanh(x):
    """The hyperbolic tangent; exponentials of negative numbers only, so nothing overflows."""
    e = tl.exp(-2.0 * tl.abs(x))
    return tl.where(x < 0, -1.0, 1.0) * (1.0 - e) / (1.0 + e)


@triton.jit
def activate(x, ACTIVATION: tl.constexpr):
    """The activation of x, float32."""
    value, _ = activate_with_slope(x, ACTIVATION)
    return value


@triton.jit
def activate_with_slope(x, ACTIVATION: tl.constexpr):
    """The activation of x and its derivative there, float32 both."""
    if ACTIVATION == "gelu":
        cdf = 0.5 * (1.0 + tl.erf(x * 0.7071067811865476))
        value, slope = x * cdf, cdf + x * 0.3989422804014327 * tl.exp(-0.5 * x * x)
    elif ACTIVATION == "gelu_tanh":
        t = tanh(0.7978845608028654 * (x + 0.044715 * x * x * x))
        inner = 0.7978845608028654 * (1.0 + 0.134145 * x * x)
        value, slope = 0.5 * x * (1.0 + t), 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * inner
    else:
        tl.static_assert(ACTIVATION == "relu")
        value, slope = tl.where(x > 0, x, 0.0), tl.where(x > 0, 1.0, 0.0)
    return value, slope
