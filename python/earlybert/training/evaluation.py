"""What a model says of a split."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm

from .batches import BatchMaker
from .data import EncodedExamples


@torch.inference_mode()
def predict(
    model: nn.Module,
    examples: EncodedExamples,
    *,
    batch_size: int,
    pad_to: int | None,
    dtype: torch.dtype,
    device: torch.device,
) -> np.ndarray:
    """The model's logits `(examples, outputs)` in float32, with dropout off.

    Batches are made of examples of similar length, which pads them least.
    """
    was_training = model.training
    model.eval()
    order = np.argsort(examples.lengths(), kind="stable").tolist()
    starts = range(0, len(order), batch_size)
    make_batch = BatchMaker(model, examples, device, pad_to=pad_to)
    outputs = []
    for start in tqdm(starts, desc="evaluate", unit="batch", disable=None):
        batch = make_batch(order[start : start + batch_size])
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            outputs.append(model(**batch).logits.float())
    model.train(was_training)
    logits = torch.empty(len(order), outputs[0].shape[1], dtype=torch.float32)
    logits[torch.tensor(order)] = torch.cat(outputs).cpu()
    return logits.numpy()
