"""Validate after the last training step."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class ValidateLastStep(Callback):
    """Validate when ``max_steps`` ends a run within an epoch; Lightning would end it without a result."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Let the Trainer stop after this batch, before which it validates."""
        if -1 < trainer.max_steps <= trainer.global_step:
            trainer.should_stop = True
