"""Swapping the fused modules into a Hugging Face model, and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .models import find_base, layer_parts, refuse_distributed
from .models.agreement import check_agreement
from .models.checkpointed_layer import fused_layer
from .models.checks import check_base, check_config, check_encoder, check_heads
from .models.connections import Connection, connect, disconnect
from .models.family import ModelFamily
from .nn import EncoderLayer, LayerParts, PaddingFreeEncoder, PaddingFreeList
from .nn.layer_gates import attach_gates, detach_gates

Model = TypeVar("Model", bound=nn.Module)


@dataclass
class _Conversion:
    """What `restore` needs, kept on the base model but not among its registered modules."""

    stock_encoder: Any
    layers: Sequence[tuple[EncoderLayer, nn.Module]]  # each with the stock layer that it was made of
    connected: list[Connection] = field(default_factory=list)


def convert(model: Model) -> Model:
    """Swaps fused, padding-free encoder layers into a model, in place, and returns it.

    The model keeps its class, its Parameters, its `state_dict` keys and its outputs at every real token; padding
    positions of token-wise outputs become 0. Converting a converted model connects heads that
    were not in it before (two may share one base model) and changes nothing else.

    What stands on padding counts nowhere: ids, types and positions there are not read, labels are as if they were
    -100, answers to questions as if they lay outside. A row without mask whose `position_ids` begin again is a
    packed batch, as transformers' `DataCollatorWithFlattening` makes it. Restore the model before `torch.jit.trace` or
    `torch.onnx.export`, which are refused.

    A fused layer reads the weights of the modules inside it and does not call them: replacing one of those modules (by
    an adapter or a quantised layer) or putting hooks or another forward on it makes the next forward raise; restore
    the model first. (Not under `torch.compile`, which does not see such changes: make them before converting.)

    Across GPUs use DistributedDataParallel: `torch.nn.DataParallel`
    copies modules in a way that does not reach inside, and the forward says so.

    Args:
        model: `transformers.BertModel` or the base model of another family that there is an adapter for, one of its
            head classes, or any module that holds one of them.

    Raises:
        TypeError: the model's family has no adapter, or one of its modules is not what transformers puts there
            (a quantised or wrapped layer, one with hooks or a forward put on it), or a head that scores tokens has a
            class with a forward of its own; the message names it, and nothing has been changed.
        ValueError: a variant that the fused layers do not compute (a decoder, an unknown activation, relative
            positions), or the encoder or the embeddings do not agree with the config (layers that were cut, added or
            repeated, embeddings of another size), so that a saved model could not be loaded again; or the model is
            wrapped in DistributedDataParallel or sharded by `fully_shard` already: convert first.
    """
    family, base = find_base(model)
    refuse_distributed(model, "convert")
    check_config(family, base.config)
    check_base(family, base)
    check_agreement(family, model, base, whole=False)
    check_heads(family, model)
    if is_converted(model):
        _check_fused(family, base)
        connect(base, model, _conversion(base).connected)
        return model
    check_encoder(family, base)
    stock = family.encoder_of(base)
    fused = [(layer, fused_layer(layer, parts)) for layer, parts in layer_parts(model)]
    for stock_layer, layer in fused:
        _hand_over(stock_layer, layer, layer.parts)
    fused_layers = nn.ModuleList(layer for _, layer in fused)
    encoder = (PaddingFreeList if isinstance(stock, nn.ModuleList) else PaddingFreeEncoder)(fused_layers)
    base.set_submodule(family.encoder, encoder)
    _copy_mode(stock, encoder)
    layers = [(layer, stock_layer) for stock_layer, layer in fused]
    vars(base)["_earlybert"] = conversion = _Conversion(stock, layers)
    connect(base, model, conversion.connected)
    return model


def restore(model: Model) -> Model:
    """Puts the original modules back, in place, and returns the model; the opposite of `convert`.

    The modules are the very ones that `convert` took out, with the Parameters as trained since, compacted ones
    included. Layers that have been cut or moved since stay so. Restoring a stock model changes nothing.

    Raises:
        TypeError: the model's family has no adapter.
        ValueError: a ticket is applied, which stock modules cannot run; or a layer was added or repeated since.
    """
    family, base = find_base(model)
    if not is_converted(model):
        return model
    encoder, conversion = family.encoder_of(base), _conversion(base)
    _check_fused(family, base)
    if any(layer.is_masked for layer in encoder.layer):
        raise ValueError("a ticket is applied, and stock layers cannot skip units: call clear_ticket or compact first")
    stock, stock_of = conversion.stock_encoder, dict(conversion.layers)
    stock_layers = [stock_of[layer] for layer in encoder.layer]
    if stock_layers != list(_list_of(stock)):
        stock_list = nn.ModuleList(stock_layers)
        if isinstance(stock, nn.ModuleList):
            stock = stock_list
        else:
            stock.layer = stock_list
    _copy_mode(encoder, stock)
    for stock_layer, layer in zip(stock_layers, encoder.layer, strict=True):
        _hand_over(layer, stock_layer, layer.parts)
    base.set_submodule(family.encoder, stock)
    disconnect(conversion.connected)
    del vars(base)["_earlybert"]
    return model


def is_converted(model: nn.Module) -> bool:
    """Whether `convert` has been applied to the model.

    Raises:
        TypeError: the model's family has no adapter.
    """
    family, base = find_base(model)
    return isinstance(family.encoder_of(base), PaddingFreeEncoder)


def _conversion(base: nn.Module) -> _Conversion:
    return vars(base)["_earlybert"]


def _check_fused(family: ModelFamily, base: nn.Module) -> None:
    """Raises ValueError if a converted encoder has layers that `convert` did not make, or one of them twice."""
    left = {layer for layer, _ in _conversion(base).layers}
    for name, layer in family.named_layers_of(base):
        if layer not in left:
            raise ValueError(
                f"{name} was added after the model was converted: take it out, call "
                "earlybert_kernels.restore(model), change the layers, and convert again"
            )
        left.remove(layer)


def _copy_mode(source: Any, target: Any) -> None:
    target.training, _list_of(target).training = source.training, _list_of(source).training


def _list_of(encoder: Any) -> nn.ModuleList:
    return encoder if isinstance(encoder, nn.ModuleList) else encoder.layer


def _hand_over(source: nn.Module, target: nn.Module, parts: LayerParts) -> None:
    """What belongs to a layer and not to its children: mode, gradient checkpointing, gates."""
    target.training = source.training
    if isinstance(source, GradientCheckpointingLayer) and isinstance(target, GradientCheckpointingLayer):
        target.gradient_checkpointing = source.gradient_checkpointing
    if hasattr(source, "_gradient_checkpointing_func"):
        target._gradient_checkpointing_func = source._gradient_checkpointing_func
    attach_gates(target, parts, *detach_gates(source))
