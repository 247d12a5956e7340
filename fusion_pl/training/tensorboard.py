"""Write figures and hyperparameters to TensorBoard."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.figure import Figure

from fusion_pl.training.best import find_checkpoint_callback
from fusion_pl.training.calibrate import calibrate_outputs
from fusion_pl.training.decision_report import doubts_of
from fusion_pl.training.figures import plot_missing_inputs, plot_risk_coverage
from fusion_pl.training.loggers import TensorBoard, chart_name
from fusion_pl.training.stage_metrics import evaluation_stage, metrics_of_stage, scores_by_inputs


class TensorBoardFigures(Callback):
    """Plot the confusion matrix, risk and missing inputs, and write the hyperparameters with the best metric.

    Args:
        hyperparameters: configuration of the run.
    """

    def __init__(self, hyperparameters: dict[str, Any]) -> None:
        self.hyperparameters = hyperparameters

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Disable metric charts in ``validate`` and ``test``."""
        if isinstance(trainer.logger, TensorBoard):
            trainer.logger.logs_metrics = stage == "fit"

    def _plot_outcomes(self, trainer: Trainer, pl_module: Any) -> None:
        if trainer.sanity_checking:
            return
        outcomes = metrics_of_stage(trainer, pl_module).outcomes.compute().cpu()  # on every process: it synchronizes
        if trainer.testing and pl_module.outputs.update_called:
            outputs = pl_module.outputs.gather()
            wrong = ~pl_module.task.is_correct(calibrate_outputs(pl_module, outputs), outputs.target)
            figure = plot_risk_coverage(doubts_of(pl_module, outputs), wrong, evaluation_stage(trainer))
            if _should_log(trainer):
                _add_figure(trainer, "risk_coverage", figure)
        if _should_log(trainer):
            _add_figure(
                trainer, "confusion", pl_module.task.plot(outcomes, pl_module.classes, evaluation_stage(trainer))
            )

    on_validation_epoch_end = on_test_epoch_end = _plot_outcomes

    def _plot_missing_inputs(self, trainer: Trainer, pl_module: Any) -> None:
        if trainer.sanity_checking or not _should_log(trainer):
            return
        stage, inputs = evaluation_stage(trainer), list(pl_module.encoders)
        score = f"{stage}/{pl_module.task.score}"
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith(score)}
        scores = scores_by_inputs(metrics, score, inputs)
        _add_figure(trainer, "missing", plot_missing_inputs(scores, inputs, stage, pl_module.task.score))

    on_validation_end = on_test_end = _plot_missing_inputs

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the hyperparameters and the best value of the monitored metric."""
        callback = find_checkpoint_callback(trainer)
        if not isinstance(trainer.logger, TensorBoard) or callback is None or callback.best_model_score is None:
            return
        trainer.logger.logs_metrics = False  # the metric has a curve already
        best, metric = float(callback.best_model_score), str(callback.monitor)
        trainer.logger.log_hyperparams(self.hyperparameters | {f"best {metric}": best}, {chart_name(metric): best})
        trainer.logger.save()


def _should_log(trainer: Trainer) -> bool:
    return trainer.is_global_zero and isinstance(trainer.logger, TensorBoardLogger)


def _add_figure(trainer: Trainer, name: str, figure: Figure | None) -> None:
    if figure is not None:
        chart = chart_name(f"{evaluation_stage(trainer)}/{name}")
        trainer.logger.experiment.add_figure(chart, figure, trainer.global_step)  # type: ignore[union-attr]
