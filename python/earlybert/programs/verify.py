"""Proof that a run's model is what it says: parameters are gone, and nothing else has changed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from safetensors import safe_open
from transformers import PreTrainedModel

import earlybert_kernels as ek
from earlybert_kernels.models import family_of_type, layer_parts

from ..errors import MissingFileError, UsageError
from ..loading import reading
from ..run_directory import RunDirectory
from ..tasks import get_task

#: Largest difference of logits that float32 arithmetic in another order explains.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: whether it is as it should be, and what was seen."""

    holds: bool
    what: str


def verify(path: str) -> list[Finding]:
    """Reloads the model of a finished run and looks whether its ticket was really cut out.

    Raises:
        UsageError: the folder has no finished run, or a dense one, of which nothing was pruned; or the
            run's model is not there.
    """
    directory = RunDirectory(path)
    metrics = directory.read_metrics()
    if metrics["ticket"] is None:
        raise UsageError(f"{path}: expected a run with a ticket, found a {metrics['method']} one: nothing was pruned")
    ticket = directory.read_ticket()
    if not directory.model.is_dir():
        raise MissingFileError(f"{directory.model}: no such folder; expected the model of the run")
    with reading(f"{directory.model}: no model could be read there"):
        model = get_task(metrics["task"]).model_class.from_pretrained(directory.model).eval()
        stock = ek.to_stock(model).eval()
    # A run that began with a compact model has a ticket of that one's units, which the model no longer numbers.
    config = stock.config
    sizes = metrics["ticket"]["heads_of"], metrics["ticket"]["neurons_of"]
    from_dense = sizes == family_of_type(config.model_type).units(config)
    return [
        _files_agree(directory),
        *([_ticket_cut(model, ticket)] if from_dense else []),
        _parameters_gone(model, stock, ticket),
        _file_agrees(directory, model),
        _logits_agree(model, stock),
    ]


def _files_agree(directory: RunDirectory) -> Finding:
    """Every file of the run is as the run wrote it, and so of one run."""
    try:
        directory.check_sums()
    except UsageError as error:
        return Finding(False, str(error))
    return Finding(True, f"every file is as the run wrote it, by {directory.sums.name}")


def _ticket_cut(model: PreTrainedModel, ticket: ek.Ticket) -> Finding:
    """The units of the dense model that the model says it has are the ticket's."""
    kept = getattr(model.config, "ticket", None)
    if kept is None:
        return Finding(False, "the model is a dense one, of which no ticket was cut")
    heads, neurons = (sum(map(len, units)) for units in (kept.heads, kept.neurons))
    agrees = "exactly those" if kept == ticket else "not those"
    return Finding(kept == ticket, f"the model has {heads} heads and {neurons} neurons, {agrees} of ticket.json")


def _parameters_gone(model: torch.nn.Module, stock: PreTrainedModel, ticket: ek.Ticket) -> Finding:
    """The model has as many parameters as the stock one minus those of the units that the ticket drops."""
    config = stock.config
    # A head owns rows of query, key and value with their biases, and columns of the output projection;
    # a neuron a row of the first matrix with its bias (two where it has a gate), and a column of the second.
    _, parts = layer_parts(stock)[0]
    sizes: dict[str, int] = {"heads": 0, "neurons": 0}
    for parameter in parts.unit_parameters():
        sizes[parameter.unit] += getattr(parameter.linear, parameter.name).numel()
    per_head, per_neuron = sizes["heads"] // parts.num_heads, sizes["neurons"] // parts.num_neurons
    heads_of, neurons_of = family_of_type(config.model_type).units(config)
    heads = sum(heads_of) - sum(map(len, ticket.heads))
    neurons = sum(neurons_of) - sum(map(len, ticket.neurons))
    dense, compact = model_size(stock), model_size(model)
    gone = heads * per_head + neurons * per_neuron
    return Finding(
        0 < gone == dense - compact,
        f"{heads} heads and {neurons} neurons dropped are {gone:,} parameters; the model has {compact:,}, "
        f"which is {dense - compact:,} less than the {dense:,} of the dense one",
    )


def _file_agrees(directory: RunDirectory, model: torch.nn.Module) -> Finding:
    """The file on disk holds no more than the model: nothing is kept as zeros."""
    stored = 0
    for path in sorted(directory.model.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118
        stored += sum(torch.Size(shape).numel() for shape in shapes)
    expected = model_size(model)
    return Finding(stored == expected, f"the saved file holds {stored:,} parameters, the model {expected:,}")


@torch.inference_mode()
def _logits_agree(model: torch.nn.Module, stock: PreTrainedModel) -> Finding:
    """The compact model and the dense stock one with zeros in the dropped places say the same."""
    generator = torch.Generator().manual_seed(0)
    config = stock.config
    length = min(64, family_of_type(config.model_type).longest(config))
    ids = torch.randint(1, config.vocab_size, (8, length), generator=generator)
    lengths = torch.randint(1, length + 1, (8, 1), generator=generator)
    real = torch.arange(length) < lengths
    inputs = {"input_ids": ids, "attention_mask": real.long()}
    outputs, expected = (each(**inputs, return_dict=False) for each in (model, stock))
    difference = max(
        (ours - theirs)[real if ours.shape[:2] == real.shape else ...].abs().max().item()
        for ours, theirs in zip(outputs, expected, strict=True)
    )
    return Finding(
        difference <= TOLERANCE,
        f"logits differ from those of the stock model by at most {difference:.1e} (allowed: {TOLERANCE:.0e})",
    )


def model_size(model: torch.nn.Module) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in model.parameters())
