"""The TensorBoard logger, and how often it logs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

LOG_INTERVAL = 50  # steps; Lightning's default


class TensorBoard(TensorBoardLogger):
    """Write the curves of training, with the validation first.

    TensorBoard sorts its groups of charts by name, capital letters first, and opens the first two. Metrics of the
    validation are therefore written to the group ``Validation``: ``val/accuracy`` is the chart
    ``Validation/accuracy``. There is no chart of the epoch. ``validate`` and ``test`` write no charts, because each
    would be a single point; their metrics are in ``metrics.json``. The arguments are those of ``TensorBoardLogger``.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.writes_scalars = True

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Write one point per metric."""
        if self.writes_scalars:
            super().log_metrics({chart_name(name): value for name, value in metrics.items() if name != "epoch"}, step)


def chart_name(metric: str) -> str:
    """Return the name of a metric's chart.

    Example:
        >>> chart_name("val/accuracy")
        'Validation/accuracy'
    """
    return f"Validation/{metric.removeprefix('val/')}" if metric.startswith("val/") else metric


class LogInterval(Callback):
    """Log every step where an epoch has fewer than 50 steps, so that short runs have curves too."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set the interval from the number of batches."""
        is_short = trainer.num_training_batches < LOG_INTERVAL
        trainer.log_every_n_steps = 1 if is_short else LOG_INTERVAL  # type: ignore[attr-defined]
