"""Removing pruned units for good, and the way back to a stock model."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from .gates import remove_gates
from .masking import check_ticket, clear_ticket, release_masks
from .models import find_base, layer_parts, refuse_distributed
from .models.agreement import check_agreement
from .models.compact_models import check_compactable, dense_stock, dense_ticket, set_compact
from .models.layers import resized
from .nn import LayerParts
from .nn.cut import cut
from .nn.parts import UnitParameter
from .ticket import Ticket
from .units import fold_gates, head_rows, repeated, unit_indices, unit_list

Model = TypeVar("Model", bound=nn.Module)


def compact(model: Model, ticket: Ticket, optimizer: torch.optim.Optimizer | None = None) -> Model:
    """Removes the units that `ticket` does not keep, in place, and returns the model.

    Works on stock and converted models, and on compact ones again. Gates are folded into the weights and removed.
    The transformers classes in the model become their compact ones (`CompactBertFor...`), so that `save_pretrained`
    writes a folder which `AutoModelFor....from_pretrained` reads back once `earlybert_kernels` is imported (the
    folder's README.md says so). Call this on the model that will be saved, not on the `BertModel` inside it. PEFT has
    no default target modules for the model type: name them (`target_modules=["query", "value"]`).

    Args:
        model: a base model or a head of a known family.
        ticket: indices of the model's own units, at least one head and one neuron a layer.
        optimizer: the optimizer that trains the model: it gets the new Parameters, with its state (Adam's
            moments, say) cut like them, and loses the gates. An optimizer that is left out here would go on
            training the removed Parameters: build it afterwards, or pass it.

    Raises:
        ValueError: the model is wrapped in DistributedDataParallel already, the ticket does not fit the model, the
            model does not agree with its config (layers that were cut,
            added or repeated, embeddings of another size, weights tied or untied), so that it could not be loaded
            again, or the optimizer holds none of its Parameters.
        TypeError: the model's family has no adapter, a class in it has no compact counterpart to be saved as, or
            the optimizer keeps state of another shape than the Parameter's (Adafactor, say), or a list of them
            (LBFGS), neither of which can be cut.
    """
    family, base = find_base(model)
    refuse_distributed(model, "compact")
    check_compactable(family, model)
    check_agreement(family, model, base)
    check_ticket(model, ticket)
    if optimizer is not None:
        _check_optimizer(optimizer, base)
    clear_ticket(release_masks(model))
    before = set(model.parameters())
    remove_gates(model)
    if optimizer is not None:
        _drop(optimizer, before.difference(model.parameters()))
    cut(layer_parts(model), ticket, partial(resized, family), optimizer)
    set_compact(family, model, base.config, ticket)
    return model


@torch.no_grad()
def to_stock(model: nn.Module) -> PreTrainedModel:
    """A stock Hugging Face model of the dense shapes with equal logits, in which pruned units are zero.

    Takes a model in any state (converted, gated, masked, compact) and leaves it as it is. Units return to the
    places that they had in the dense model.

    Returns:
        A new model of the transformers class (`BertForSequenceClassification`, say), on the same device, in the
        same mode, each Parameter in the same dtype and as frozen or not, that needs no earlybert_kernels.

    Raises:
        ValueError: the model does not agree with its config, as for `compact`.
        TypeError: the model's family has no adapter, or `model` is not itself a transformers model.
    """
    family, base = find_base(model)
    check_agreement(family, model, base)
    with torch.random.fork_rng(devices=[]):  # initial weights that are overwritten below
        stock = dense_stock(family, model, base.config)
    names = {parameter: name for name, parameter in model.named_parameters()}
    state = {n: t.clone() for n, t in model.state_dict().items() if not n.endswith(("head_gates", "neuron_gates"))}
    original = dense_ticket(family, base.config)
    layers = zip(layer_parts(model), layer_parts(stock), original.heads, original.neurons, strict=True)
    for (layer, parts), (_, dense_parts), heads, neurons in layers:
        ours = {
            "heads": unit_list(getattr(layer, "active_heads", None), parts.num_heads),
            "neurons": unit_list(getattr(layer, "active_neurons", None), parts.num_neurons),
        }
        theirs = {"heads": [heads[unit] for unit in ours["heads"]], "neurons": [neurons[i] for i in ours["neurons"]]}
        gate_of = {
            parts.attention_output.weight: (getattr(layer, "head_gates", None), parts.head_size),
            parts.output.weight: (getattr(layer, "neuron_gates", None), 1),
        }
        for own, dense in zip(parts.unit_parameters(), dense_parts.unit_parameters(), strict=True):
            parameter = getattr(own.linear, own.name)
            gates, columns = gate_of.get(parameter, (None, 1))
            value = parameter if gates is None else fold_gates(parameter, gates, columns)
            full = torch.zeros_like(getattr(dense.linear, dense.name), device=value.device, dtype=value.dtype)
            here, there = _places(parts, own, ours[own.unit]), _places(dense_parts, dense, theirs[own.unit])
            kept = value.index_select(own.dim, here.to(value.device))
            state[names[parameter]] = full.index_copy(own.dim, there.to(value.device), kept)
    trained = dict(model.named_parameters(remove_duplicate=False))
    word: Any = base.get_input_embeddings()
    stock.to(device=word.weight.device)  # type: ignore[call-arg]  # a method that functools.wraps has hidden
    for name, parameter in stock.named_parameters():
        parameter.data = parameter.to(state[name].dtype)
        parameter.requires_grad_(trained[name].requires_grad)
    stock.load_state_dict(state)
    return stock.train(model.training)


def _places(parts: LayerParts, parameter: UnitParameter, units: Iterable[int]) -> Tensor:
    """int64 indices along the units' dimension of a Parameter that belong to these units."""
    count, size = parts.sizes(parameter.unit)
    return head_rows(repeated(unit_indices(units, torch.device("cpu")), parameter.times, count), size)


def _check_optimizer(optimizer: torch.optim.Optimizer, base: nn.Module) -> None:
    if hasattr(optimizer, "_params"):
        raise TypeError(
            f"{type(optimizer).__name__} keeps a list of its Parameters, which cannot be exchanged: build a new "
            "optimizer after compact"
        )
    held = {parameter for group in optimizer.param_groups for parameter in group["params"]}
    if not held.intersection(base.parameters()):
        raise ValueError("the optimizer holds none of the model's Parameters: pass the one that trains this model")
    for _, parts in layer_parts(base):
        for linear, name, *_ in parts.unit_parameters():
            parameter = getattr(linear, name)
            for key, value in optimizer.state.get(parameter, {}).items():
                if torch.is_tensor(value) and value.numel() > 1 and value.shape != parameter.shape:
                    raise TypeError(
                        f"{type(optimizer).__name__} keeps {key!r} of shape {tuple(value.shape)} for a Parameter of "
                        f"shape {tuple(parameter.shape)}, which cannot be cut: build a new optimizer after compact"
                    )


def _drop(optimizer: torch.optim.Optimizer, removed: set[nn.Parameter]) -> None:
    for group in optimizer.param_groups:
        group["params"] = [p for p in group["params"] if p not in removed]
    for parameter in removed:
        optimizer.state.pop(parameter, None)
