"""Exported models, run by what they are for, without this library: the outputs are the same."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
import transformers
from transformers import BertForMaskedLM, BertForSequenceClassification, BertModel, PreTrainedModel

import earlybert_kernels as ek
from earlybert import FinetuneArguments, export, finetune
from earlybert.cli import main
from earlybert.errors import OutputExistsError, UsageError
from earlybert_kernels.models import families
from earlybert_kernels.models.family import ModelFamily
from tests.helpers.model_folder import edit_config, write_pruned
from tests.helpers.tiny_bert import batch, some_ticket, tiny_model

Make = Callable[..., FinetuneArguments]
Exported = Callable[[str, str], tuple[PreTrainedModel, Path]]

needs_onnx = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("onnx", "onnxscript", "onnxruntime"))),
    reason="onnx, onnxscript or onnxruntime is not installed (pip install 'earlybert-kernels[export]')",
)
#: Of other sizes than the export's example: alone, one token, the longest input, rows of all lengths.
LENGTHS = [(5, 1, 9, 3, 2), (1,), (23, 4), (6, 6)]


def saved(folder: Path, cls: type = BertForSequenceClassification, **fields) -> PreTrainedModel:
    model = tiny_model(cls=cls, **fields)
    ek.compact(model, some_ticket(model)).save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A compact classifier of a family, and the folder of its graph, which is made once."""

    @cache
    def make(name: str, format: str) -> tuple[PreTrainedModel, Path]:
        family = next(family for family in families() if family.name == name)
        cls = dict(family.auto_classes)["AutoModelForSequenceClassification"]
        # Two layers: other heads and widths than the one before; of ModernBERT's one attends to all tokens.
        fields = {"num_hidden_layers": 2} | ({"type_vocab_size": 2} if "roberta" in family.model_type else {})
        folder = tmp_path_factory.mktemp("exported")
        model = saved(folder / "model", cls, **fields)
        export(str(folder / "model"), str(folder / "out"), format=format)
        return model, folder / "out"

    return make


def graph(folder: Path) -> Callable[..., dict[str, torch.Tensor]]:
    """What was exported, called with tensors by name."""
    if (folder / "model.pt2").exists():
        return torch.export.load(folder / "model.pt2").module()
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(**inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        outputs = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
        return dict(zip(names, map(torch.from_numpy, outputs), strict=True))

    return run


def inputs_of(model: PreTrainedModel, lengths: tuple[int, ...]) -> dict[str, torch.Tensor]:
    inputs = batch(lengths)
    if getattr(model.config, "type_vocab_size", 1) < 2:
        del inputs["token_type_ids"]
    return inputs


def assert_same(folder: Path, model: PreTrainedModel, *batches: dict[str, torch.Tensor]) -> None:
    run = graph(folder)
    for inputs in batches:
        with torch.no_grad():
            expected = {name: value for name, value in model.eval()(**inputs).items() if torch.is_tensor(value)}
        found = run(**inputs)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)


#: Those whose encoders are code of their own: XLM-RoBERTa's and CamemBERT's are RoBERTa's.
DISTINCT = [family.name for family in families() if family.name not in ("XLM-RoBERTa", "CamemBERT")]


@pytest.mark.parametrize(
    ("family", "format"),
    [
        *(pytest.param(family, "onnx", marks=needs_onnx) for family in DISTINCT),
        # An ONNX graph is made of torch.export's: what is another's there was seen above.
        *((family, "torch") for family in DISTINCT if family in ("BERT", "ModernBERT")),
    ],
)
def test_a_graph_computes_what_the_compact_model_does(family: str, format: str, exported: Exported) -> None:
    model, folder = exported(family, format)
    whole = inputs_of(model, (4, 4))
    assert whole["attention_mask"].all()
    assert_same(folder, model, whole, *(inputs_of(model, lengths) for lengths in LENGTHS))


@pytest.mark.parametrize("family", families(), ids=lambda family: family.name)
def test_a_stock_model_computes_what_the_compact_one_does(family: ModelFamily, tmp_path: Path) -> None:
    for number, (auto_class, cls) in enumerate(family.auto_classes):
        model = saved(tmp_path / f"model{number}", cls, num_labels=2)
        export(str(tmp_path / f"model{number}"), str(tmp_path / f"out{number}"), format="stock")
        stock = getattr(transformers, auto_class).from_pretrained(tmp_path / f"out{number}").eval()
        assert type(stock) is cls
        inputs = batch()
        if "MultipleChoice" in auto_class:
            inputs = {name: tensor.view(2, 2, -1) for name, tensor in inputs.items()}
        torch.testing.assert_close(stock(**inputs)[0], model.eval()(**inputs)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("format", "task"),
    [
        *(("torch", task) for task in ("MaskedLM", "QuestionAnswering", "PreTraining", "CausalLM", "")),
        pytest.param("onnx", "MultipleChoice", marks=needs_onnx),
    ],
)
def test_other_heads(format: str, task: str, tmp_path: Path) -> None:
    family = next(family for family in families() if family.model_type == "bert")
    model = saved(
        tmp_path / "model",
        dict(family.auto_classes)[f"AutoModel{'For' * bool(task)}{task}"],
        num_labels=2,
        num_hidden_layers=1,
    )
    export(str(tmp_path / "model"), str(tmp_path / "out"), format=format)
    inputs = batch((5, 1, 9, 3, 2, 2))
    if task == "MultipleChoice":
        inputs = {name: tensor.view(2, 3, -1) for name, tensor in inputs.items()}
    assert_same(tmp_path / "out", model, inputs)


@needs_onnx
def test_an_onnx_graph_has_onnxs_own_operators_and_its_optimizer_changes_no_logits(
    exported: Exported, tmp_path: Path
) -> None:
    import onnx
    from onnxruntime.transformers import optimizer

    model, folder = exported("BERT", "onnx")
    graph = onnx.load(folder / "model.onnx")
    assert {node.domain for node in graph.graph.node} == {""} and not graph.functions
    (tmp_path / "optimized").mkdir()
    optimized = optimizer.optimize_model(str(folder / "model.onnx"), model_type="bert", num_heads=0, hidden_size=0)
    optimized.save_model_to_file(str(tmp_path / "optimized" / "model.onnx"))
    assert len(optimized.model.graph.node) < len(graph.graph.node)
    for lengths in LENGTHS:
        assert_same(tmp_path / "optimized", model, batch(lengths))


def test_a_torch_program_is_read_without_this_library_and_without_transformers(
    exported: Exported, tmp_path: Path
) -> None:
    model, folder = exported("BERT", "torch")
    config = json.loads((folder / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("bert", ["BertForSequenceClassification"])
    torch.save(batch(), tmp_path / "inputs.pt")
    code = (
        "import sys, torch\n"
        f"outputs = torch.export.load({str(folder / 'model.pt2')!r}).module()(**torch.load('inputs.pt'))\n"
        "torch.save(outputs, 'outputs.pt')\n"
        "assert not {'transformers', 'earlybert_kernels'} & sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=300)
    logits = torch.load(tmp_path / "outputs.pt")["logits"]
    torch.testing.assert_close(logits, model.eval()(**batch()).logits, rtol=1e-4, atol=1e-5)


def test_a_runs_model_and_its_tokenizer(arguments: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finetune(arguments(max_steps=2, search_steps=2))
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "out"), "--format", "stock"]) == 0
    assert str(tmp_path / "out" / "model.safetensors") in capsys.readouterr().out.splitlines()
    texts = ["good plot", "bad"]
    logits = []
    for folder in (tmp_path / "run" / "model", tmp_path / "out"):
        model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        logits.append(model(**tokenizer(texts, padding=True, return_tensors="pt")).logits)
    assert type(model) is BertForSequenceClassification
    torch.testing.assert_close(*logits, rtol=1e-5, atol=1e-5)


def test_a_checkpoint_that_transformers_4_pruned(tmp_path: Path) -> None:
    model = tiny_model()
    write_pruned(model, tmp_path / "model")
    export(str(tmp_path / "model"), str(tmp_path / "out"), format="stock")
    stock = BertForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    torch.testing.assert_close(stock(**batch()).logits, model(**batch()).logits, rtol=1e-5, atol=1e-5)


def test_a_base_model_without_a_pooler_gets_none(tmp_path: Path) -> None:
    BertModel(tiny_model().config, add_pooling_layer=False).save_pretrained(tmp_path / "model")
    export(str(tmp_path / "model"), str(tmp_path / "out"), format="torch")
    assert set(graph(tmp_path / "out")(**batch())) == {"last_hidden_state"}


def test_what_cannot_be_exported_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path / "model", BertForMaskedLM)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    with pytest.raises(OutputExistsError, match="expected a new or empty folder"):
        export(str(tmp_path / "model"), str(tmp_path / "full"), format="stock")
    with pytest.raises(UsageError, match="--format tflite: expected stock, onnx, torch"):
        export(str(tmp_path / "model"), str(tmp_path / "out"), format="tflite")
    with pytest.raises(UsageError, match="metrics.json"):
        export(str(tmp_path / "full"), str(tmp_path / "out"), format="stock")
    torn = Path(shutil.copytree(tmp_path / "model", tmp_path / "torn"))
    edit_config(torn, kept_neurons=["0"] * 3)
    with pytest.raises(UsageError, match="no weights could be read there: the checkpoint .* has "):
        export(str(torn), str(tmp_path / "out"), format="torch")
    edit_config(torn, architectures=["CompactBertForPoetry"])
    with pytest.raises(UsageError, match="names no class of BERT that is known, found CompactBertForPoetry"):
        export(str(torn), str(tmp_path / "out"), format="torch")
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else found(name))
    with pytest.raises(UsageError, match=r"needs packages: pip install 'earlybert-kernels\[export\]'"):
        export(str(tmp_path / "model"), str(tmp_path / "out"), format="onnx")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob("*.partial"))
