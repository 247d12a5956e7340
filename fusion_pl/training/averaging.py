"""Averaged weights, which Lightning's ``WeightAveraging`` keeps beside those that are trained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging


@contextmanager
def averaged_weights(trainer: Trainer, model: LightningModule) -> Iterator[None]:
    """Give a model its averaged weights, with which it is validated, if a callback of the Trainer averages them."""
    for callback in _averaging_callbacks(trainer):
        callback.on_validation_epoch_start(trainer, model)  # exchanges averaged and trained weights
    try:
        yield
    finally:
        restore_trained_weights(trainer, model)


def restore_trained_weights(trainer: Trainer, model: LightningModule) -> None:
    """Give a model that has its averaged weights those that are trained, as at the end of a validation."""
    for callback in _averaging_callbacks(trainer):
        callback.on_validation_epoch_end(trainer, model)


def add_averaged_weights(trainer: Trainer, model: LightningModule, checkpoint: dict[str, Any]) -> None:
    """Let a checkpoint have the averaged weights, and the model's other states, such as statistics of the inputs.

    Lightning leaves the trained weights in checkpoints without the state of training, and adds the other states as they
    were before the training to those with it.
    """
    if _averaging_callbacks(trainer):
        with averaged_weights(trainer, model):
            checkpoint["state_dict"] = deepcopy(model.state_dict())


def _averaging_callbacks(trainer: Trainer) -> list[WeightAveraging]:
    return [callback for callback in trainer.callbacks if isinstance(callback, WeightAveraging)]  # type: ignore[attr-defined]
