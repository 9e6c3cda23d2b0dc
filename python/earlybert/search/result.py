"""What a search leaves in its run's folder, for other runs to draw their tickets from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import UsageError
from ..run_directory import RunDirectory
from .drawing import read_gates


@dataclass(frozen=True)
class SearchResult:
    """A finished run of `--method search`.

    Attributes:
        directory: its folder.
        metrics: what the run wrote of itself.
        head_gates, neuron_gates: the gates that it ended with, layer by layer.
    """

    directory: RunDirectory
    metrics: dict[str, Any]
    head_gates: list[Tensor]
    neuron_gates: list[Tensor]

    @classmethod
    def read(cls, path: str, *, model: str, task: str) -> SearchResult:
        """Reads the folder of a search, but for the weights.

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
        directory.check_sums(directory.metrics, directory.gates, directory.searched)
        return cls(directory, metrics, *read_gates(directory.path))

    def weights(self) -> dict[str, Tensor]:
        """The model's weights at the end of the search, beside the gates, on the CPU."""
        return torch.load(self.directory.searched, map_location="cpu", weights_only=True)
