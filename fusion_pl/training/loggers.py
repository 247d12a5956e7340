"""TensorBoard logger and logging interval."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

LOG_INTERVAL = 50  # number of steps; Lightning's default


class TensorBoard(TensorBoardLogger):
    """Log the training curves, with the validation metrics as the first charts.

    TensorBoard sorts groups of charts by name, capital letters first, and expands the first two. Validation metrics
    are therefore written to the group ``Validation``: ``val/accuracy`` is the chart ``Validation/accuracy``. The epoch
    is not logged. ``validate`` and ``test`` log no metrics, because each chart would be a single point; their metrics
    are in ``metrics.json``. The arguments are the same as for ``TensorBoardLogger``.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.logs_metrics = True

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log the metrics of a step, except the epoch."""
        if self.logs_metrics:
            super().log_metrics({chart_name(name): value for name, value in metrics.items() if name != "epoch"}, step)


def chart_name(metric: str) -> str:
    """Return the name of the chart of a metric.

    Example:
        >>> chart_name("val/accuracy")
        'Validation/accuracy'
    """
    return f"Validation/{metric.removeprefix('val/')}" if metric.startswith("val/") else metric


def shows_progress(trainer: Trainer) -> bool:
    """Return whether a progress bar is shown, which has the loss of every step."""
    bar = trainer.progress_bar_callback
    return bar is not None and bool(getattr(bar, "is_enabled", True))


def is_logged(trainer: Trainer) -> bool:
    """Return whether the loggers write the values of the training step that ends, as Lightning decides it.

    Passing a number to ``LightningModule.log`` takes a tenth of the time of a small model's step. A number that is not
    passed in a step that is written appears there with its previous value.
    """
    interval: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
    return interval > 0 and (trainer.global_step % interval == 0 or trainer.should_stop)


class LogInterval(Callback):
    """Log every step if an epoch has fewer than 50 steps, so that short runs have curves too."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set the logging interval of the Trainer from the number of batches per epoch."""
        is_short = trainer.num_training_batches < LOG_INTERVAL
        trainer.log_every_n_steps = 1 if is_short else LOG_INTERVAL  # type: ignore[attr-defined]
