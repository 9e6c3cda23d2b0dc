"""Swapping the fused modules into a Hugging Face model, and back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from torch import nn

from . import gates
from .models import find_base, layer_parts
from .models.checkpointed_layer import CheckpointedEncoderLayer
from .nn import LayerParts, PaddingFreeEncoder

Model = TypeVar("Model", bound=nn.Module)


@dataclass
class _Conversion:
    """What `restore` needs, kept on the base model but not among its registered modules."""

    stock_encoder: nn.Module
    disconnect: Callable[[], None]


def convert(model: Model) -> Model:
    """Swaps fused, padding-free encoder layers into a BERT model, in place, and returns it.

    The model keeps its class, its Parameters, its `state_dict` keys and its outputs at every real token; padding
    positions of token-wise outputs become 0. Converting a converted model changes nothing.

    What stands on padding counts nowhere: ids, types and positions there are not read, labels are as if they were
    -100, answers to questions as if they lay outside. A row without mask whose `position_ids` begin again is a
    packed batch, as transformers' `DataCollatorWithFlattening` makes it. Restore the model before `torch.jit.trace` or
    `torch.onnx.export`, which are refused.

    A fused layer reads the weights of the modules inside it and does not call them: forward hooks that are put on
    those modules later do not run, and replacing one of them (by an adapter or a quantised layer) makes the next
    forward raise; restore the model first. Across GPUs use DistributedDataParallel: `torch.nn.DataParallel`
    copies modules in a way that does not reach inside, and the forward says so.

    Args:
        model: `transformers.BertModel`, one of its head classes, or any module that holds one of them.

    Raises:
        TypeError: the model's family has no adapter, or one of its modules is not what transformers puts there
            (a quantised or wrapped layer, say); the message names it, and nothing has been changed.
        ValueError: a variant that the fused layers do not compute (a decoder, an unknown activation).
    """
    family, base = find_base(model)
    if is_converted(model):
        return model
    family.check_config(base.config)
    family.check_base(base)
    stock = base.encoder
    fused = [(layer, CheckpointedEncoderLayer(layer, parts)) for layer, parts in layer_parts(model)]
    for stock_layer, layer in fused:
        _hand_over(stock_layer, layer, layer.parts)
    base.encoder = PaddingFreeEncoder(nn.ModuleList(layer for _, layer in fused))
    _copy_mode(stock, base.encoder)
    base._earlybert = _Conversion(stock, family.connect(base, model))
    return model


def restore(model: Model) -> Model:
    """Puts the original modules back, in place, and returns the model; the opposite of `convert`.

    The modules are the very ones that `convert` took out, with the Parameters as trained since, compacted ones
    included. Restoring a stock model changes nothing.

    Raises:
        TypeError: the model's family has no adapter.
        ValueError: a ticket is applied, which stock modules cannot run.
    """
    _, base = find_base(model)
    if not is_converted(model):
        return model
    if any(layer.is_masked for layer in base.encoder.layer):
        raise ValueError("a ticket is applied, and stock layers cannot skip units: call clear_ticket or compact first")
    conversion = base._earlybert
    _copy_mode(base.encoder, conversion.stock_encoder)
    for stock_layer, layer in zip(conversion.stock_encoder.layer, base.encoder.layer, strict=True):
        _hand_over(layer, stock_layer, layer.parts)
    base.encoder = conversion.stock_encoder
    conversion.disconnect()
    del base._earlybert
    return model


def is_converted(model: nn.Module) -> bool:
    """Whether `convert` has been applied to the model.

    Raises:
        TypeError: the model's family has no adapter.
    """
    return isinstance(find_base(model)[1].encoder, PaddingFreeEncoder)


def _copy_mode(source: nn.Module, target: nn.Module) -> None:
    target.training, target.layer.training = source.training, source.layer.training


def _hand_over(source: nn.Module, target: nn.Module, parts: LayerParts) -> None:
    """What belongs to a layer and not to its children: mode, gradient checkpointing, gates."""
    target.training = source.training
    target.gradient_checkpointing = source.gradient_checkpointing
    if hasattr(source, "_gradient_checkpointing_func"):
        target._gradient_checkpointing_func = source._gradient_checkpointing_func
    gates.attach(target, parts, *gates.detach(source))
