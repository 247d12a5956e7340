"""What a run shows in the terminal."""

from __future__ import annotations

import logging
import warnings
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar

# What Lightning says of its own code, of small data, or of what we leave out on purpose.
NOISE = (
    ".*does not have many workers.*",
    ".*smaller than the logging interval.*",
    ".*`flops_per_batch`.*",
    ".*not supported by the model summary.*",
    ".*isinstance.treespec, LeafSpec.*",
    ".*dirpath has changed.*",
    ".*missing from font.*",  # of a class name in a picture: it shows a box
    ".*exists and is not empty.*",
    ".*in eval mode at the start of training.*",  # the frozen parts of encoders
    ".*ended before the epoch ended.*",  # the rest of that epoch is drawn anew: some samples come twice, some never
)
CHATTER = ("litlogger", "TPU available", "Loading `train_dataloader`")


class ProgressBar(RichProgressBar):
    """Lightning's, without the version number, which the run's folder shows already."""

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Return what stands beside the bar."""
        return {name: value for name, value in super().get_metrics(trainer, pl_module).items() if name != "v_num"}


def quiet() -> None:
    """Silence what a user can do nothing about."""
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
        lambda record: not any(said in record.getMessage() for said in CHATTER)
    )
    for message in NOISE:
        warnings.filterwarnings("ignore", message=message)
