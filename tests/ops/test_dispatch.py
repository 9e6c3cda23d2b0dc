import dataclasses
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import earlybert_kernels as ek
from earlybert_kernels.backends import backends, cuda, triton
from earlybert_kernels.ops import choices, dispatch
from tests.helpers.targets import targets_of

OPS = ("attention", "dropout_add_layer_norm", "feed_forward", "masked_lm_loss")


def add_norm(**more):
    x = torch.randn(3, 4)
    return ek.ops.dropout_add_layer_norm(x, x, torch.ones(4), torch.zeros(4), **more)


def add_norm_of_ones():
    x = torch.ones(3, 4)
    return ek.ops.dropout_add_layer_norm(x, x, torch.ones(4), torch.zeros(4))


@pytest.fixture
def use_table(monkeypatch):
    """Puts a table of choices in place of the shipped one: by architecture, then by op, pairs of size and order."""

    def use(architectures):
        entries = {
            name: {op: [{"from": size, "order": order} for size, order in pairs] for op, pairs in ops.items()}
            for name, ops in architectures.items()
        }
        monkeypatch.setattr(choices, "table", lambda: {"architectures": entries})
        choices.orders.cache_clear()

    yield use
    choices.orders.cache_clear()


@pytest.mark.parametrize("target", targets_of("dropout_add_layer_norm"), ids=lambda target: target.backend)
def test_a_call_with_a_gradient_does_not_look_for_defaults(target, monkeypatch):
    """torch's way to find them takes time by the square of the number of arguments."""
    monkeypatch.setattr(torch._library.utils, "fill_defaults", lambda *_: pytest.fail("looked for defaults"))
    x = torch.randn(3, 4, device=target.device, requires_grad=True)
    weight, bias = torch.ones(4, device=target.device, requires_grad=True), torch.zeros(4, device=target.device)
    out = ek.ops.dropout_add_layer_norm(x, x, weight, bias, backend=target.backend)
    assert target.backend == "reference" or out.grad_fn.name() == f"dropout_add_layer_norm_{target.backend}Backward"
    out.square().sum().backward()
    assert x.grad is not None and weight.grad is not None and bias.grad is None


@pytest.mark.parametrize("op", OPS)
def test_every_op_lists_its_backends_best_first(op):
    listed = ek.ops.backends(op)
    assert listed[-1] == "reference"
    known = ("triton", "cuda", "cpu")
    assert [b for b in known if b in listed] == [b for b in listed if b in known]
    if not torch.cuda.is_available():
        assert ("cuda" in listed) <= cuda.EMULATED and ("triton" in listed) == triton.INTERPRETED


def test_the_shipped_table_has_every_choice():
    gpus = {backend.name for backend in backends().values() if "cuda" in backend.devices}
    ops = {op for op in dispatch.op_names() if gpus & set(dispatch._implementations[op])}
    for own in choices.table()["architectures"].values():
        assert set(own) == ops and len(ops) > 10
        for op, entries in own.items():
            needed = set(dispatch._implementations[op]) & {*gpus, "reference"}
            sizes = [entry["from"] for entry in entries]
            assert sizes == sorted(set(sizes)) and sizes[0] == 0
            assert all(needed <= set(entry["order"]) <= {*gpus, "reference"} for entry in entries)
            assert all(re.match("(not )?measured: .", entry["reason"]) for entry in entries)
    assert ("Not measured" in choices.table()["note"]) == ("not measured: " in str(choices.table()["architectures"]))


def test_the_nearest_lower_architecture_decides(use_table):
    early, late = ["triton", "cuda", "reference"], ["reference", "cuda", "triton"]
    use_table({"80": {"attention": [(0, early)]}, "90": {"attention": [(0, late)]}})
    for architecture, order in ((75, early), (80, early), (89, early), (90, late), (100, late), (120, late)):
        ((size, found),) = choices.orders("attention", architecture)
        assert size == 0 and list(found) == order
    assert choices.orders("no such op", 90) == ()


class OnGpu:
    """What the choice looks at of a tensor on a GPU."""

    device = torch.device("cuda", 0)


@pytest.fixture
def on_a_gpu(monkeypatch):
    """Attention has four backends that take all tensors, but for the CPU's, on a fake GPU of compute capability 9.0."""
    fakes = {
        b: dispatch.Implementation(b, lambda: None, lambda *tensors: None, False)
        for b in ("cuda", "triton", "cpu", "reference")
    }
    fakes["cpu"] = dataclasses.replace(fakes["cpu"], refuses=lambda *tensors: "it takes tensors on the CPU")
    monkeypatch.setitem(dispatch._implementations, "attention", fakes)
    monkeypatch.setattr(dispatch, "architecture_of", lambda gpu: 90)
    return fakes


def test_the_table_decides_by_size(use_table, on_a_gpu):
    pairs = [(0, ["reference", "triton", "cuda"]), (100, ["cuda", "triton", "reference"])]
    use_table({"80": {"attention": pairs}})
    assert dispatch.choose("attention", None, OnGpu(), size=99) == "reference"
    assert dispatch.choose("attention", None, OnGpu(), size=100) == "cuda"
    assert dispatch.choose("attention", "triton", OnGpu(), size=100) == "triton"
    assert ek.ops.backends("attention") == ["cuda", "triton", "cpu", "reference"], "those of large inputs"


def test_what_the_first_refuses_the_next_takes(use_table, on_a_gpu, monkeypatch):
    use_table({"80": {"attention": [(0, ["triton", "cuda", "reference"])]}})
    no = {"unavailable": lambda: "it is not installed"}, {"refuses": lambda *tensors: "they are too large"}
    expected = ["triton", "cuda", "reference"]
    for backend, reason in (("triton", no[0]), ("cuda", no[1]), (None, None)):
        assert dispatch.choose("attention", None, OnGpu()) == expected.pop(0)
        if backend:
            monkeypatch.setitem(on_a_gpu, backend, dataclasses.replace(on_a_gpu[backend], **reason))


def test_tensors_on_the_cpu_are_not_asked_about(monkeypatch):
    """Neither the table nor what would look for a GPU, which may take a driver seconds."""
    monkeypatch.setattr(dispatch, "_orders", lambda op, gpu: pytest.fail("the table was asked"))
    implementations = dispatch._implementations["dropout_add_layer_norm"]
    for backend in ("cuda", "triton"):
        asked = dataclasses.replace(
            implementations[backend], on_demand=False, unavailable=lambda: pytest.fail("a GPU was looked for")
        )
        monkeypatch.setitem(implementations, backend, asked)
    add_norm()


@pytest.mark.parametrize("missing", [None, "it is not installed"])
def test_what_tells_whether_a_backend_is_there_is_not_traced(monkeypatch, missing):
    """It may look for packages and files, which a compiler cannot follow."""

    def unavailable():
        torch._dynamo.graph_break()
        return missing

    implementations = dispatch._implementations["dropout_add_layer_norm"]
    fake = dispatch.Implementation(lambda x, *_, **__: x * 3, unavailable, lambda *tensors: None, False)
    monkeypatch.setitem(implementations, "cpu", fake)
    torch._dynamo.reset()
    compiled = torch.compile(add_norm_of_ones, fullgraph=True, backend="eager")
    assert torch.equal(compiled(), torch.full((3, 4), 3.0)) == (missing is None)
    if missing is None:
        torch._dynamo.reset()
        with ek.use_backend("cpu"):
            assert torch.equal(compiled(), torch.full((3, 4), 3.0))
    torch._dynamo.reset()


@pytest.mark.parametrize("sizes", [(0,), (0, 6)])
def test_the_choice_is_traced_and_one_entry_adds_no_guard_on_sizes(use_table, monkeypatch, sizes):
    """With the CPU in the GPU's place; what is compiled is the choice and a call of what it chose."""
    pairs = list(zip(sizes, (["triton", "cuda", "reference"], ["cuda", "reference", "triton"]), strict=False))
    use_table({"80": {"attention": pairs}})
    monkeypatch.setattr(dispatch, "_order", lambda op, tensor, size: dispatch._order_on(None, op, size))
    fakes = {
        name: dispatch.Implementation(lambda x, f=factor: x * f, lambda: None, lambda *tensors: None, False)
        for name, factor in (("reference", 2), ("triton", 3), ("cuda", 5))
    }
    monkeypatch.setitem(dispatch._implementations, "attention", fakes)

    def call(x):
        return dispatch.choose("attention", None, x, size=x.shape[0])(x)

    torch._dynamo.reset()
    compiled = torch.compile(call, fullgraph=True, dynamic=True, backend="eager")
    for number, rows in enumerate((5, 7, 64, 2)):
        with torch._dynamo.config.patch(error_on_recompile=len(sizes) == 1 and number > 0):
            factor = 5.0 if len(sizes) == 2 and rows >= 6 else 3.0
            assert torch.equal(compiled(torch.ones(rows)), torch.full((rows,), factor))


@pytest.mark.skipif(not triton.INTERPRETED, reason="Triton's interpreter is off: a GPU is there")
def test_the_interpreter_runs_only_when_asked(monkeypatch):
    calls = []
    implementation = dispatch._implementations["dropout_add_layer_norm"]["triton"]
    spy = dataclasses.replace(implementation, run=lambda *tensors, **options: calls.append(tensors))
    monkeypatch.setitem(dispatch._implementations["dropout_add_layer_norm"], "triton", spy)
    add_norm()
    assert not calls
    add_norm(backend="triton")
    assert len(calls) == 1


def test_unknown_op_is_named():
    with pytest.raises(ValueError, match="no op named 'conv'; the ops are attention"):
        ek.ops.backends("conv")


def test_forced_backend_raises_and_never_falls_back(monkeypatch):
    implementations = dispatch._implementations["dropout_add_layer_norm"]
    broken = dataclasses.replace(implementations["cuda"], unavailable=lambda: "it is not built")
    monkeypatch.setitem(implementations, "cuda", broken)
    with pytest.raises(ek.ops.BackendUnavailableError, match="backend 'cuda' was asked for but cannot run"):
        add_norm(backend="cuda")
    with ek.use_backend("cuda"):
        with pytest.raises(ek.ops.BackendUnavailableError, match="cannot run"):
            add_norm()
        add_norm(backend="reference")  # the call's own choice comes first
        with ek.use_backend("reference"):
            add_norm()
        with pytest.raises(RuntimeError, match="cannot run"):
            add_norm()
    add_norm()
    monkeypatch.setenv("EARLYBERT_BACKEND", "cuda")
    with pytest.raises(RuntimeError, match="cannot run"):
        add_norm()
    with ek.use_backend("reference"):
        add_norm()


def test_unknown_backend_is_refused(monkeypatch):
    with pytest.raises(ValueError, match="no backend named 'gpu'"), ek.use_backend("gpu"):
        pass
    monkeypatch.setenv("EARLYBERT_BACKEND", "gpu")
    with pytest.raises(ValueError, match="no backend named 'gpu'"):
        add_norm()


def test_contexts_of_several_threads_leave_nothing_forced():
    """Contexts that overlap, as those of two threads do, need not close in the order in which they were opened."""
    first, second = ek.use_backend("reference"), ek.use_backend("cpu")
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert dispatch._forced == "cpu"
    second.__exit__(None, None, None)
    assert dispatch._forced is None


def test_what_ran_is_recorded() -> None:
    x, row = torch.zeros(4, 8), torch.zeros(8)
    with ek.ops.record_backends() as outer:
        ek.ops.dropout_add_layer_norm(x, x, row, row)
        with ek.ops.record_backends() as inner, ek.use_backend("reference"):
            ek.ops.feed_forward(x, torch.zeros(16, 8), torch.zeros(16), torch.zeros(8, 16), row)
    ek.ops.feed_forward(x, torch.zeros(16, 8), torch.zeros(16), torch.zeros(8, 16), row)
    assert outer == {"dropout_add_layer_norm": ek.ops.backends("dropout_add_layer_norm")[-2]}
    assert inner == {"feed_forward": "reference"}


TOY = {
    "__init__.py": """
from ..backend import Backend
BACKEND = Backend(
    name="toy", rank=1, devices=("cpu",), unavailable=lambda: None,
    refuses=lambda *tensors, **facts: "it takes no large tensors" if tensors[0].numel() > 9 else None,
)
""",
    "feed_forward.py": """
def forward(x, w_in, b_in, w_out, b_out, active, gates, activation, saves):
    return x * 7, x.new_zeros(len(x), len(w_in))
def backward(grad_out, preactivation, x, w_in, w_out, active, gates, activation):
    return grad_out * 7, w_in * 0, w_in[:, 0] * 0, w_out * 0, w_out[:, 0] * 0, x.new_zeros(0)
""",
}
USE_OF_TOY = """
import torch
import earlybert_kernels as ek
assert "toy" in ek.ops.backends("feed_forward") and "toy" not in ek.ops.backends("attention")
x = torch.ones(2, 3, requires_grad=True)
weights = torch.ones(4, 3), torch.ones(4), torch.ones(3, 4), torch.ones(3)
for call in (ek.ops.feed_forward, torch.compile(ek.ops.feed_forward, fullgraph=True, backend="aot_eager")):
    out = call(x, *weights)
    assert torch.equal(out, 7 * x)
    assert torch.equal(torch.autograd.grad(out.sum(), x)[0], torch.full((2, 3), 7.0))
try:
    ek.ops.feed_forward(torch.ones(4, 3), *weights, backend="toy")
except ek.ops.BackendUnavailableError as error:
    assert "it takes no large tensors" in str(error)
    print("refused")
"""


def test_a_backend_is_a_package_and_nothing_else(tmp_path):
    """In a copy of the library, without extensions, to which nothing but the package is added."""
    library = Path(ek.__file__).parent
    shutil.copytree(library, tmp_path / library.name, ignore=shutil.ignore_patterns("__pycache__", "*.so", "_build*"))
    toy = tmp_path / library.name / "backends" / "toy"
    toy.mkdir()
    for name, text in TOY.items():
        (toy / name).write_text(text)
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", USE_OF_TOY], capture_output=True, text=True, env=env, cwd=tmp_path)
    assert done.stdout == "refused\n", done.stderr
