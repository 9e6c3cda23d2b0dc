"""What a model says of a split."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm

from .. import processes
from .batches import Batch, BatchMaker
from .data import EncodedExamples
from .progress import not_shown


@torch.inference_mode()
def predict(
    model: nn.Module,
    examples: EncodedExamples,
    outputs: Callable[[nn.Module, Batch, Sequence[int]], list[torch.Tensor]],
    *,
    batch_size: int,
    pad_to: int | None,
    dtype: torch.dtype,
    device: torch.device,
) -> list[np.ndarray]:
    """What a model says of each example, with dropout off, in float32.

    Batches are made of examples of similar length, which pads them least. Several processes (torchrun) deal them out
    and tell each other what they have found, so that all have to call this.

    Args:
        model: on `device`.
        examples: the split.
        outputs: calls the model and takes what is wanted out of its output, one tensor an example; see `Task.outputs`.
        batch_size: examples in a forward pass.
        pad_to: tokens to pad a stock model's batches to; None for the longest of a batch.
        dtype: what the forward pass computes in.
        device: where.
    """
    was_training = model.training
    model.eval()
    lengths = examples.lengths()
    order = np.argsort(lengths, kind="stable").tolist()
    starts = range(0, len(order), batch_size)
    make_batch = BatchMaker(model, examples, device, pad_to=pad_to)
    found: dict[int, np.ndarray] = {}
    own_starts = starts[processes.rank() :: processes.count()]
    for start in tqdm(own_starts, desc="evaluate", unit="batch", disable=not_shown()):
        own = order[start : start + batch_size]
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            each = outputs(model, make_batch(own), [lengths[index] for index in own])
        on_host = torch.cat(each).cpu().split([len(tensor) for tensor in each])  # waits for a GPU once
        found |= {index: tensor.numpy() for index, tensor in zip(own, on_host, strict=True)}
    model.train(was_training)
    found = {index: output for part in processes.gather(found) for index, output in part.items()}
    return [found[index] for index in range(len(order))]
