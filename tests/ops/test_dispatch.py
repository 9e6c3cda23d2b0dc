import dataclasses

import pytest
import torch

import earlybert_kernels as ek
from earlybert_kernels.backends import triton
from earlybert_kernels.ops import dispatch

OPS = ("attention", "dropout_add_layer_norm", "feed_forward", "masked_lm_loss")


def add_norm(**more):
    x = torch.randn(3, 4)
    return ek.ops.dropout_add_layer_norm(x, x, torch.ones(4), torch.zeros(4), **more)


@pytest.mark.parametrize("op", OPS)
def test_every_op_lists_its_backends_best_first(op):
    listed = ek.ops.backends(op)
    assert listed[-1] == "reference"
    order = ["cuda", "triton", "cpu", "reference"]
    assert listed == [b for b in order if b in listed]
    if not torch.cuda.is_available():
        assert "cuda" not in listed and ("triton" in listed) == triton.INTERPRETED


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


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine where cuda cannot run")
def test_forced_backend_raises_and_never_falls_back(monkeypatch):
    with pytest.raises(RuntimeError, match="backend 'cuda' was asked for but cannot run"):
        add_norm(backend="cuda")
    with ek.use_backend("cuda"):
        with pytest.raises(RuntimeError, match="cannot run"):
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
