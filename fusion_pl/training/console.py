"""Print the model summary, the progress bar and the results of a run to the terminal."""

from __future__ import annotations

import logging
import sys
import warnings
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelSummary, RichProgressBar
from lightning.pytorch.callbacks import ProgressBar as LightningProgressBar
from lightning.pytorch.callbacks.progress.rich_progress import CustomBarColumn
from lightning.pytorch.utilities.model_summary.model_summary import get_human_readable_count
from rich import get_console
from rich.console import Console
from rich.progress import ProgressColumn
from rich.table import Column, Table
from rich.text import Text
from torch import nn

from fusion_pl.messages import escape_unprintable
from fusion_pl.training.calibration_report import calibration_line

# Regular expressions of warnings that a user cannot act on.
IGNORED_WARNINGS = (
    ".*does not have many workers.*",
    ".*smaller than the logging interval.*",  # LogInterval sets the interval when training starts
    ".*`flops_per_batch`.*",
    ".*not supported by the model summary.*",
    ".*isinstance.treespec, LeafSpec.*",
    ".*dirpath has changed.*",
    ".*exists and is not empty.*",
    ".*in eval mode at the start of training.*",  # frozen encoder modules
    ".*ended before the epoch ended.*",  # a resumed epoch continues with its remaining batches
    ".*missing from font.*",  # characters of a class name in a figure
)
IGNORED_MESSAGES = (
    "litlogger",
    "TPU available",
    "Loading `train_dataloader`",
    "Running in `fast_dev_run` mode",
    "Restoring states from",  # Lightning also logs "Restored" and "Loaded"
)
MAX_BAR_WIDTH = 40
METRICS_WIDTH = 75  # width of the text beside the bar (epoch, batches, times and losses), in characters
MAX_PRINTED_CLASSES = 60


class ProgressBar(RichProgressBar):
    """Show the progress bar in one line, and remove it before results are printed.

    If the output is not a terminal, print a line per epoch instead of a bar.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Disable the bar if there is no terminal."""
        super().setup(trainer, pl_module, stage)
        console = get_console()
        self._prints_lines = trainer.is_global_zero and not (console.is_terminal or console.is_jupyter)
        if self._prints_lines:
            self.disable()

    def configure_columns(self, trainer: Trainer) -> list[ProgressColumn]:
        """Remove the speed column, and choose a bar width that fits into one line."""
        columns = super().configure_columns(trainer)[:-1]
        bar = next(column for column in columns if isinstance(column, CustomBarColumn))
        bar.bar_width = max(5, min(MAX_BAR_WIDTH, get_console().width - METRICS_WIDTH))
        for column in columns:
            column._table_column = Column(no_wrap=True)
        return list(columns)

    def _init_progress(self, trainer: Trainer) -> None:
        super()._init_progress(trainer)
        if self._metric_component is not None:
            self._metric_component._table_column = Column(no_wrap=True)

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Return the metrics next to the bar, without the version number of the run."""
        metrics = super().get_metrics(trainer, pl_module)
        return {name.removesuffix("_step"): value for name, value in metrics.items() if name != "v_num"}

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove the bar."""
        super().on_train_end(trainer, pl_module)
        self._stop_progress()

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove the bar."""
        super().on_test_end(trainer, pl_module)
        self._stop_progress()

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Remove the bar of ``validate``; print a line in ``fit`` if the bar is disabled."""
        super().on_validation_end(trainer, pl_module)
        if trainer.state.fn != "fit":
            self._stop_progress()
        elif self._prints_lines and not trainer.sanity_checking:
            logged = trainer.callback_metrics
            names = [name for name in ("val/loss", f"val/{pl_module.task.monitor}") if name in logged]
            metrics = "".join(f", {name} {float(logged[name]):.4f}" for name in names)
            print(f"Epoch {trainer.current_epoch}, step {trainer.global_step}{metrics}", flush=True)


class ModelTable(Callback):
    """Print the parameter counts of the encoders and the fusion head as a table."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Print the table before a strategy shards the parameters."""
        if stage != "fit" or not trainer.is_global_zero:
            return
        numbers = [Column(name, justify="right") for name in ("parameters", "trainable")]
        table = Table("part", "class", *numbers, box=None, pad_edge=False)
        others = [(name, part) for name, part in pl_module.named_children() if name != "encoders"]
        for name, part in [*pl_module.encoders.named_children(), *others]:  # type: ignore[union-attr]
            if any(True for _ in part.parameters()):
                table.add_row(Text(escape_unprintable(name)), type(part).__name__, *_parameter_counts(part))
        table.add_row("all", "", *_parameter_counts(pl_module), style="bold")
        get_console().print(table)


def _parameter_counts(part: nn.Module) -> tuple[str, str]:
    """Return the number of parameters and of trainable parameters, formatted."""
    total = sum(parameter.numel() for parameter in part.parameters())
    trained = sum(parameter.numel() for parameter in part.parameters() if parameter.requires_grad)
    return get_human_readable_count(total), get_human_readable_count(trained)


def console_callbacks(trainer_arguments: Any) -> list[Callback]:
    """Return the model table and the progress bar, unless the Trainer's arguments disable or replace them."""
    user_callbacks = trainer_arguments.callbacks
    user_callbacks = user_callbacks if isinstance(user_callbacks, list) else [user_callbacks]
    candidates: list[tuple[Callback, type[Callback], bool | None]] = [
        (ModelTable(), ModelSummary, trainer_arguments.enable_model_summary),
        (ProgressBar(), LightningProgressBar, trainer_arguments.enable_progress_bar),
    ]
    return [
        callback
        for callback, replaced, enabled in candidates
        if enabled is not False and not any(isinstance(user, replaced) for user in user_callbacks)
    ]


def print_results(result: dict[str, Any], path: Path | None) -> None:
    """Print the results of a run as a table, and the paths of ``metrics.json`` and of the checkpoint."""
    samples = ", ".join(f"{count} {split}" for split, count in result["samples"].items())
    console = Console()
    console.print(f"{result['command']}: {samples} samples, {result['seconds']:.0f} s", highlight=False)
    table = Table("metric", Column("value", justify="right"))
    for name, value in result["metrics"].items():
        count = result.get("samples_by_metric", {}).get(name)
        label = name if count is None else f"{name} (n = {count})"
        table.add_row(Text(escape_unprintable(label)), f"{value:.4f}")
    if len(result["per_class"]) <= MAX_PRINTED_CLASSES:
        table.add_section()
        for name, row in result["per_class"].items():
            table.add_row(Text(escape_unprintable(f"F1 of {name} (n = {row['samples']})")), f"{row['f1']:.4f}")
    console.print(table)
    line = calibration_line(result["calibration"], samples.rpartition(", ")[2])
    console.print(escape_unprintable(line), highlight=False, soft_wrap=True)
    for name, file in (("results", path), ("checkpoint", result["checkpoint"])):
        if file:  # in one line, so that it can be copied
            console.print(Text(f"{name}: {escape_unprintable(str(file))}"), soft_wrap=True)


class _StderrHandler(logging.Handler):
    """Log to the current ``sys.stderr``, which Rich prints above a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr)


def configure_logging() -> None:
    """Hide warnings and messages that a user cannot act on, and print the others above the progress bar."""
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
        lambda record: not any(message in record.getMessage() for message in IGNORED_MESSAGES)
    )
    for logger in map(logging.getLogger, ("lightning", "lightning.pytorch", "lightning.fabric")):
        logger.handlers = [
            _StderrHandler() if type(handler) is logging.StreamHandler else handler for handler in logger.handlers
        ]
    for message in IGNORED_WARNINGS:
        warnings.filterwarnings("ignore", message=message)
