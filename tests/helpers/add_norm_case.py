"""What the tests of dropout_add_layer_norm share: inputs, calls under a known seed, and how exact they have to be."""

import torch

from earlybert_kernels import reference
from earlybert_kernels.reference.counter_rng import keep_mask, kept_scale

SHAPES = [(1, 1), (1, 1023), (7, 13), (31, 127), (512, 384), (2, 3, 768), (5, 2), (37, 1843), (1000, 5)]
SHAPES += [(7, 1021), (3, 2048), (3, 4099)]


def inputs(shape, *, device="cpu", dtype=torch.float32, param_dtype=None, grad=True):
    """x, residual, weight, bias, and a gradient of the output."""
    cols = shape[-1]
    x, residual, weight, bias, grad_out = (torch.randn(s) for s in (shape, shape, (cols,), (cols,), shape))
    tensors = [x, residual + 3, 1 + 0.2 * weight, bias]
    dtypes = [dtype, dtype, param_dtype or dtype, param_dtype or dtype]
    tensors = [t.to(device, d).requires_grad_(grad) for t, d in zip(tensors, dtypes, strict=True)]
    return *tensors, grad_out.to(device, dtype)


def seed_for(p, device="cpu"):
    return torch.tensor(0x123456789ABCDEF, device=device) if p else None


def seeded(backend, *inputs):
    """The dispatcher's op under a known seed."""
    return getattr(torch.ops.earlybert.dropout_add_layer_norm, backend)(*inputs, True)[0]


def run(function, tensors, grad_out):
    out = function(*tensors)
    return (out, *torch.autograd.grad(out, tensors, grad_out))


def defined(tensors, grad_out, p, keep, dtype, eps=1e-12):
    """Output and gradients of the reference in `dtype` under a mask."""

    def function(*t):
        return reference.dropout_add_layer_norm(*t, dropout_p=p, eps=eps, keep=keep)

    return run(function, [t.detach().to(dtype).requires_grad_() for t in tensors], grad_out.to(dtype))


def assert_as_exact_as_pytorch(results, tensors, grad_out, p, eps=1e-12):
    """At most twice the error of plain PyTorch in the same dtype, plus 8 roundings of the largest value."""
    keep = keep_mask(seed_for(p) or 0, tensors[0].shape, p).to(grad_out.device)
    truth = defined(tensors, grad_out, p, keep, torch.float64, eps)
    dtype = tensors[0].dtype
    plain = defined(tensors, grad_out, p, keep, dtype, eps)
    z = tensors[1].detach().double() + tensors[0].detach().double() * keep * kept_scale(p)
    rstd = (z.var(-1, unbiased=False) + eps).rsqrt().max()
    names = ("out", "grad_x", "grad_residual", "grad_weight", "grad_bias")
    for name, ours, stock, exact in zip(names, results, plain, truth, strict=True):
        scale = exact.abs().max()
        if name in ("grad_x", "grad_residual"):  # a small difference of values of this size
            scale = max(scale, rstd * (grad_out.double() * tensors[2].double()).abs().max() * kept_scale(p))
        error, allowed = (ours - exact).abs().max(), 2 * (stock - exact).abs().max()
        allowed = allowed + 8 * torch.finfo(dtype).eps * scale
        assert ours.isfinite().all(), name
        assert error <= allowed, f"{name}: error {error:.3g}, allowed {allowed:.3g}"
