"""Averaged weights, which Lightning's ``WeightAveraging`` keeps beside those that are trained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging


@contextmanager
def averaged_weights(trainer: Trainer, model: LightningModule) -> Iterator[None]:
    """Give a model its averaged weights, with which it is validated, if a callback of the Trainer averages them."""
    callbacks = _averaging_callbacks(trainer)
    for callback in callbacks:
        callback.on_validation_epoch_start(trainer, model)  # exchanges the weights
    try:
        yield
    finally:
        for callback in callbacks:
            callback.on_validation_epoch_end(trainer, model)  # exchanges them again


def add_averaged_weights(trainer: Trainer, model: LightningModule, checkpoint: dict[str, Any]) -> None:
    """Let a checkpoint without the state of training have the averaged weights; Lightning adds them to others only."""
    if "callbacks" not in checkpoint and _averaging_callbacks(trainer):
        with averaged_weights(trainer, model):
            checkpoint["state_dict"] = {name: value.clone() for name, value in model.state_dict().items()}


def _averaging_callbacks(trainer: Trainer) -> list[WeightAveraging]:
    return [callback for callback in trainer.callbacks if isinstance(callback, WeightAveraging)]  # type: ignore[attr-defined]
