"""Exact resume of a ``ReduceLROnPlateau`` schedule."""

from __future__ import annotations

import math
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim.lr_scheduler import ReduceLROnPlateau


class ResumePlateau(Callback):
    """Update a ``ReduceLROnPlateau`` at the end of the epoch in which a run is resumed, which Lightning leaves out.

    If the checkpoint was saved after the validation of that epoch, the metric comes from the checkpoint.
    """

    def __init__(self) -> None:
        self.metrics: dict[str, float] = {}

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the monitored metrics to the checkpoint."""
        names = {config.monitor for config in trainer.lr_scheduler_configs if config.reduce_on_plateau}
        values = {name: float(value) for name, value in trainer.callback_metrics.items() if name in names}
        checkpoint["callbacks"][self.state_key] = {
            name: value for name, value in values.items() if not math.isnan(value)
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the monitored metrics."""
        self.metrics = {name: value for name, value in state_dict.items() if isinstance(value, float)}

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Update the schedule with the metric of the last validation."""
        if not trainer.fit_loop.restarting:
            return
        metrics = self.metrics | {name: float(value) for name, value in trainer.callback_metrics.items()}
        for config in trainer.lr_scheduler_configs:
            if isinstance(config.scheduler, ReduceLROnPlateau) and config.monitor in metrics:
                config.scheduler.step(metrics[config.monitor])
