"""Optimizers whose step is one call of a kernel for all tensors of a group: LAMB and AdamW."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from .ops.optimizer_step import optimizer_step


class _OneCall(torch.optim.Optimizer):
    """What the optimizers have in common; each group has the arguments of the constructors, by their names."""

    def __init__(self, params: Any, **defaults: Any) -> None:
        self._check_options(defaults)  # a group may override each of them
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """See `torch.optim.Optimizer`; errors as in the constructor."""
        self._check_options({**self.defaults, **param_group})
        super().add_param_group(param_group)
        if any(param.is_complex() for param in self.param_groups[-1]["params"]):
            self.param_groups.pop()
            raise TypeError(f"{type(self).__name__}: a Parameter is complex")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Changes every Parameter that has a gradient.

        Args:
            closure: computes the loss and its gradients anew.

        Returns:
            What `closure` returns, or None.

        Raises:
            ValueError: a group has been told to use amsgrad or to maximize.
            RuntimeError: a gradient is sparse; or a backend was forced that cannot run the step.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        factors = self._grad_factors()
        for group in self.param_groups:
            self._check_variant(group)  # schedulers and callbacks write into groups
            factor = factors[group["max_grad_norm"]]
            alike = defaultdict(list)
            for param in group["params"]:
                if param.grad is None:
                    continue
                if param.grad.layout != torch.strided:
                    raise RuntimeError(
                        f"{type(self).__name__}: a gradient is sparse, and every number of a tensor has to take part"
                    )
                alike[param.device, param.dtype].append(param)
            for params in alike.values():
                self._step(params, group, factor)
        return loss

    def _grad_factors(self) -> dict[float, float | Tensor]:
        """By `max_grad_norm`: what cuts all gradients of the groups that have it to that norm, on their device."""
        gradients: dict[float, list[Tensor]] = defaultdict(list)
        for group in self.param_groups:
            found = (param.grad for param in group["params"] if param.grad is not None)
            gradients[group["max_grad_norm"]] += [grad for grad in found if grad.layout == torch.strided]
        # As torch.nn.utils.clip_grad_norm_ has it, which multiplies the gradients themselves.
        return {
            limit: (limit / (_total_norm(tensors) + 1e-6)).clamp(max=1.0) if limit and tensors else 1.0
            for limit, tensors in gradients.items()
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See `torch.optim.Optimizer`.

        Raises:
            ValueError: a group's hyper-parameter is out of range; nothing has changed then.
        """
        # What torch's optimizers do not have, and earlier versions of these had not, stays as it is.
        groups = list(state_dict["param_groups"])
        if len(groups) == len(self.param_groups):  # or super refuses them
            kept = ({name: group[name] for name in ("l1", "max_grad_norm")} for group in self.param_groups)
            groups = [{**own, **group} for own, group in zip(kept, groups, strict=True)]
        for group in groups:
            self._check_options({**self.defaults, **group})
        super().load_state_dict({**state_dict, "param_groups": groups})
        # That has rounded moments to half precision where the Parameters have it, and left the steps where they were.
        saved = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        own = chain.from_iterable(group["params"] for group in self.param_groups)
        for number, param in zip(saved, own, strict=True):
            if self.state.get(param):
                saved_state = state_dict["state"][number]
                self.state[param]["step"] = torch.as_tensor(
                    saved_state["step"], dtype=torch.float32, device=param.device
                ).clone()
                for name in ("exp_avg", "exp_avg_sq"):
                    self.state[param][name] = saved_state[name].to(param.device, _state_dtype(param))

    def _step(self, params: list[Tensor], group: dict[str, Any], grad_factor: float | Tensor) -> None:
        """Changes these Parameters of a group, which are on one device and in one dtype."""
        if isinstance(grad_factor, Tensor):
            grad_factor = grad_factor.to(params[0].device)
        states = [self.state[param] for param in params]
        for param, state in zip(params, states, strict=True):
            if not state:
                state["step"] = torch.zeros((), dtype=torch.float32, device=param.device)
                for name in ("exp_avg", "exp_avg_sq"):
                    state[name] = torch.zeros(param.shape, dtype=_state_dtype(param), device=param.device)
        steps = [state["step"] for state in states]
        torch._foreach_add_(steps, 1.0)
        optimizer_step(
            params,
            [param.grad for param in params if param.grad is not None],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            steps,
            lr=group["lr"],
            betas=tuple(group["betas"]),
            eps=group["eps"],
            weight_decay=group["weight_decay"],
            adapt=self._adapts(group),
            l1=group["l1"],
            grad_factor=grad_factor,
        )

    def _adapts(self, group: dict[str, Any]) -> bool:
        """Whether a group's updates are scaled by trust ratios."""
        raise NotImplementedError

    def _check_options(self, options: dict[str, Any]) -> None:
        """Raises ValueError unless a group may have these."""
        name = type(self).__name__
        for option in ("lr", "weight_decay", "l1", "max_grad_norm"):
            if not options[option] >= 0:
                raise ValueError(f"{name}: {option} is {options[option]}, expected 0 or more")
        if not options["eps"] > 0:
            raise ValueError(f"{name}: eps is {options['eps']}, expected more than 0")
        if len(options["betas"]) != 2 or not all(0 <= beta < 1 for beta in options["betas"]):
            raise ValueError(
                f"{name}: betas are {options['betas']}, expected two numbers of at least 0 and less than 1"
            )
        self._check_variant(options)

    def _check_variant(self, options: dict[str, Any]) -> None:
        """Raises ValueError for variants of the step that torch's optimizers have and these do not."""
        for option in ("amsgrad", "maximize"):
            if options.get(option):
                raise ValueError(f"{type(self).__name__}: it has no {option}; take torch.optim.AdamW for that")


def _total_norm(tensors: list[Tensor]) -> Tensor:
    """The norm of all numbers of the tensors, in at least float32.

    On a CPU rows first: torch sums up a whole tensor by one thread and in float32, which of ten millions of squares
    leaves three digits. On a GPU it sums up all tensors by one launch.
    """
    if any(tensor.device.type != "cpu" for tensor in tensors):
        return get_total_norm([tensor.to(_state_dtype(tensor)) for tensor in tensors])
    rows = (tensor if tensor.dim() > 1 else tensor.reshape(1, -1) for tensor in tensors)
    return get_total_norm([torch.linalg.vector_norm(t, dim=-1, dtype=_state_dtype(t)) for t in rows])


def _state_dtype(param: Tensor) -> torch.dtype:
    """At least float32: half precision would swallow the small changes of the second moment."""
    return torch.promote_types(param.dtype, torch.float32)


class Lamb(_OneCall):
    """LAMB: Adam's update with decoupled weight decay, scaled in every tensor by `|parameter| / |update|`.

    You et al., "Large Batch Optimization for Deep Learning: Training BERT in 76 minutes", arXiv 1904.00962,
    algorithm 2, with the identity for phi; `ops.optimizer_step` has the formulas. float32 Parameters on the CPU and
    those on a GPU take a compiled step; `use_backend("reference")` forces plain PyTorch.

    The state of a Parameter is `step` (a 0-dimensional float32 tensor on the Parameter's device), `exp_avg` and
    `exp_avg_sq` (of its shape; float32, float64 for a float64 Parameter).

    On a GPU a step waits for nothing, and a CUDA graph can capture it: after a first step, which makes the state. A
    replay counts its step, but it goes on with the learning rate that was captured unless this is a tensor on the
    GPU: schedulers then write the new one into it.

    Args:
        params: Parameters, or groups of them as every torch optimizer takes, with any of the following of their own.
        lr: learning rate, at least 0, a number or a 0-dimensional tensor; schedulers may change it.
        betas: decay of the two moments, each in [0, 1).
        eps: added to the root of the second moment; greater than 0.
        weight_decay: at least 0; part of the update that is scaled.
        adapt: whether updates are scaled. False, for a group, makes the step that of AdamW. Gates need it: scaled,
            a layer's gates would move in proportion to their norm, whatever their learning rate is meant to be. It is
            also common for biases and LayerNorm.
        l1: at least 0; factor of a penalty `l1 |p|_1`, whose gradient `l1 sign(p)` is added to that of the loss. For
            gates it is the lambda of EarlyBERT's search. It is no part of the loss, so that it depends neither on
            how many gradients are accumulated nor on a scaled loss.
        max_grad_norm: at least 0; the gradients of all groups that have the same are cut to this norm, 0 for never. As
            `torch.nn.utils.clip_grad_norm_` does it before a step, but that the gradients stay as they are, which
            saves a pass over them.

    Raises:
        ValueError: a hyper-parameter is out of range.
        TypeError: a Parameter is complex.
    """

    def __init__(
        self,
        params: Any,
        lr: float | Tensor,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
        adapt: bool = True,
        l1: float = 0.0,
        max_grad_norm: float = 0.0,
    ) -> None:
        options = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "adapt": adapt, "l1": l1}
        super().__init__(params, **options, max_grad_norm=max_grad_norm)

    def _adapts(self, group: dict[str, Any]) -> bool:
        return group["adapt"]


class AdamW(_OneCall):
    """`torch.optim.AdamW` with an L1 penalty: Adam with decoupled weight decay.

    Loshchilov and Hutter, "Decoupled Weight Decay Regularization", arXiv 1711.05101, algorithm 2;
    `ops.optimizer_step` has the formulas, its trust ratio being 1. What `Lamb` says of backends, of a Parameter's state
    and of CUDA graphs holds here as well: it is captured as it is, without `capturable=True`. Of the states of this
    class and of torch's each loads the other's; torch's knows no `l1`.

    Args:
        params: Parameters, or groups of them as every torch optimizer takes, with any of the following of their own.
        lr: learning rate, at least 0, a number or a 0-dimensional tensor; schedulers may change it.
        betas: decay of the two moments, each in [0, 1).
        eps: added to the root of the second moment; greater than 0.
        weight_decay: at least 0; `lr * weight_decay` of a Parameter is taken from it in every step.
        l1: as `Lamb`'s: factor of a penalty `l1 |p|_1` that is no part of the loss, for a group of gates the lambda of
            EarlyBERT's search.
        max_grad_norm: as `Lamb`'s: the norm that gradients are cut to.

    Raises:
        ValueError: a hyper-parameter is out of range, or a group asks for amsgrad or maximize, which torch's has.
        TypeError: a Parameter is complex.
    """

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        l1: float = 0.0,
        max_grad_norm: float = 0.0,
    ) -> None:
        options = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "l1": l1}
        super().__init__(params, **options, max_grad_norm=max_grad_norm)

    def _adapts(self, group: dict[str, Any]) -> bool:
        return False
