"""One example of each op, big enough to run on several threads, for tests of what all ops have in common."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

import earlybert_kernels as ek

LENGTHS = (31,) * 40
LABELS = torch.arange(300).remainder(3).sub(1).mul(100)  # -100, 0 and 100


def _attention(q: Tensor, k: Tensor, v: Tensor, gates: Tensor, dropout_p: float, backend: str) -> Tensor:
    cu_seqlens = torch.tensor([0, *LENGTHS], device=q.device).cumsum(0).int()
    options = {"head_gates": gates.float(), "dropout_p": dropout_p, "backend": backend}
    return ek.ops.attention(q, k, v, cu_seqlens, max(LENGTHS), **options)


def _feed_forward(*tensors: Tensor, dropout_p: float, backend: str) -> Tensor:
    *weights, gates = tensors
    return ek.ops.feed_forward(*weights, neuron_gates=gates.float(), backend=backend)


def _dropout_add_layer_norm(*tensors: Tensor, dropout_p: float, backend: str) -> Tensor:
    return ek.ops.dropout_add_layer_norm(*tensors, dropout_p=dropout_p, backend=backend)


def _masked_lm_loss(hidden: Tensor, weight: Tensor, bias: Tensor, dropout_p: float, backend: str) -> Tensor:
    return ek.ops.masked_lm_loss(hidden, LABELS.to(hidden.device), weight, bias, backend=backend)


def _feed_forward_sublayer(*tensors: Tensor, dropout_p: float, backend: str) -> Tensor:
    *weights, gates = tensors
    active = torch.arange(0, 333, 2, device=gates.device)
    options = {"active_neurons": active, "neuron_gates": gates.float(), "dropout_p": dropout_p, "backend": backend}
    return ek.ops.feed_forward_sublayer(*weights, **options)


def _attention_sublayer(x: Tensor, *tensors: Tensor, dropout_p: float, backend: str) -> Tensor:
    *weights, gates = tensors
    cu_seqlens = torch.tensor([0, *LENGTHS], device=x.device).cumsum(0).int()
    rates = {"attention_dropout_p": dropout_p, "dropout_p": dropout_p}
    active = torch.tensor([0, 1, 3], device=x.device)
    options = {"head_size": 32, "active_heads": active, "head_gates": gates.float(), "backend": backend}
    return ek.ops.attention_sublayer(x, cu_seqlens, max(LENGTHS), *weights, **options, **rates)


def _embedding_layer_norm(*tensors: Tensor, dropout_p: float, backend: str) -> Tensor:
    ids = [torch.arange(700, device=tensors[0].device).mul(7).remainder(rows) for rows in (99, 40, 2)]
    return ek.ops.embedding_layer_norm(*ids, *tensors, padding_id=0, dropout_p=dropout_p, backend=backend)


def _gather_units(*tensors: Tensor, dropout_p: float, backend: str) -> Tensor:
    """Columns of neurons and of heads, with gates and without, and rows."""
    w_out, w_heads, w_in, gates = tensors
    active = torch.arange(0, 333, 2, device=w_in.device)
    parts = ek.ops.gather_units(
        [w_out, w_out, w_heads, w_in], [active, active, torch.tensor([3, 1], device=w_in.device), active], [1, 1, 1, 0],
        sizes=[1, 1, 16, 1], gates=[gates.float(), None, None, None], backend=backend,
    )  # fmt: skip
    return torch.cat([part.flatten() for part in parts])


def _optimizer_step(*tensors: Tensor, dropout_p: float, backend: str) -> Tensor:
    """Three tensors of each kind, one of them a prime number of columns wide; returns what the step has changed."""
    tensors = [tensor.detach().clone() for tensor in tensors]
    params, grads, exp_avgs, exp_avg_sqs = (tensors[kind::4] for kind in range(4))
    for tensor in exp_avg_sqs:
        tensor.square_()
    options = {"lr": 0.1, "betas": (0.9, 0.999), "eps": 1e-6, "weight_decay": 0.01, "adapt": True}
    ek.ops.optimizer_step(params, grads, exp_avgs, exp_avg_sqs, [3.0] * 3, **options, backend=backend)
    return torch.cat([tensor.flatten() for tensor in (*params, *exp_avgs, *exp_avg_sqs)])


def _ticket_masks(*scores: Tensor, dropout_p: float, backend: str) -> Tensor:
    return ek.ops.ticket_masks(scores, 2500, multiple_of=8, backend=backend)


def _ticket_distance(*tensors: Tensor, dropout_p: float, backend: str) -> Tensor:
    return ek.ops.ticket_distance(*(tensor > 0 for tensor in tensors), backend=backend)


#: By op: a call, and the shapes of the tensors that it takes and (but for an optimizer's step) has gradients for.
EXAMPLES: dict[str, tuple[Callable[..., Tensor], list[tuple[int, ...]]]] = {
    "attention": (_attention, [(1240, 4, 32)] * 3 + [(4,)]),
    "feed_forward": (_feed_forward, [(300, 48), (333, 48), (333,), (48, 333), (48,), (333,)]),
    "dropout_add_layer_norm": (_dropout_add_layer_norm, [(1337, 43), (1337, 43), (43,), (43,)]),
    "feed_forward_sublayer": (
        _feed_forward_sublayer,
        [(300, 48), (333, 48), (333,), (48, 333), (48,), (48,), (48,), (333,)],
    ),
    "attention_sublayer": (
        _attention_sublayer,
        [(1240, 48), *[(128, 48), (128,)] * 3, (48, 128), (48,), (48,), (48,), (4,)],
    ),
    "embedding_layer_norm": (_embedding_layer_norm, [(99, 48), (40, 48), (2, 48), (48,), (48,)]),
    "gather_units": (_gather_units, [(48, 333), (48, 64), (333, 48), (333,)]),
    "optimizer_step": (_optimizer_step, [(613, 300)] * 4 + [(7,)] * 4 + [(41, 997)] * 4),
    "masked_lm_loss": (_masked_lm_loss, [(300, 48), (1999, 48), (1999,)]),
    "ticket_distance": (_ticket_distance, [(5001,), (5001,)]),
    "ticket_masks": (_ticket_masks, [(1843,), (77,), (4096,)]),
}


def dtypes(op: str, backend: str) -> list[torch.dtype]:
    """What the tensors of an op's example may be on a backend for GPUs."""
    if op == "optimizer_step":
        return [torch.float32]
    half = [torch.float16, torch.bfloat16]
    return half if backend == "cuda" and op in ("attention", "attention_sublayer") else [torch.float32, *half]


def inputs(op: str, generator: torch.Generator) -> list[Tensor]:
    """What an op's example takes."""
    return [torch.randn(shape, generator=generator).requires_grad_() for shape in EXAMPLES[op][1]]


def results(
    op: str, backend: str, dropout_p: float = 0.0, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    """Output and gradients (where it has any) of an op's example, the same in every call.

    Without dropout that is so next to other threads, too; its seeds come from the generator that all threads share.
    """
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    tensors = [tensor.detach().to(device, dtype).requires_grad_() for tensor in inputs(op, generator)]
    out = EXAMPLES[op][0](*tensors, dropout_p=dropout_p, backend=backend)
    if not out.requires_grad:
        return [out]
    return [out.detach(), *torch.autograd.grad(out, tensors, torch.randn(out.shape, generator=generator).to(out))]
