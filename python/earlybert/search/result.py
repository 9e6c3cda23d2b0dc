"""What a search leaves in its run's folder, for other runs to draw their tickets from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

import earlybert_kernels as ek

from ..arguments import SCORES
from ..errors import MissingFileError, UsageError
from ..files import replacing, write_bytes
from ..run_directory import RunDirectory
from .drawing import gates_by_name, read_gates
from .scores import Scores
from .search import Search


def write_scores(directory: RunDirectory, scores: Mapping[str, Scores]) -> None:
    """Writes the gates, and all other scores, of a search.

    Args:
        directory: the run's.
        scores: by all names of `SCORES`.
    """
    write_bytes(directory.gates, save(gates_by_name(*scores["gate"])))
    named = {
        f"{name}.{kind}": tensor.contiguous()
        for name, found in scores.items()
        if name != "gate"
        for kind, tensor in gates_by_name(*found).items()
    }
    write_bytes(directory.scores, save(named))


def read_scores(path: Path, name: str) -> Scores:
    """The scores that a search ended with, as `draw` takes them.

    Args:
        path: a run's folder, or for the gates the `gates.safetensors` in it.
        name: of `SCORES`.

    Raises:
        MissingFileError: there is no such file.
        UsageError: as `read_gates`, or the scores are not those of the gates' units.
    """
    gates = read_gates(path)
    if name == "gate":
        return gates
    directory = RunDirectory(path if path.is_dir() else path.parent)
    if not directory.scores.is_file():
        raise MissingFileError(f"{directory.scores}: no such file; expected the scores of the search beside its gates")
    directory.check_read(directory.scores)
    try:
        found = load_file(directory.scores)
        heads, neurons = ([found[f"{name}.{key}"] for key in gates_by_name(*part)] for part in _kinds(gates))
    except (SafetensorError, KeyError) as error:
        raise UsageError(f"{directory.scores}: expected the scores {name} of all units, found {error}") from None
    for own, gate in zip((*heads, *neurons), (*gates[0], *gates[1]), strict=True):
        if own.shape != gate.shape:
            raise UsageError(f"{directory.scores}: expected {len(gate)} scores, found {len(own)}")
    return heads, neurons


def _kinds(gates: Scores) -> tuple[tuple[list[Tensor], list[Tensor]], tuple[list[Tensor], list[Tensor]]]:
    return (gates[0], []), ([], gates[1])


def write_searched(directory: RunDirectory, search: Search) -> None:
    """Writes the weights that the search has come to, and those that it rewinds to, but for those of the beginning."""
    with replacing(directory.searched) as partial, partial.open("wb") as file:
        torch.save(
            {
                "searched": search.searched_weights(),
                "start": search.start if search.settings.rewind_steps else None,
            },
            file,
        )


@dataclass(frozen=True)
class SearchResult:
    """A search that is over, in the folder of a run.

    Attributes:
        directory: the folder.
        metrics: what the run wrote of itself; nothing of one that is not finished.
    """

    directory: RunDirectory
    metrics: Mapping[str, Any]

    @classmethod
    def read(cls, path: str, *, model: str, task: str) -> SearchResult:
        """A finished run of `--method search`.

        Args:
            path: the folder.
            model, task: those of the run that is to draw from it.

        Raises:
            UsageError: there is no finished search of this model on this task, or its files are not as it wrote them.
        """
        directory = RunDirectory(path)
        metrics = directory.read_metrics()
        for name, expected in (("method", "search"), ("model", model), ("task", task)):
            if metrics.get(name) != expected:
                raise UsageError(
                    f"--search-from {path}: expected a run with --{name} {expected}, found one with "
                    f"--{name} {metrics.get(name)}"
                )
        directory.check_sums(directory.metrics, directory.gates, directory.scores, directory.searched)
        return cls(directory, metrics)

    def scores(self) -> dict[str, Scores]:
        """All scores, by name."""
        return {name: read_scores(self.directory.path, name) for name in SCORES}

    def set_weights(self, model: nn.Module, weights: str) -> None:
        """Gives a model what its ticket is to be cut from.

        Args:
            model: whole and without gates, of the same kind as the one that was searched with, with the weights of the
                beginning.
            weights: of `TICKET_WEIGHTS`; see `Search.finish`.
        """
        found = torch.load(self.directory.searched, map_location="cpu", weights_only=True)
        if (state := found["start" if weights == "start" else "searched"]) is not None:
            model.load_state_dict(state)
        if weights == "folded":
            ek.enable_gates(model)
            for own, gates in zip(
                (ek.head_gates(model), ek.neuron_gates(model)), read_gates(self.directory.path), strict=True
            ):
                for gate, value in zip(own, gates, strict=True):
                    gate.data.copy_(value)
            ek.remove_gates(model)
