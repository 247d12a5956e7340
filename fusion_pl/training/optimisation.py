"""Parameter groups and the learning rate schedule."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from fusion_pl.types import UserError

# Prefixes that FSDP, activation checkpointing and torch.compile add to parameter names.
WRAPPERS = re.compile(r"(_fsdp_wrapped_module|_checkpoint_wrapped_module|_orig_mod)\.")


class WarmupCosine(LRScheduler):
    r"""Linear warm-up and cosine decay to zero, per step.

    .. math:: \eta_t = \eta \min\left(\frac{t + 1}{w},\; \frac{1 + \cos(\pi \frac{t - w}{n - w})}{2}\right)

    with :math:`n` steps in total and :math:`w` warm-up steps. Source: cosine annealing of arXiv:1608.03983 without
    restarts. ``transformers.get_cosine_schedule_with_warmup`` needs the number of steps in the constructor, starts at
    0, and does not support parameter groups that are added later.

    Args:
        optimizer: optimizer whose learning rates are the maxima of the schedule.
        warmup: share of warm-up steps, in [0, 1).
        total_steps: number of optimizer steps of the run; by default computed by the Trainer.
    """

    def __init__(self, optimizer: Optimizer, warmup: float = 0.05, total_steps: int | None = None) -> None:
        option = "model.lr_scheduler.init_args"
        if not 0 <= warmup < 1:
            raise UserError(f"{option}.warmup is {warmup}, expected a share of the steps: 0 or more, below 1")
        if total_steps is not None and total_steps < 1:
            raise UserError(f"{option}.total_steps is {total_steps}, expected at least 1")
        self.warmup, self.total_steps = warmup, total_steps
        super().__init__(optimizer)

    def factor(self, step: int) -> float:
        """Return the factor of the maximum learning rate at a step, counted from 0."""
        total = self.total_steps or 1
        warmup_steps = math.ceil(self.warmup * total)
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        return (1 + math.cos(math.pi * min(1.0, (step - warmup_steps) / max(1, total - warmup_steps)))) / 2

    def get_lr(self) -> list[float | Tensor]:
        """Return the learning rate of each group; a group that is added later starts at its current rate."""
        for group in self.optimizer.param_groups:
            if "initial_lr" not in group:
                group["initial_lr"] = group["lr"] / (self.factor(self.last_epoch - 1) or 1.0)
        return [group["initial_lr"] * self.factor(self.last_epoch) for group in self.optimizer.param_groups]

    def set_total_steps(self, total_steps: int | float) -> None:
        """Set the number of optimizer steps of the run, before the first step.

        Raises:
            UserError: if the number is unknown: there is no maximum number of steps or epochs, or no loader length.
        """
        if not 0 <= total_steps < math.inf:
            raise UserError(
                "the number of training steps is unknown (trainer.max_epochs is -1, or the data is a stream), but "
                "the learning rate schedule depends on it: give trainer.max_steps, or "
                "model.lr_scheduler.init_args.total_steps"
            )
        self.total_steps = int(total_steps)
        for group, rate in zip(self.optimizer.param_groups, self.get_lr(), strict=True):
            group["lr"] = rate

    def state_dict(self) -> dict[str, Any]:
        """Return the state without ``total_steps``, which may change on resume."""
        return {key: value for key, value in super().state_dict().items() if key != "total_steps"}


def count_steps(trainer: Trainer) -> int | float:
    """Return the number of optimizer steps of a run; negative or infinite if it is unknown.

    The Trainer would build the loader of a stream to count its batches, and begin to read before it restores the epoch.
    """
    if getattr(trainer.datamodule, "is_stream", False):  # type: ignore[attr-defined]
        return trainer.max_steps
    return trainer.estimated_stepping_batches


def parameter_ndims(model: nn.Module) -> dict[str, int]:
    """Return a dictionary from parameter name, without the prefixes of wrappers, to number of dimensions."""
    return {WRAPPERS.sub("", name): parameter.ndim for name, parameter in model.named_parameters()}


def parameter_groups(
    pretrained: Iterable[nn.Module], model: nn.Module, lr_factor: float, known_ndims: Mapping[str, int] | None = None
) -> list[dict[str, Any]]:
    """Split the trainable parameters into groups: pretrained or not, with or without weight decay.

    Norms and biases (one-dimensional parameters) have no weight decay. Every group has a key ``lr_factor``.

    Args:
        pretrained: encoders with pretrained weights.
        model: the complete model.
        lr_factor: factor of the learning rate of pretrained parameters; the factor of new parameters is 1.
        known_ndims: result of ``parameter_ndims`` for the model before a strategy such as FSDP flattens its parameters.

    Raises:
        UserError: if a strategy has flattened parameters with and without weight decay into one.
    """
    pretrained_ids = {id(p) for module in pretrained for p in module.parameters()}
    ndims = parameter_ndims(model) | dict(known_ndims or {})
    groups: dict[str, dict[str, Any]] = {}
    for full_name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if full_name.endswith("_flat_param"):
            raise UserError(
                "the strategy joins parameters with and without weight decay: set use_orig_params in "
                "trainer.strategy.init_args to true, or remove it"
            )
        name = "pretrained" if id(parameter) in pretrained_ids else "new"
        group: dict[str, Any] = {"params": [], "lr_factor": lr_factor if name == "pretrained" else 1.0}
        if ndims[WRAPPERS.sub("", full_name)] <= 1:
            name += "_no_decay"
            group["weight_decay"] = 0.0
        groups.setdefault(name, group | {"name": name})["params"].append(parameter)
    return list(groups.values())


def enable_fused_optimizer(optimizer: Optimizer) -> None:
    """Enable PyTorch's fused optimizer for parameters on a CPU, unless the user sets the option, and log it.

    On a CPU the default implementation reads every parameter a dozen times. On a GPU it is fast.
    """
    for group in optimizer.param_groups:
        on_cpu = all(parameter.device.type == "cpu" for parameter in group["params"])
        if group.get("fused", False) is not None or group.get("foreach") or group.get("differentiable") or not on_cpu:
            return
    for group in optimizer.param_groups:
        group["fused"] = True
    name = type(optimizer).__name__
    rank_zero_info(f"Optimizer: fused {name}, faster on a CPU (--model.optimizer.init_args.fused false to disable).")
