import importlib.util
import json

import pytest
import torch

import earlybert_kernels as ek
from bench import forward
from bench.report import report
from bench.shapes import SHAPES, Shape


@pytest.fixture(autouse=True)
def _toy_shape(monkeypatch):
    monkeypatch.setitem(SHAPES, "tiny", Shape(layers=2, hidden=24, heads=4, neurons=40))
    monkeypatch.setattr(forward, "_LEAST", 0.0)


ARGUMENTS = ["--shape", "tiny", "--batch-size", "4", "--rounds", "2"]


@pytest.mark.skipif(importlib.util.find_spec("onnxruntime") is None, reason="needs ONNX Runtime")
def test_two_rounds_of_everything(tmp_path, capsys):
    path = tmp_path / "forward.json"
    forward.main([*ARGUMENTS, "--output", str(path)])
    result = json.loads(path.read_text())
    assert list(result["variants"]) == list(forward.VARIANTS) and result["left_out"] == {}
    seconds = {name: each["seconds"] for name, each in result["variants"].items()}
    assert all(len(own) == 2 and min(own) > 0 for own in seconds.values())
    of_runtime = result["variants"]["converted"]["of_onnx_runtime"]["median"]
    ratios = [own / base for own, base in zip(seconds["converted"], seconds[forward.ONNX], strict=True)]
    assert of_runtime == pytest.approx(sum(ratios) / 2)
    printed = capsys.readouterr().out
    assert "| stock-onnx-runtime |" in printed and "2 rounds" in printed
    report.main([str(path), "--plots", str(tmp_path)])
    assert capsys.readouterr().out.startswith(printed.rstrip())
    assert (tmp_path / "forward-forward.png").exists()


def test_without_onnx_runtime_the_rest_is_measured_and_wrong_logits_are_not(monkeypatch, capsys):
    monkeypatch.setattr(forward, "_cannot_run", lambda: "not installed: onnx")
    build = forward.build

    def broken(name, stock):
        model = build(name, stock)
        if name == "ticket-compact":
            with torch.no_grad():
                model.classifier.bias += 1.0
        return model

    monkeypatch.setattr(forward, "build", broken)
    with pytest.raises(SystemExit):
        forward.main(ARGUMENTS)
    out, err = capsys.readouterr()
    assert "stock-onnx-runtime: left out, not installed: onnx" in err
    assert "FAILED: ticket-compact: ticket-compact: wrong results" in err and "| ticket-compact |" not in out
    assert "| converted |" in out and "–" in out


def test_it_is_a_forward_without_gradients_that_is_timed(monkeypatch):
    calls = []
    own = ek.backends.cpu.encoder.forward
    monkeypatch.setattr(ek.backends.cpu.encoder, "forward", lambda *a, **k: calls.append(0) or own(*a, **k))
    monkeypatch.setattr(forward, "_cannot_run", lambda: "left out")
    forward.main(ARGUMENTS)
    converted_and_compact = 2 * (1 + forward.WARM_UP + 2)
    assert len(calls) >= converted_and_compact
