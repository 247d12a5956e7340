"""What a run shows in the terminal."""

from __future__ import annotations

import logging
import sys
import warnings
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelSummary, RichProgressBar
from lightning.pytorch.callbacks import ProgressBar as LightningProgressBar
from lightning.pytorch.callbacks.progress.rich_progress import CustomBarColumn
from lightning.pytorch.utilities.model_summary.model_summary import get_human_readable_count
from rich import get_console
from rich.progress import ProgressColumn
from rich.table import Column, Table
from rich.text import Text
from torch import nn

from fusion_pl.messages import printable

# What Lightning says of its own code, of small data, or of what we leave out on purpose.
NOISE = (
    ".*does not have many workers.*",
    ".*smaller than the logging interval.*",
    ".*`flops_per_batch`.*",
    ".*not supported by the model summary.*",
    ".*isinstance.treespec, LeafSpec.*",
    ".*dirpath has changed.*",
    ".*exists and is not empty.*",
    ".*in eval mode at the start of training.*",  # the frozen parts of encoders
    ".*ended before the epoch ended.*",  # the rest of that epoch is drawn anew: some samples come twice, some never
    ".*missing from font.*",  # a class name in a picture, which shows a box instead
    ".*No (positive|negative) samples in targets.*",  # a class that validation lacks: its score is left out
)
CHATTER = (
    "litlogger",
    "TPU available",
    "Loading `train_dataloader`",
    "Restoring states from",  # "Restored" and "Loaded" follow
)
WIDEST_BAR = 40
BESIDE_BAR = 75  # columns for epoch, batches, times and losses


class ProgressBar(RichProgressBar):
    """Lightning's in one line, gone before results are printed; where there is no terminal, a line per epoch."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Draw nothing into a file."""
        super().setup(trainer, pl_module, stage)
        console = get_console()
        self._lines = trainer.is_global_zero and not (console.is_terminal or console.is_jupyter)
        if self._lines:
            self.disable()

    def configure_columns(self, trainer: Trainer) -> list[ProgressColumn]:
        """Leave out the speed, and give the bar what the rest leaves of the line."""
        columns = super().configure_columns(trainer)[:-1]
        bar = next(one for one in columns if isinstance(one, CustomBarColumn))
        bar.bar_width = max(5, min(WIDEST_BAR, get_console().width - BESIDE_BAR))
        for column in columns:
            column._table_column = Column(no_wrap=True)
        return list(columns)

    def _init_progress(self, trainer: Trainer) -> None:
        super()._init_progress(trainer)
        if self._metric_component is not None:
            self._metric_component._table_column = Column(no_wrap=True)

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Return what stands beside the bar."""
        shown = {name.removesuffix("_step"): value for name, value in super().get_metrics(trainer, pl_module).items()}
        return {name: value for name, value in shown.items() if name != "v_num"}

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the line to the results."""
        super().on_train_end(trainer, pl_module)
        self._stop_progress()

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the line to the results."""
        super().on_test_end(trainer, pl_module)
        self._stop_progress()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the line to the results, or write one where there is no bar."""
        super().on_validation_end(trainer, pl_module)
        if trainer.state.fn != "fit":
            self._stop_progress()
        elif self._lines and not trainer.sanity_checking:
            wanted = ("val/loss", "val/accuracy")
            found = {name: trainer.callback_metrics[name] for name in wanted if name in trainer.callback_metrics}
            said = "".join(f", {name} {float(value):.4f}" for name, value in found.items())
            print(f"Epoch {trainer.current_epoch}, step {trainer.global_step}{said}", flush=True)


class ModelTable(Callback):
    """Say once what is trained: the encoders, the fusion, and how many parameters of each learn."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Print the table; before a strategy distributes the parameters."""
        if stage != "fit" or not trainer.is_global_zero:
            return
        table = Table("part", "class", box=None, pad_edge=False)
        table.add_column("parameters", justify="right")
        table.add_column("trained", justify="right")
        encoders = dict(pl_module.encoders.named_children())  # type: ignore[union-attr]
        others = {name: part for name, part in pl_module.named_children() if name != "encoders"}
        for name, part in (encoders | others).items():
            if any(True for _ in part.parameters()):
                table.add_row(Text(printable(name)), type(part).__name__, *_counts(part))  # a name is no markup
        table.add_row("all", "", *_counts(pl_module), style="bold")
        get_console().print(table)


def _counts(part: nn.Module) -> tuple[str, str]:
    parameters = list(part.parameters())
    learn = sum(one.numel() for one in parameters if one.requires_grad)
    return get_human_readable_count(sum(one.numel() for one in parameters)), get_human_readable_count(learn)


def shown(trainer: Any) -> list[Callback]:
    """Return what shows a run: the table of the model and the bar, or only what the user wants of them.

    Args:
        trainer: the Trainer's arguments, as they were given.
    """
    own = trainer.callbacks if isinstance(trainer.callbacks, list) else [trainer.callbacks]
    callbacks: list[Callback] = []
    if trainer.enable_model_summary is not False and not any(isinstance(one, ModelSummary) for one in own):
        callbacks.append(ModelTable())
    if trainer.enable_progress_bar is not False and not any(isinstance(one, LightningProgressBar) for one in own):
        callbacks.append(ProgressBar())
    return callbacks


class _AboveBar(logging.Handler):
    """Write to what is the error output now: while a bar is drawn, that puts a message above it."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr)


def quiet() -> None:
    """Silence what a user can do nothing about, and keep messages out of the bar."""
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
        lambda record: not any(said in record.getMessage() for said in CHATTER)
    )
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logger = logging.getLogger(name)
        logger.handlers = [_AboveBar() if type(one) is logging.StreamHandler else one for one in logger.handlers]
    for message in NOISE:
        warnings.filterwarnings("ignore", message=message)
