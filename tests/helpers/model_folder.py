"""Changes to the folder of a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from earlybert_kernels.models import layer_parts
from earlybert_kernels.units import head_rows

#: By layer, the heads that `write_pruned` prunes.
PRUNED = {0: [1, 3], 2: [0]}


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_weights(folder: Path, **weights: torch.Tensor) -> None:
    path = folder / "model.safetensors"
    save_file({**load_file(path), **weights}, path, metadata={"format": "pt"})


def torn(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@torch.no_grad()
def write_pruned(model: torch.nn.Module, folder: Path) -> None:
    """Saves the model as `prune_heads` of transformers 4 left it, and sets to 0 here what the others have to add."""
    model.save_pretrained(folder)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    names = {parameter: name for name, parameter in model.named_parameters()}
    layers = layer_parts(model)
    pruned = {layer: heads for layer, heads in PRUNED.items() if layer < len(layers)}
    for layer, gone in pruned.items():
        _, parts = layers[layer]
        kept = [head for head in range(parts.num_heads) if head not in gone]
        rows = head_rows(torch.tensor(kept), parts.head_size)
        for linear in (parts.query, parts.key, parts.value):
            for parameter in (linear.weight, linear.bias):
                state[names[parameter]] = parameter[rows].clone()
        weight = parts.attention_output.weight
        state[names[weight]] = weight[:, rows].clone()
        weight[:, head_rows(torch.tensor(gone), parts.head_size)] = 0
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    edit_config(folder, pruned_heads={str(layer): heads for layer, heads in pruned.items()})
