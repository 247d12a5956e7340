"""Write figures and hyperparameters to TensorBoard."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_warn
from matplotlib.figure import Figure

from fusion_pl.messages import error_reason
from fusion_pl.training.best import find_checkpoint_callback
from fusion_pl.training.calibrate import calibrate_outputs
from fusion_pl.training.checkpoints import DiskFullError
from fusion_pl.training.decision_report import doubts_of
from fusion_pl.training.figures import plot_missing_inputs, plot_risk_coverage
from fusion_pl.training.interrupt import StoppedBySignal
from fusion_pl.training.loggers import TensorBoard, chart_name
from fusion_pl.training.stage_metrics import evaluation_stage, metrics_of_stage, scores_by_inputs

IMMEDIATE = (KeyboardInterrupt, StoppedBySignal, DiskFullError, OSError)  # after these exceptions nothing is plotted
FIGURE_INTERVAL = 60.0  # seconds between drawings during training; a drawing may take longer than a short epoch


class TensorBoardFigures(Callback):
    """Plot the confusion matrix, risk and missing inputs, and write the hyperparameters with the best metric.

    ``fit`` plots a validation at most once per minute, and the last one, also if it is stopped or fails.

    Args:
        hyperparameters: configuration of the run.
    """

    def __init__(self, hyperparameters: dict[str, Any]) -> None:
        self.hyperparameters = hyperparameters
        self.figures: Callable[[], None] | None = None  # draws the latest validation of ``fit``

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Disable metric charts in ``validate`` and ``test``."""
        self.last_drawing = time.monotonic()
        if isinstance(trainer.logger, TensorBoard):
            trainer.logger.logs_metrics = stage == "fit"

    def _compute_outcomes(self, trainer: Trainer, pl_module: Any) -> None:
        if trainer.sanity_checking:
            return
        self.outcomes = metrics_of_stage(trainer, pl_module).outcomes.compute().cpu()  # on every process: synchronizes
        if trainer.testing and pl_module.outputs.update_called:
            outputs = pl_module.outputs.gather()  # on every process, too
            if not _should_log(trainer):
                return
            wrong = ~pl_module.task.is_correct(calibrate_outputs(pl_module, outputs), outputs.target)
            figure = plot_risk_coverage(doubts_of(pl_module, outputs), wrong, evaluation_stage(trainer))
            _add_figure(trainer, "test/risk_coverage", figure, trainer.global_step)

    on_validation_epoch_end = on_test_epoch_end = _compute_outcomes

    def _plot(self, trainer: Trainer, pl_module: Any) -> None:
        if trainer.sanity_checking or not _should_log(trainer):
            return
        stage, inputs, task = evaluation_stage(trainer), list(pl_module.encoders), pl_module.task
        score = f"{stage}/{task.score}"
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith(score)}
        scores = scores_by_inputs(metrics, score, inputs)
        outcomes, step = self.outcomes, trainer.global_step

        def draw() -> None:
            self.last_drawing, self.figures = time.monotonic(), None
            _add_figure(trainer, f"{stage}/confusion", task.plot(outcomes, pl_module.classes, stage), step)
            _add_figure(trainer, f"{stage}/missing", plot_missing_inputs(scores, inputs, stage, task.score), step)

        self.figures = draw
        if trainer.state.fn != "fit" or time.monotonic() - self.last_drawing >= FIGURE_INTERVAL:
            draw()

    on_validation_end = on_test_end = _plot

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Plot the last validation."""
        if self.figures is not None:
            self.figures()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Plot the last validation of a run that is stopped or fails, unless at once or because of a file."""
        if self.figures is not None and not isinstance(exception, IMMEDIATE):
            try:
                self.figures()
            except Exception as error:  # of any library; it must not replace the reason why the run fails
                rank_zero_warn(f"the last validation is not plotted: {error_reason(error)}")

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


def _add_figure(trainer: Trainer, name: str, figure: Figure | None, step: int) -> None:
    if figure is not None:
        trainer.logger.experiment.add_figure(chart_name(name), figure, step)  # type: ignore[union-attr]
