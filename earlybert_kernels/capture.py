"""A whole training step captured in a CUDA graph and replayed: one launch where there were thousands."""

from __future__ import annotations

import operator
from collections.abc import Callable, Hashable, Iterator, Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from .optim import AdamW, Lamb

Batch = Mapping[str, Any]


class CapturedStep:
    """Runs a training step (forward, backward, optimizer) from a CUDA graph, which costs the host next to nothing.

        optimizer = AdamW(model.parameters(), lr=5e-5, max_grad_norm=1.0)

        def train_step(batch):
            loss = model(**batch).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            return loss

        step = CapturedStep(model, optimizer, train_step)
        for batch in loader:  # made by PackedCollator(fill_to=...)
            loss = step(batch)
            scheduler.step()

    A graph is captured for every shape of a batch: the shapes and dtypes of its tensors and the values of all else.
    The first batch of a shape is trained on without a graph, by calling `train_step`, and the graph is captured
    behind it; the ones after it are copied to where the first one was, and the graph is replayed. So every call is
    exactly one training step. Between steps any of these may change:

    - the Parameters' values, and the learning rates: they become tensors on the device, which schedulers change in
      place as they change numbers;
    - the ticket, after `reserve_masks`.

    When Parameters or buffers are exchanged, added or frozen, when a module goes from training to evaluation, or the
    optimizer loads a state, the graphs are dropped and captured anew. Anything else that `train_step` reads from
    Python (weight decay, say) stays what it was when a graph was captured.

    What `train_step` does has to be the device's work alone. While it is captured nothing runs, and a step that
    waits for the device (`.item()`, a padded batch, `clip_grad_norm_(error_if_nonfinite=True)`) cannot be captured.
    Schedulers and counters belong outside of it; autocast belongs inside. Gradients are not to be read outside.
    Dropout draws from torch's CUDA generator, and so anew in every replay, as it would without a graph.

    With a model on another device than a GPU the same is done without graphs: batches are copied to where the first
    one of their shape was, and `train_step` is called.
    """

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, train_step: Callable[[dict[str, Any]], Tensor]
    ) -> None:
        """
        Args:
            model: what is trained, all on one device.
            optimizer: what trains it. On a GPU one that can be captured: `AdamW`, `Lamb` or
                `torch.optim.AdamW(..., capturable=True)`.
            train_step: takes a batch on the model's device, trains, and returns the loss or another tensor.

        Raises:
            ValueError: the optimizer cannot be captured.
        """
        self._model, self._optimizer, self._train_step = model, optimizer, train_step
        self._device = next(model.parameters()).device
        self._captures = self._device.type == "cuda"
        self._buckets: dict[Hashable, _Bucket] = {}
        self._modules: list[nn.Module] = []
        self._rates: list[Tensor] = []
        if self._captures:
            for group in optimizer.param_groups:
                if not (isinstance(optimizer, (AdamW, Lamb)) or group.get("capturable", False)):
                    raise ValueError(
                        f"{type(optimizer).__name__} keeps numbers of its steps on the host, which a captured step "
                        "would not change: make it with capturable=True, which torch.optim.AdamW takes, for one, "
                        "or take earlybert_kernels.AdamW or Lamb"
                    )
            self._stream = torch.cuda.Stream(self._device)
            self._tie_rates()

    @property
    def buckets(self) -> int:
        """Shapes of batches that there is a graph for."""
        return len(self._buckets)

    def __call__(self, batch: Batch) -> Tensor:
        """One training step.

        Args:
            batch: tensors, on any device, and values that can be hashed.

        Returns:
            What `train_step` returned, detached, the caller's own.

        Raises:
            TypeError: a value is neither a tensor nor can it be hashed.
            RuntimeError: the step cannot be captured. It has been taken all the same, without a graph; but torch may
                not recover from a capture that failed, and the process had better end.
        """
        self._drop_outdated()
        key = tuple(sorted((name, *_shape(name, value)) for name, value in batch.items()))
        bucket = self._buckets.get(key) or _Bucket(batch, self._device)
        bucket.fill(batch)
        if not self._captures:
            loss = self._train_step(dict(bucket.batch)).detach().clone()
        else:
            with torch.cuda.device(self._device):
                self._tie_rates()
                loss = self._first_step(bucket) if bucket.captured is None else _replay(*bucket.captured)
        self._buckets[key] = bucket
        return loss

    def _first_step(self, bucket: _Bucket) -> Tensor:
        """A step as any other, and then the capture.

        On the same stream, so that the step makes what has to be there before a capture: the optimizer's state and the
        libraries' workspaces, which outlast the graph, and compiled kernels.
        """
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            loss = self._train_step(dict(bucket.batch)).detach()
        current.wait_stream(self._stream)
        loss = loss.clone()
        self._capture(bucket)
        return loss

    def _capture(self, bucket: _Bucket) -> None:
        graph = torch.cuda.CUDAGraph()
        # Other threads, a loader's that pins memory, may go on with what a capture forbids its own.
        capture = torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local")
        try:
            # The outer context puts torch's stream back where a capture that fails would leave it changed.
            with torch.cuda.stream(torch.cuda.current_stream()), capture:
                loss = self._train_step(dict(bucket.batch)).detach()
        except RuntimeError as error:
            raise RuntimeError(
                "the training step cannot be captured in a CUDA graph: it waits for the device, which "
                "torch.cuda.set_sync_debug_mode('error') before the step would show. Batches have to be packed ones "
                f"(PackedCollator), and .item() or print(loss) belong outside of the step. {error}"
            ) from error
        bucket.captured = graph, loss

    def _drop_outdated(self) -> None:
        """Forgets all graphs if they would work on other tensors, or in another mode, than the model now has."""
        if self._modules and self._is_as_it_was():
            return
        if self._captures:
            torch.cuda.synchronize(self._device)  # no graph may be running when it goes
            # One pool for all graphs, of which one runs at a time, and none needs what another has left there.
            self._pool = torch.cuda.graph_pool_handle()
        self._buckets.clear()
        self._modules = list(self._model.modules())
        self._objects = self._present()
        self._tensors = [(t, t.data_ptr(), t.requires_grad) for t in self._objects if torch.is_tensor(t)]
        self._modes = [module.training for module in self._modules]

    def _present(self) -> list[Any]:
        """What the graphs hold on to: the optimizer's state, Parameters, buffers, and the modules that have them."""
        owners: Iterator[dict[str, Any]]
        owners = (d for m in self._modules for d in (m._parameters, m._buffers, m._modules))
        return [self._optimizer.state, *chain.from_iterable(map(dict.values, owners))]

    def _is_as_it_was(self) -> bool:
        # Every step asks this, so that it has to be quick: no walk through the model.
        present = self._present()
        return (
            len(present) == len(self._objects)
            and all(map(operator.is_, present, self._objects))
            and all(t.data_ptr() == address and t.requires_grad == grad for t, address, grad in self._tensors)
            and all(m.training == mode for m, mode in zip(self._modules, self._modes, strict=True))
        )

    def _tie_rates(self) -> None:
        """Makes learning rates tensors that stay, and puts into them what has been put in their place."""
        groups = self._optimizer.param_groups
        while len(self._rates) < len(groups):
            self._rates.append(torch.zeros((), dtype=torch.float32, device=self._device))
        for group, rate in zip(groups, self._rates, strict=True):
            if group["lr"] is not rate:
                rate.fill_(group["lr"])
                group["lr"] = rate


def _replay(graph: torch.cuda.CUDAGraph, loss: Tensor) -> Tensor:
    graph.replay()
    return loss.clone()


class _Bucket:
    """One shape of batches: where they are copied to, and the graph that reads them there."""

    def __init__(self, batch: Batch, device: torch.device) -> None:
        self.captured: tuple[torch.cuda.CUDAGraph, Tensor] | None = None  # and the loss that it writes
        self.batch = {
            name: torch.empty(value.shape, dtype=value.dtype, device=device) if torch.is_tensor(value) else value
            for name, value in batch.items()
        }

    def fill(self, batch: Batch) -> None:
        for name, value in batch.items():
            if torch.is_tensor(value):
                self.batch[name].copy_(value, non_blocking=True)


def _shape(name: str, value: Any) -> tuple[str, Hashable]:
    if torch.is_tensor(value):
        return "tensor", (value.dtype, tuple(value.shape))
    try:
        hash(value)
    except TypeError:
        raise TypeError(
            f"{name} of the batch is a {type(value).__name__}: a captured step takes tensors, which may change, and "
            "plain values, each of which has a graph of its own"
        ) from None
    return type(value).__name__, value
