"""LAMB's step against the algorithm as the paper writes it, and the compiled step on every instruction set."""

from __future__ import annotations

import pytest
import torch

import earlybert_kernels as ek
from earlybert_kernels.backends import cpu
from tests.helpers.accuracy import assert_as_exact_as_pytorch
from tests.helpers.covering import every_pair
from tests.helpers.targets import targets_of
from tests.ops.conftest import ISAS

TARGETS = pytest.mark.parametrize("target", targets_of("optimizer_step"), ids=lambda target: target.backend)
STEPS = 20
OPTIONS = {"lr": 0.02, "betas": (0.9, 0.99), "eps": 1e-6, "weight_decay": 0.1}
SHAPES = [
    (), (1,), (2,), (3,), (5,), (15,), (16,), (17,), (31,), (33,), (63,), (65,), (257,), (1000,), (8191,), (8192,),
    (8193,), (10007,), (0,), (7, 0, 2), (3, 5, 7), (64, 127), (300, 1001),
]  # fmt: skip


def naive(params, grads_of_steps, *, lr, betas, eps, weight_decay, adapt, l1=0.0, grad_factor=1.0):
    """Algorithm 2 in float64, tensor by tensor: the parameters and both moments after all steps."""
    beta1, beta2 = betas
    results = []
    for number, param in enumerate(params):
        p = param.double()
        m, v = torch.zeros_like(p), torch.zeros_like(p)
        for step, grads in enumerate(grads_of_steps, start=1):
            g = grad_factor * grads[number].double() + l1 * p.sign()
            m = beta1 * m + (1 - beta1) * g
            v = beta2 * v + (1 - beta2) * g * g
            u = m / (1 - beta1**step) / ((v / (1 - beta2**step)).sqrt() + eps) + weight_decay * p
            p_norm, u_norm = p.square().sum().sqrt().item(), u.square().sum().sqrt().item()
            ratio = p_norm / u_norm if adapt and p_norm > 0 and u_norm > 0 else 1.0
            p = p - lr * ratio * u
        results += [p, m, v]
    return results


def stepped(backend, params, grads_of_steps, *, dtype=torch.float32, view=torch.clone, **options):
    """The same from the op, which is handed `view` of every tensor."""
    params = [view(p.to(dtype)) for p in params]
    exp_avgs, exp_avg_sqs = ([view(torch.zeros_like(p)) for p in params] for _ in range(2))
    for step, grads in enumerate(grads_of_steps, start=1):
        grads = [view(g.to(dtype)) for g in grads]
        counts = [float(step)] * len(params)
        ek.ops.optimizer_step(params, grads, exp_avgs, exp_avg_sqs, counts, **options, backend=backend)
    return [t for tensors in zip(params, exp_avgs, exp_avg_sqs, strict=True) for t in tensors]


def problem(shapes, steps=STEPS):
    """Parameters and the gradients of some steps; a parameter that is 0, and gradients that are 0, come at the end."""
    params = [torch.randn(shape) for shape in shapes]
    grads = [[torch.randn(shape) * 3**-step for shape in shapes] for step in range(steps)]
    params += [torch.zeros(70), torch.randn(70), torch.zeros(5)]
    for step in range(steps):
        grads[step] += [torch.randn(70), torch.zeros(70), torch.zeros(5)]
    return params, grads


def penalized_problem(shapes, steps=STEPS):
    """The same with parameters of 1 or more that keep their sign: next to 0 it would be a matter of rounding."""
    params, grads = problem(shapes, steps)
    return [param + param.sign() for param in params], grads


def assert_exact(ours, plain, truth):
    """Of tensors that hold numbers."""
    kept = [group for group in zip(ours, plain, truth, strict=True) if group[2].numel()]
    assert_as_exact_as_pytorch(*zip(*kept, strict=True))


def misaligned(tensor):
    """The same numbers 4 bytes behind an address of malloc's."""
    return torch.empty(tensor.numel() + 1)[1:].view(tensor.shape).copy_(tensor)


def transposed(tensor):
    return tensor.t().clone(memory_format=torch.contiguous_format).t() if tensor.dim() == 2 else tensor.clone()


def with_gaps(tensor):
    return torch.stack([tensor, tensor], -1).select(-1, 0)


@pytest.mark.parametrize("adapt", [True, False])
def test_the_reference_is_the_papers_algorithm(adapt):
    params, grads = problem(SHAPES)
    truth = naive(params, grads, adapt=adapt, **OPTIONS)
    ours = stepped("reference", params, grads, dtype=torch.float64, adapt=adapt, **OPTIONS)
    for a, b in zip(ours, truth, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


@every_pair(isa=ISAS, adapt=[True, False], grad_factor=[1.0, 0.3], indirect=["isa"])
def test_a_factor_and_a_penalty_are_part_of_the_gradient(isa, adapt, grad_factor):
    params, grads = penalized_problem(SHAPES)
    options = {**OPTIONS, "lr": 1e-3, "adapt": adapt, "l1": 0.3, "grad_factor": grad_factor}
    truth = naive(params, grads, **options)
    exact = stepped("reference", params, grads, dtype=torch.float64, **options)
    for a, b in zip(exact, truth, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)
    plain = stepped("reference", params, grads, **options)
    assert_exact(stepped("cpu", params, grads, **options), plain, truth)
    without = stepped("cpu", params, grads, **{**options, "l1": 0.0})
    assert all((a != b).any() == (a != 0).any() for a, b in zip(truth[::3], without[::3], strict=True))


@every_pair(isa=ISAS, adapt=[True, False], view=[torch.clone, misaligned, transposed, with_gaps], indirect=["isa"])
def test_the_kernel_is_as_exact_as_pytorch(isa, adapt, view):
    params, grads = problem(SHAPES)
    truth = naive(params, grads, adapt=adapt, **OPTIONS)
    plain = stepped("reference", params, grads, adapt=adapt, **OPTIONS)
    assert_exact(stepped("cpu", params, grads, view=view, adapt=adapt, **OPTIONS), plain, truth)


@pytest.mark.parametrize("size", [*range(1, 70), 8192 + 3])
def test_nothing_around_a_tensor_is_touched(isa, size):
    around = [torch.full((size + 40,), 7.0) for _ in range(4)]
    params, grads, exp_avgs, exp_avg_sqs = ([t[20 : 20 + size]] for t in around)
    ek.ops.optimizer_step(params, grads, exp_avgs, exp_avg_sqs, [1.0], adapt=True, backend="cpu", **OPTIONS)
    assert all((t[:20] == 7).all() and (t[20 + size :] == 7).all() for t in around)
    assert (grads[0] == 7).all() and not (params[0] == 7).any()


@pytest.mark.skipif(cpu.unavailable() is not None, reason=f"cpu: {cpu.unavailable()}")
def test_more_tensors_than_a_batch_holds_own_steps_each():
    shapes = [(200, 333 + number) for number in range(9)] + [(3,)] * 40 + [(700, 701)]
    params, grads = ([torch.randn(shape) for shape in shapes] for _ in range(2))
    moments = [[torch.rand(shape) for shape in shapes] for _ in range(2)]
    steps = [1.0 + number % 7 for number in range(len(shapes))]
    results = {}
    for backend, dtype in (("cpu", torch.float32), ("reference", torch.float32), ("reference", torch.float64)):
        tensors = [[t.to(dtype, copy=True) for t in kind] for kind in (params, grads, *moments)]
        ek.ops.optimizer_step(*tensors, steps, adapt=True, backend=backend, **OPTIONS)
        results[backend, dtype] = tensors[0] + tensors[2] + tensors[3]
    assert_exact(*results.values())


@TARGETS
def test_a_step_is_as_long_as_the_parameter_says(target):
    for scale in (1e-12, 1.0, 1e12):
        param, grad = (torch.randn(300, 70, device=target.device) for _ in range(2))
        param *= scale
        moved, *moments = param.clone(), torch.zeros_like(param), torch.zeros_like(param)
        ek.ops.optimizer_step(
            [moved], [grad], *([moment] for moment in moments), [1.0],
            lr=0.25, betas=(0.9, 0.999), eps=1e-6, weight_decay=0.0, adapt=True, backend=target.backend,
        )  # fmt: skip
        torch.testing.assert_close((moved - param).norm(), 0.25 * param.norm(), rtol=1e-4, atol=0.0)


@TARGETS
def test_nan_is_not_hidden(target):
    params, grads, *moments = (list(torch.ones(2, 40, device=target.device).unbind()) for _ in range(4))
    grads[0][3] = float("nan")
    ek.ops.optimizer_step(params, grads, *moments, [1.0, 1.0], adapt=True, backend=target.backend, **OPTIONS)
    assert params[0][3].isnan() and params[1].isfinite().all()


@TARGETS
def test_autograd_notices_the_change(target):
    param = torch.ones(5, requires_grad=True, device=target.device)
    loss = param.square().sum()
    others = [[torch.ones(5, device=target.device)] for _ in range(3)]
    ek.ops.optimizer_step([param], *others, [1.0], adapt=True, backend=target.backend, **OPTIONS)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_half_precision_is_computed_in_the_moments_dtype():
    param, grad = torch.randn(99).bfloat16(), torch.randn(99).bfloat16()
    moments = [[torch.zeros(99)] for _ in range(2)]
    (truth, *_) = naive([param], [[grad]], adapt=True, **OPTIONS)
    ek.ops.optimizer_step([param], [grad], *moments, [1.0], adapt=True, **OPTIONS)
    torch.testing.assert_close(param, truth.bfloat16(), rtol=2**-7, atol=0.0)
    torch.testing.assert_close(moments[0][0], grad.float() * 0.1)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_steps_and_learning_rate_may_be_tensors(isa, backend):
    params, grads = problem([(33, 65), (3,)], steps=1)
    results = []
    for number in (float, torch.tensor, lambda x: torch.tensor(x, dtype=torch.float64)):
        tensors = [[p.clone() for p in params], grads[0], *([p.abs() for p in params] for _ in range(2))]
        steps = [number(3.0 + index) for index in range(len(params))]
        options = {**OPTIONS, "lr": number(0.125), "grad_factor": number(0.75)}
        ek.ops.optimizer_step(*tensors, steps, **options, adapt=True, backend=backend)
        results.append([*tensors[0], *tensors[2], *tensors[3]])
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(*results, strict=True))


def test_plain_pytorch_waits_for_nothing_that_is_not_on_the_cpu():
    tensors = [[torch.empty(5, 3, device="meta"), torch.empty(2, device="meta")] for _ in range(4)]
    step = torch.empty((), device="meta")
    ek.ops.optimizer_step(*tensors, [step, step], **{**OPTIONS, "lr": step}, adapt=True, l1=0.1, grad_factor=step)


def test_mistakes_are_named():
    a, b = torch.ones(3), torch.ones(4)
    call = {"adapt": True, **OPTIONS}
    with pytest.raises(ValueError, match="a parameter of shape .3,. does not fit"):
        ek.ops.optimizer_step([a], [b], [a], [a], [1.0], **call)
    with pytest.raises(ValueError, match="several devices"):
        ek.ops.optimizer_step([a], [a.to("meta")], [a], [a], [1.0], **call)
    with pytest.raises(ValueError, match="parameters are in torch.float32 and in torch.float64"):
        ek.ops.optimizer_step([a, a.double()], [a, a], [a, a], [a, a], [1.0, 1.0], **call)
    with pytest.raises(ValueError, match="got 2 steps for 1 parameters"):
        ek.ops.optimizer_step([a], [a], [a], [a], [1.0, 2.0], **call)
    with pytest.raises(ValueError, match="argument 2 is longer"):
        ek.ops.optimizer_step([a], [a, a], [a], [a], [1.0], **call)
    with pytest.raises(RuntimeError, match="'cpu' was asked for but cannot run this call"):
        ek.ops.optimizer_step(*[[a.double()]] * 4, [1.0], **call, backend="cpu")
    ek.ops.optimizer_step([], [], [], [], [], **call)


def test_its_old_name_is_the_same_op():
    assert ek.ops.lamb_step is ek.ops.optimizer_step


@TARGETS
def test_the_dispatcher_knows_the_step(target):
    if target.backend == "reference":
        pytest.skip("plain PyTorch, no op of the dispatcher")
    lists = [[torch.randn(n, device=target.device).abs() for n in (7, 40)] for _ in range(4)]
    steps, lr = [torch.tensor(3.0, device=target.device)] * 2, torch.tensor(0.1, device=target.device)
    op = getattr(torch.ops.earlybert.optimizer_step, target.backend)
    for factor in ((), (torch.tensor(0.5, device=target.device),)):
        torch.library.opcheck(op, (*lists, steps, lr, 0.9, 0.999, 1e-6, 0.01, True, 0.0, *factor))
