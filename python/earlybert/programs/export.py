"""A model as plain transformers, ONNX Runtime or torch.export take it: without this library."""

from __future__ import annotations

import copy
import importlib.util
import inspect
import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

import earlybert_kernels as ek
from earlybert_kernels.models import find_base
from earlybert_kernels.models.compact_classes import COMPACT_CLASSES
from earlybert_kernels.models.compact_config import CompactConfig

from ..errors import MissingFileError, OutputExistsError, UsageError
from ..files import PARTIAL, remove
from ..loading import load_whole_model, read_tokenizer
from ..run_directory import RunDirectory

logger = logging.getLogger(__name__)

#: By format, the file of the graph; a stock model has those of transformers.
GRAPHS = {"onnx": "model.onnx", "torch": "model.pt2"}
FORMATS = ("stock", *GRAPHS)


def export(model: str, output: str, *, format: str) -> list[Path]:
    """Writes a model so that it is used without this library, with the same outputs.

    Args:
        model: the folder of a run, or of a model, compact or not, or a model of the hub; with the head that it has.
        output: a new or empty folder. It gets a stock config of the model and, where there is one, its tokenizer, and:
        format: `stock`, weights of the dense shapes for plain transformers, zeros in the pruned places. `onnx`, a graph
            of the compact widths in ONNX's own operators (`model.onnx`). `torch`, the same of PyTorch's, as
            `torch.export.load` reads it (`model.pt2`). Graphs are float32 and take `input_ids`, `attention_mask` and,
            where the model has several types, `token_type_ids`, int64 `(B, S)` of any B and S up to the model's longest
            (multiple choice: `(B, choices, S)`). Their outputs have the names of transformers'.

    Returns:
        The files that were written.

    Raises:
        UsageError: the model cannot be read, is not whole, or has no head of its own; the run is not finished; the
            packages of the format are not installed; or there is something in `output`.
    """
    if format not in FORMATS:
        raise UsageError(f"--format {format}: expected {', '.join(FORMATS)}")
    if format == "onnx" and not all(map(importlib.util.find_spec, ("onnx", "onnxscript"))):
        raise UsageError("--format onnx needs packages: pip install 'earlybert-kernels[export]'")
    folder = _check_folder(Path(output))
    source = _model_of(model)
    loaded = load_whole_model(source, dtype="auto" if format == "stock" else torch.float32)
    partial = folder.with_name(folder.name + PARTIAL)
    remove(partial)
    try:
        if format == "stock":
            ek.to_stock(loaded).save_pretrained(partial)
        else:
            partial.mkdir()
            _stock_config(loaded).save_pretrained(partial)
            _write_graph(loaded, partial / GRAPHS[format], format)
        _copy_tokenizer(source, loaded.config, partial)
        partial.replace(folder)
    except BaseException:
        remove(partial)
        raise
    return sorted(folder.iterdir())


def _check_folder(path: Path) -> Path:
    path = path.resolve()
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise OutputExistsError(f"{path}: expected a new or empty folder, found something there; give another path")
    if not path.parent.is_dir():
        raise MissingFileError(f"{path}: cannot be written there: {path.parent} is no folder")
    return path


def _model_of(source: str) -> str:
    """The folder or name of the model, of which `source` may be the run."""
    if not Path(source).is_dir() or (Path(source) / "config.json").exists():
        return source
    directory = RunDirectory(source)
    directory.read_metrics()
    directory.check_read()
    return str(directory.model)


def _stock_config(model: PreTrainedModel) -> Any:
    """That of the dense model, which transformers knows without this library."""
    config: Any = model.config
    config = config.dense() if isinstance(config, CompactConfig) else copy.deepcopy(config)
    config.architectures = [COMPACT_CLASSES.stock(type(model)).__name__]
    return config


def _copy_tokenizer(name: str, config: Any, folder: Path) -> None:
    try:
        tokenizer = read_tokenizer(name, config, "model")
    except UsageError as error:  # a model may stand alone
        logger.info("no tokenizer is written: %s", error)
        return
    tokenizer.save_pretrained(folder)


class _Graph(nn.Module):
    """A model whose outputs are a plain dict of tensors, which needs no class of transformers to be read."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> dict[str, Tensor]:
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        outputs = self.model(input_ids, attention_mask=attention_mask, **types, return_dict=True)
        return {name: value for name, value in outputs.items() if torch.is_tensor(value)}


def _write_graph(model: PreTrainedModel, path: Path, format: str) -> None:
    """Traces the model, whose layers are transformers' own and so made of standard operators, and writes the graph."""
    family, base = find_base(model)
    example, dims = _example(model, family.longest(base.config))
    graph = _Graph(model)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what is deprecated inside torch
        outputs = list(graph(**example))
        program = torch.export.export(graph, (), example, dynamic_shapes=dims, strict=False)
        if format == "torch":
            torch.export.save(program, path)
            return
        onnx: Any = torch.onnx.export(
            program, dynamo=True, input_names=list(example), output_names=outputs, verbose=False, external_data=False
        )
        onnx.save(path)


def _example(model: PreTrainedModel, longest: int) -> tuple[dict[str, Tensor], dict[str, dict[int, Any]]]:
    """A padded batch to trace the model with, and the sizes that may differ."""
    names = ["input_ids", "attention_mask"]
    if (
        getattr(model.config, "type_vocab_size", 1) > 1
        and "token_type_ids" in inspect.signature(model.forward).parameters
    ):
        names.append("token_type_ids")
    sizes: list[tuple[str, int, int | None]] = [("batch", 3, None), ("sequence", min(7, longest), longest)]
    if "MultipleChoice" in type(model).__name__:
        sizes.insert(1, ("choices", 2, None))
    dims = {at: torch.export.Dim(name, min=1, max=most) for at, (name, _, most) in enumerate(sizes)}
    shape = [size for _, size, _ in sizes]
    inputs = {name: torch.ones(shape, dtype=torch.int64) for name in names}
    inputs["attention_mask"][..., shape[-1] // 2 :] = 0
    if "token_type_ids" in inputs:
        inputs["token_type_ids"].zero_()
    return inputs, dict.fromkeys(names, dims)
