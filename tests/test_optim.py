"""Lamb and AdamW as optimizers of torch's."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import earlybert_kernels as ek
from tests.helpers.accuracy import assert_as_exact_as_pytorch
from tests.helpers.targets import targets_of

TARGETS = pytest.mark.parametrize("target", targets_of("optimizer_step"), ids=lambda target: target.backend)
OPTIMIZERS = pytest.mark.parametrize("make", [ek.Lamb, ek.AdamW])


def make_parameters(dtype=torch.float32, device="cpu"):
    generator = torch.Generator().manual_seed(1)
    shapes = [(33, 65), (65,), (), (10007,)]
    return [nn.Parameter(torch.randn(shape, generator=generator).to(device, dtype)) for shape in shapes]


def set_gradients(parameters, step):
    generator = torch.Generator().manual_seed(step)
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter)


def train(optimizer, parameters, steps):
    for step in steps:
        set_gradients(parameters, step)
        optimizer.step()


def equal(ours, expected):
    return all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))


@TARGETS
def test_groups_schedule_and_late_parameters(target):
    """Eight steps against algorithm 2, written out in float64."""
    parameters = make_parameters(device=target.device)
    others = {"params": parameters[2:], "adapt": False, "lr": 0.1, "l1": 0.05}
    groups = [{"params": parameters[:2], "betas": (0.8, 0.95)}, others]
    optimizer = ek.Lamb(groups, lr=0.01, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    truth = [parameter.detach().double() for parameter in parameters]
    moments = [[torch.zeros_like(p), torch.zeros_like(p)] for p in truth]
    for step in range(8):
        set_gradients(parameters, step)
        if step < 3:
            parameters[1].grad = None  # as of a layer that is frozen at first
        for number, parameter in enumerate(parameters):
            if parameter.grad is None:
                continue
            (beta1, beta2), lr = ((0.8, 0.95), 0.01) if number < 2 else ((0.9, 0.999), 0.1)
            p, g, (m, v), taken = truth[number], parameter.grad.double(), moments[number], step + 1
            g += 0.05 * parameter.detach().sign() if number >= 2 else 0  # where a sign is rounding, it is ours
            if number == 1:
                taken -= 3
            m = beta1 * m + (1 - beta1) * g
            v = beta2 * v + (1 - beta2) * g * g
            u = m / (1 - beta1**taken) / ((v / (1 - beta2**taken)).sqrt() + 1e-6) + 0.1 * p
            truth[number] = p - lr / (1 + step) * (p.norm() / u.norm() if number < 2 else 1.0) * u
            moments[number] = [m, v]
        with ek.use_backend(target.backend):
            optimizer.step()
        schedule.step()
    for parameter, expected in zip(parameters, truth, strict=True):
        torch.testing.assert_close(parameter.detach().double(), expected, rtol=1e-5, atol=1e-6)
    assert [optimizer.state[p]["step"].item() for p in parameters] == [8, 5, 8, 8]
    optimizer.zero_grad()
    assert all(parameter.grad is None for parameter in parameters)


def test_without_adaptation_and_decay_it_is_adam():
    ours, theirs = make_parameters(), make_parameters()
    train(ek.Lamb(ours, lr=0.01, weight_decay=0.0, adapt=False), ours, range(10))
    train(torch.optim.Adam(theirs, lr=0.01, eps=1e-6), theirs, range(10))
    torch.testing.assert_close(ours, theirs)


ADAMW = {"lr": 0.01, "betas": (0.8, 0.95), "weight_decay": 0.1}


def adamw_groups(parameters):
    """Two, the second with options of its own."""
    return [{"params": parameters[:2]}, {"params": parameters[2:], "lr": 0.03, "weight_decay": 0.0, "eps": 1e-4}]


def test_adamw_is_torchs():
    ours, theirs = make_parameters(torch.float64), make_parameters(torch.float64)
    train(ek.AdamW(adamw_groups(ours), **ADAMW), ours, range(32))
    train(torch.optim.AdamW(adamw_groups(theirs), **ADAMW, foreach=False), theirs, range(32))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    defaults = torch.optim.AdamW(theirs).defaults
    assert {name: defaults[name] for name in ADAMW | {"eps": 0}} == {
        name: value for name, value in ek.AdamW(ours).defaults.items() if name not in ("l1", "max_grad_norm")
    }


@TARGETS
def test_adamw_is_as_exact_as_torchs(target):
    theirs, results = torch.optim.AdamW, []
    for make, dtype in ((ek.AdamW, torch.float32), (theirs, torch.float32), (theirs, torch.float64)):
        parameters = make_parameters(dtype, target.device)
        with ek.use_backend(target.backend):
            train(make(adamw_groups(parameters), **ADAMW), parameters, range(10))
        results.append([parameter.detach() for parameter in parameters])
    assert_as_exact_as_pytorch(*results)


@TARGETS
def test_adamws_penalty_is_the_gradient_of_its_norm(target):
    ours, theirs = make_parameters(device=target.device), make_parameters(device=target.device)
    optimizers = [
        ek.AdamW([{"params": ours[:1]}, {"params": ours[1:], "l1": 0.3}], lr=1e-3),
        torch.optim.AdamW(theirs, lr=1e-3),
    ]
    for step in range(8):
        for parameters in (ours, theirs):
            set_gradients(parameters, step)
        for own, parameter in zip(ours[1:], theirs[1:], strict=True):
            parameter.grad += 0.3 * own.detach().sign()  # of 0.3 |p|_1; where a sign is rounding, it is ours
        with ek.use_backend(target.backend):
            for optimizer in optimizers:
                optimizer.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    plain = make_parameters(device=target.device)
    train(torch.optim.AdamW(plain, lr=1e-3), plain, range(8))
    assert torch.allclose(plain[0], ours[0]) and not torch.allclose(plain[1], ours[1])


@pytest.mark.parametrize("options", [{}, {"fused": True}, {"foreach": True}])
def test_adamw_and_torchs_load_each_others_state(options, tmp_path):
    make = [ek.AdamW, lambda parameters, **own: torch.optim.AdamW(parameters, **own, **options)]
    for first, second in (make, make[::-1]):
        parameters = make_parameters()
        optimizer = first(parameters, **ADAMW)
        train(optimizer, parameters, range(5))
        torch.save(optimizer.state_dict(), tmp_path / "state.pt")
        again = [nn.Parameter(parameter.detach().clone()) for parameter in parameters]
        optimizer_again = second(again, lr=7.0)
        optimizer_again.load_state_dict(torch.load(tmp_path / "state.pt"))
        assert {*optimizer_again.state[again[0]]} == {"step", "exp_avg", "exp_avg_sq"}
        train(optimizer, parameters, range(5, 10))
        train(optimizer_again, again, range(5, 10))
        torch.testing.assert_close(again, parameters, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("option", ["amsgrad", "maximize"])
def test_adamw_refuses_what_torchs_can_do_more(option):
    parameters = make_parameters()
    theirs = torch.optim.AdamW(parameters, **{option: True})
    optimizer = ek.AdamW(parameters, lr=0.2)
    with pytest.raises(ValueError, match=f"AdamW: it has no {option}; take torch.optim.AdamW"):
        optimizer.load_state_dict(theirs.state_dict())
    assert optimizer.param_groups[0]["lr"] == 0.2
    with pytest.raises(ValueError, match=f"AdamW: it has no {option}"):
        ek.AdamW([{"params": parameters, option: True}])


def test_dtypes_are_stepped_apart():
    wide, narrow = make_parameters(torch.float64), make_parameters()
    together = [*make_parameters(torch.float64), *make_parameters()]
    for parameters in (wide, narrow, together):
        optimizer = ek.Lamb(parameters, lr=0.1)
        for step in range(3):
            for part in (parameters[:4], parameters[4:]):
                set_gradients(part, step)
            optimizer.step()
    assert equal(together, [*wide, *narrow])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@OPTIMIZERS
def test_it_goes_on_from_a_state_dict(make, dtype, tmp_path):
    parameters = make_parameters(dtype)
    optimizer = make(parameters, lr=0.1)
    train(optimizer, parameters, range(3))
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    again = [nn.Parameter(parameter.detach().clone()) for parameter in parameters]
    optimizer_again = make(again, lr=7.0)
    optimizer_again.load_state_dict(torch.load(tmp_path / "state.pt"))
    assert optimizer_again.param_groups[0]["lr"] == 0.1
    for state in optimizer_again.state.values():
        assert {key: value.dtype for key, value in state.items()} == dict.fromkeys(state, torch.float32)
    train(optimizer, parameters, range(3, 6))
    train(optimizer_again, again, range(3, 6))
    assert equal(parameters, again)


def test_a_learning_rate_may_be_a_tensor():
    ours, theirs = make_parameters(), make_parameters()
    for parameters, lr in ((ours, 0.1), (theirs, torch.tensor(0.1, dtype=torch.float64))):
        optimizer = ek.Lamb(parameters, lr=lr)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
        for step in range(3):
            train(optimizer, parameters, [step])
            schedule.step()
    assert equal(ours, theirs) and lr.item() == 0.1 / 4


def test_a_step_waits_for_no_device():
    """A tensor on "meta" has no number that could be read."""
    parameters = make_parameters(device="meta")
    optimizer = ek.Lamb(parameters, lr=0.1, l1=0.1, max_grad_norm=1.0)
    optimizer.param_groups[0]["lr"] = torch.empty((), device="meta")
    for parameter in parameters:
        parameter.grad = torch.empty_like(parameter)
    optimizer.step()
    assert all(optimizer.state[parameter]["step"].is_meta for parameter in parameters)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_a_graph_of_the_optimizer_goes_on(backend):
    """Replays count steps, take the gradients and the learning rate that they find, and do what calls would do."""
    if backend not in ek.ops.backends("optimizer_step"):
        pytest.skip(f"{backend}: {ek.ops.dispatch.unavailable('optimizer_step')[backend]}")
    captured, called = (make_parameters(device="cuda") for _ in range(2))
    rates = [torch.tensor(0.1, device="cuda") for _ in range(2)]
    optimizers = [
        ek.Lamb(params, lr=lr, l1=0.01, max_grad_norm=2.0) for params, lr in zip((captured, called), rates, strict=True)
    ]

    def prepare(step):
        set_gradients(called, step)
        for a, b in zip(captured, called, strict=True):
            a.grad = b.grad.clone() if a.grad is None else a.grad.copy_(b.grad)
        for rate in rates:
            rate.fill_(0.1 / (1 + step))

    with ek.use_backend(backend):
        prepare(0)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            optimizers[0].step()  # makes the state, and compiles kernels that are not yet
        torch.cuda.current_stream().wait_stream(side)
        optimizers[1].step()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            optimizers[0].step()
        for step in range(1, 5):
            prepare(step)
            graph.replay()
            optimizers[1].step()
            assert equal(captured, called)
    assert all(optimizers[0].state[param]["step"].item() == 5 for param in captured)


def test_a_copy_goes_on_by_itself():
    module = nn.Linear(5, 3)
    optimizer = ek.Lamb(module.parameters(), lr=0.1)
    train(optimizer, list(module.parameters()), range(2))
    other, optimizer_of_other = copy.deepcopy((module, optimizer))
    before = [parameter.detach().clone() for parameter in module.parameters()]
    train(optimizer_of_other, list(other.parameters()), range(2, 4))
    assert equal(module.parameters(), before)
    train(optimizer, list(module.parameters()), range(2, 4))
    assert equal(module.parameters(), other.parameters())


def test_a_closure_is_evaluated_with_gradients():
    parameter = nn.Parameter(torch.ones(4))
    optimizer = ek.Lamb([parameter], lr=0.1, weight_decay=0.0)

    def closure():
        optimizer.zero_grad()
        loss = parameter.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 4.0
    torch.testing.assert_close(parameter.detach(), torch.full((4,), 0.9))


def test_non_contiguous_parameters_and_gradients():
    ours = nn.Parameter(torch.randn(30, 20).t())
    theirs = nn.Parameter(ours.detach().contiguous())
    optimizers = [ek.Lamb([parameter], lr=0.1) for parameter in (ours, theirs)]
    for _ in range(3):
        theirs.grad = torch.randn(20, 30)
        ours.grad = torch.stack([theirs.grad] * 2, -1)[..., 1]
        for optimizer in optimizers:
            optimizer.step()
    assert not ours.is_contiguous()
    torch.testing.assert_close(ours, theirs)


def test_a_parameter_without_gradient_has_no_state():
    parameter = nn.Parameter(torch.ones(4))
    optimizer = ek.Lamb([parameter], lr=0.1)
    optimizer.step()
    assert not optimizer.state and torch.equal(parameter, torch.ones(4))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, "lr is -1.0, expected 0 or more"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"weight_decay": -0.1}, "weight_decay is -0.1"),
        ({"l1": -0.1}, "l1 is -0.1"),
        ({"max_grad_norm": -1.0}, "max_grad_norm is -1.0"),
        ({"eps": 0.0}, "eps is 0.0, expected more than 0"),
        ({"betas": (1.0, 0.9)}, "betas are .1.0, 0.9.,"),
        ({"betas": (0.9,)}, "betas are .0.9,., expected two numbers"),
    ],
)
@OPTIMIZERS
def test_hyper_parameters_out_of_range(make, options, message):
    message = f"{make.__name__}: {message}"
    with pytest.raises(ValueError, match=message):
        make(make_parameters(), **{"lr": 0.1, **options})
    with pytest.raises(ValueError, match=message):
        make([{"params": make_parameters(), **options}], lr=0.1)
    good = make(make_parameters(), lr=0.1)
    saved = good.state_dict()
    saved["param_groups"][0].update(options)
    with pytest.raises(ValueError, match=message):
        good.load_state_dict(saved)


@OPTIMIZERS
def test_tensors_that_it_does_not_take(make):
    name = make.__name__
    with pytest.raises(TypeError, match=f"{name}: a Parameter is complex"):
        make([nn.Parameter(torch.ones(3, dtype=torch.complex64))], lr=0.1)
    parameter = nn.Parameter(torch.ones(3))
    parameter.grad = torch.ones(3).to_sparse()
    with pytest.raises(RuntimeError, match=f"{name}: a gradient is sparse"):
        make([parameter], lr=0.1, max_grad_norm=1.0).step()


def test_a_forced_backend_never_falls_back():
    parameters = make_parameters(torch.float64)
    set_gradients(parameters, 0)
    with ek.use_backend("cpu"), pytest.raises(RuntimeError, match="optimizer_step: backend 'cpu' was asked for"):
        ek.Lamb(parameters, lr=0.1).step()


@OPTIMIZERS
def test_what_a_checkpoint_does_not_say_stays_as_it_is(make):
    """One of an earlier version, or of torch's."""
    groups = [{"params": [param]} for param in make_parameters()[:2]]
    optimizer = make([groups[0], {**groups[1], "l1": 0.3, "max_grad_norm": 0.0}], lr=0.1, max_grad_norm=2.0)
    saved = optimizer.state_dict()
    for group in saved["param_groups"]:
        del group["l1"], group["max_grad_norm"]
    saved["param_groups"][0]["lr"] = 0.2
    optimizer.load_state_dict(saved)
    assert [group["lr"] for group in optimizer.param_groups] == [0.2, 0.1]
    assert [group["l1"] for group in optimizer.param_groups] == [0.0, 0.3]
    assert [group["max_grad_norm"] for group in optimizer.param_groups] == [2.0, 0.0]
    train(optimizer, [group["params"][0] for group in groups], [0])
    with pytest.raises(ValueError, match="parameter groups"):
        optimizer.load_state_dict({**saved, "param_groups": saved["param_groups"] * 2})


@TARGETS
@OPTIMIZERS
def test_gradients_are_cut_to_a_norm_as_torch_does_it(target, make):
    """Those of all groups of one limit together; the others' not, and none that is shorter."""
    ours, theirs = (make_parameters(device=target.device) for _ in range(2))

    def groups(parameters, *limits):
        parts = parameters[:1], parameters[1:2], parameters[2:3], parameters[3:]
        return [{"params": part, "max_grad_norm": limit} for part, limit in zip(parts, limits, strict=True)]

    optimizer = make(groups(ours, 1.0, 0.0, 1e9, 1.0), lr=1e-2)
    plain = make(groups(theirs, 0, 0, 0, 0), lr=1e-2)
    with ek.use_backend(target.backend):
        for step in range(4):
            for parameters in (ours, theirs):
                set_gradients(parameters, step)
                for parameter in parameters:
                    parameter.grad *= 5.0**-step  # or Adam, which sees no scale, would not see a factor either
            kept = [parameter.grad.clone() for parameter in ours]
            norm = nn.utils.clip_grad_norm_([theirs[0], theirs[3]], 1.0)
            assert (norm > 1) == (step < 3)
            optimizer.step()
            plain.step()
            assert equal([parameter.grad for parameter in ours], kept)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    for parameter in ours:
        parameter.grad = None
    optimizer.step()


def test_the_norm_of_many_numbers_has_their_digits():
    """Of so many squares torch's own sum in float32 has three."""
    parameter = nn.Parameter(torch.zeros(30522, 384))
    parameter.grad = torch.randn(parameter.shape)
    ek.AdamW([parameter], lr=1.0, betas=(0.0, 0.0), eps=1e30, weight_decay=0.0, max_grad_norm=1.0).step()
    # The step is what the gradient was cut to, over eps.
    torch.testing.assert_close((parameter.detach() * 1e30).double().norm().item(), 1.0, rtol=1e-5, atol=0.0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_norm_of_half_precision_is_not_in_half_precision(dtype):
    """In float16 that of these would be infinite."""
    parameter = nn.Parameter(torch.zeros(300, 70, dtype=dtype))
    parameter.grad = torch.full_like(parameter, 1234.0)
    optimizer = ek.AdamW([parameter], lr=0.0, betas=(0.0, 0.0), max_grad_norm=1.0)
    optimizer.step()
    torch.testing.assert_close(optimizer.state[parameter]["exp_avg"].norm().item(), 1.0, rtol=1e-5, atol=0.0)


def test_a_gradient_that_is_not_finite_is_not_hidden_by_its_norm():
    parameters = make_parameters()[:2]
    set_gradients(parameters, 0)
    parameters[0].grad[3, 4] = torch.inf
    ek.AdamW(parameters, lr=0.1, max_grad_norm=1.0).step()
    assert parameters[0][3, 4].isnan() and parameters[1].isfinite().all()


@pytest.mark.parametrize("make", [ek.AdamW, ek.Lamb])
@pytest.mark.parametrize("option", ["amsgrad", "maximize"])
def test_a_variant_that_is_put_into_a_group_later_is_refused(make, option):
    parameter = nn.Parameter(torch.ones(3))
    parameter.grad = torch.ones(3)
    optimizer = make([parameter], lr=0.1)
    optimizer.param_groups[0][option] = True
    with pytest.raises(ValueError, match=f"it has no {option}"):
        optimizer.step()
    assert torch.equal(parameter.detach(), torch.ones(3))


def test_a_state_whose_step_is_a_number_is_taken():
    parameters = [nn.Parameter(torch.ones(3)) for _ in range(2)]
    theirs, ours = torch.optim.AdamW(parameters[:1], lr=0.1), ek.AdamW(parameters[1:], lr=0.1)
    parameters[0].grad = torch.ones(3)
    theirs.step()
    state = copy.deepcopy(theirs.state_dict())
    state["state"][0]["step"] = int(state["state"][0]["step"])
    ours.load_state_dict(state)
    parameters[1].data.copy_(parameters[0].data)
    for parameter, optimizer in zip(parameters, (theirs, ours), strict=True):
        parameter.grad = torch.full((3,), 2.0)
        optimizer.step()
    torch.testing.assert_close(parameters[1], parameters[0])
