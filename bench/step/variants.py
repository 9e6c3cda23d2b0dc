"""The ways in which a training step is run: stock, compiled, unpadded, converted, gated, with a ticket, captured."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import BertForSequenceClassification

import earlybert_kernels as ek
from earlybert.training.batches import Batch
from earlybert_kernels.models import family_of_type

from ..shapes import random_ticket
from .unpadded import UnpaddedClassifier
from .workload import labels_tokens, pack

STOCK, COMPILED, CONVERTED = "stock", "stock-compile", "converted"
#: Next to steps under autocast, what they are in float32.
IN_FLOAT32 = "converted-float32"
UNPADDED, UNPADDED_COMPILED = "stock-unpadded", "stock-unpadded-compile"
#: What the names of variants end in whose step is an `earlybert_kernels.CapturedStep` on packed batches.
_CAPTURED = "-captured"

#: Name -> what becomes of a stock model, in place, given the ticket where it is run with one.
_MAKERS: dict[str, Callable[[nn.Module, ek.Ticket], nn.Module]] = {
    STOCK: lambda model, ticket: model,
    COMPILED: lambda model, ticket: torch.compile(model),
    UNPADDED: lambda model, ticket: UnpaddedClassifier(model),
    UNPADDED_COMPILED: lambda model, ticket: torch.compile(UnpaddedClassifier(model)),
    CONVERTED: lambda model, ticket: ek.convert(model),
    IN_FLOAT32: lambda model, ticket: ek.convert(model),
    "search": lambda model, ticket: ek.enable_gates(ek.convert(model)),
    "ticket-masked": lambda model, ticket: ek.apply_ticket(ek.convert(model), ticket),
    "ticket-compact": lambda model, ticket: ek.compact(ek.convert(model), ticket),
    "ticket-stock": lambda model, ticket: ek.compact(model, ticket),
}
#: All variants. `ticket-stock` is the compact ticket on stock modules.
VARIANTS = (*_MAKERS, "converted-captured", "search-captured", "ticket-compact-captured")
#: Those that compute no fewer units than stock.
DENSE = tuple(name for name in VARIANTS if not name.startswith("ticket"))
#: Sequences of a batch that results are compared on.
_CHECKED_SEQUENCES, _CHECKED_TEXTS = 32, 4

#: Of float32 results that were computed in another order, absolute and relative.
_TOLERANCE = {"cpu": 1e-4, "cuda": 1e-3}
#: Of logits in bfloat16, as a share of the largest. With random weights they say little of attention, which is checked
#: where it is measured alone.
_HALF_TOLERANCE = 5e-2


def build(name: str, stock: nn.Module) -> nn.Module:
    """Makes a variant of a stock model, using the model up.

    Tickets are of the paper's ratios with random units, the same for all variants.
    """
    config: Any = stock.config
    ticket = random_ticket(*family_of_type(config.model_type).units(config))
    return _MAKERS[name.removesuffix(_CAPTURED)](stock, ticket)


def is_captured(name: str) -> bool:
    """Whether a variant's step is captured in a CUDA graph, and takes packed batches."""
    return name.endswith(_CAPTURED)


def is_packed(name: str) -> bool:
    """Whether a variant takes packed batches."""
    return is_captured(name) or name in (UNPADDED, UNPADDED_COMPILED)


def is_stock(name: str) -> bool:
    """Whether a variant has none of this library's modules."""
    return name in (STOCK, COMPILED, UNPADDED, UNPADDED_COMPILED, "ticket-stock")


def own_batch(name: str, batch: Batch) -> Batch:
    """A padded batch as a variant takes it: converted models are asked for the loss of hidden words alone."""
    return {**batch, "skip_logits": True} if labels_tokens(batch) and not is_stock(name) else batch


def dtype_of(name: str, dtype: torch.dtype) -> torch.dtype:
    """What a variant's step computes in, where others do in `dtype`."""
    return torch.float32 if name == IN_FLOAT32 else dtype


def cannot_run(name: str, stock: nn.Module, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why a variant is left out of what is measured, or None."""
    if name == IN_FLOAT32 and dtype == torch.float32:
        return f"{CONVERTED} is in float32"
    if name not in (UNPADDED, UNPADDED_COMPILED):
        return None
    if device.type != "cuda":
        return "torch's attention of packed sequences is of GPUs"
    return None if isinstance(stock, BertForSequenceClassification) else "only classifiers are unpadded"


def same_function(name: str) -> str:
    """The variant on stock modules that a variant has to agree with."""
    return "ticket-stock" if name.startswith("ticket") else STOCK


def results(model: nn.Module, batch: Batch) -> torch.Tensor:
    """What a model computes without dropout, float32 in one dimension.

    Its logits (of questions, the scores of real tokens), and the gradients that the mean of their squares has in the
    embeddings, to which all of the backward pass leads and which a ticket does not cut.
    """
    if labels_tokens(batch):  # all logits of a vocabulary take most of the memory
        batch = {name: tensor[:_CHECKED_TEXTS] for name, tensor in batch.items()}
    output = model.eval()(**batch)
    if "logits" in output:
        logits = output.logits.flatten()
    else:
        real = batch["attention_mask"].bool()
        logits = torch.cat([output.start_logits[real], output.end_logits[real]])
    # Not the model's loss: stock question answering has one that depends on how far the batch was padded.
    logits.square().mean().backward()
    gradients = [p.grad.flatten() for name, p in model.named_parameters() if "embeddings" in name]
    model.zero_grad()
    return torch.cat([logits.detach(), *gradients])


def check(name: str, found: torch.Tensor, expected: torch.Tensor, tolerance: float | None = None) -> None:
    """Compares the results of a variant with those of the one that it has to agree with.

    Raises:
        AssertionError: they differ by more than rounding.
    """
    tolerance = tolerance or _TOLERANCE[found.device.type]
    torch.testing.assert_close(
        found, expected, rtol=tolerance, atol=tolerance, msg=lambda message: f"{name}: wrong results. {message}"
    )


def failed_checks(models: dict[str, nn.Module], stock: Callable[[], nn.Module], batch: Batch) -> dict[str, str]:
    """Checks every model on some sequences against stock modules; `stock` makes a fresh stock model on the device.

    Not the compiled stock models, which are torch's own, and would be compiled once more for this.

    Returns:
        What went wrong, of each variant whose results are not right or that does not run.
    """
    expected: dict[str, torch.Tensor] = {}
    failures = {}
    batch = {name: tensor[:_CHECKED_SEQUENCES] for name, tensor in batch.items()}
    for name, model in models.items():
        if name in (COMPILED, UNPADDED_COMPILED):
            continue
        try:
            if name == UNPADDED:
                found, logits = _logits_in_half_precision(model, stock(), batch)
                check(name, found, logits, _HALF_TOLERANCE * logits.abs().max().item())
                continue
            base = same_function(name)
            if base not in expected:
                expected[base] = results(build(base, stock()), batch)
            check(name, results(model, batch), expected[base])
        except Exception as error:
            failures[name] = f"{type(error).__name__}: {error}"
    return failures


def _logits_in_half_precision(unpadded: nn.Module, stock: nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    (packed,) = pack([batch])
    with torch.no_grad(), torch.autocast(batch["input_ids"].device.type, torch.bfloat16):
        return unpadded.eval()(**packed).logits.float(), stock.eval()(**batch).logits.float()
