"""Figures and hyperparameters in TensorBoard."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from fusion_pl.training.best import BestCheckpoint
from fusion_pl.training.figures import MAX_PLOTTED_CLASSES, plot_confusion, plot_missing_inputs
from fusion_pl.training.loggers import TensorBoard, tag
from fusion_pl.training.stage_metrics import accuracy_by_inputs


class TensorBoardFigures(Callback):
    """Write the confusion matrix, accuracy with missing inputs, and the hyperparameters with the best metric.

    Args:
        hyperparameters: configuration of the run.
    """

    def __init__(self, hyperparameters: dict[str, Any] | None = None) -> None:
        self.hyperparameters = hyperparameters or {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave out the charts of ``validate`` and ``test``."""
        if isinstance(trainer.logger, TensorBoard):
            trainer.logger.writes_scalars = stage == "fit"

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Plot the confusion matrix of the validation."""
        if not trainer.sanity_checking:
            self._plot_confusion(trainer, pl_module, "val")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Plot the confusion matrix of the test."""
        self._plot_confusion(trainer, pl_module, "test")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Plot accuracy with missing inputs after ``validate``."""
        if not trainer.sanity_checking:
            self._plot_missing_inputs(trainer, pl_module, "val")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Plot accuracy with missing inputs after ``test``."""
        self._plot_missing_inputs(trainer, pl_module, "test")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the hyperparameters, among them the best value of the monitored metric."""
        checkpoint = next((one for one in trainer.checkpoint_callbacks if isinstance(one, BestCheckpoint)), None)
        if not isinstance(trainer.logger, TensorBoard) or checkpoint is None or checkpoint.best_model_score is None:
            return
        trainer.logger.writes_scalars = False  # the curve is there already
        best = float(checkpoint.best_model_score)
        metric = str(checkpoint.monitor)
        trainer.logger.log_hyperparams(self.hyperparameters | {f"best {metric}": best}, {tag(metric): best})
        trainer.logger.save()

    def _plot_confusion(self, trainer: Trainer, module: Any, stage: str) -> None:
        matrix = module.stage_metrics[stage].confusion.compute().cpu()  # on every process, because it synchronizes
        if _writes(trainer) and len(matrix) <= MAX_PLOTTED_CLASSES:
            figure = plot_confusion(matrix, module.classes, stage)
            trainer.logger.experiment.add_figure(tag(f"{stage}/confusion"), figure, trainer.global_step)  # type: ignore[union-attr]

    def _plot_missing_inputs(self, trainer: Trainer, module: Any, stage: str) -> None:
        if not _writes(trainer):
            return
        prefix = f"{stage}/accuracy"
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith(prefix)}
        inputs = list(module.encoders)
        figure = plot_missing_inputs(accuracy_by_inputs(metrics, stage, inputs), inputs, stage)
        if figure is not None:
            trainer.logger.experiment.add_figure(tag(f"{stage}/missing"), figure, trainer.global_step)  # type: ignore[union-attr]


def _writes(trainer: Trainer) -> bool:
    return trainer.is_global_zero and isinstance(trainer.logger, TensorBoardLogger)
