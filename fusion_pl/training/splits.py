"""What a run leaves behind of its splits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class WriteSplits(Callback):
    """Write ``splits.csv`` beside ``config.yaml`` where the data has a table: row number, id and split."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write them when training starts: those of a checkpoint have been restored by then."""
        self._write(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write them when ``validate`` starts."""
        if trainer.state.fn == "validate":
            self._write(trainer)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write them when ``test`` starts."""
        self._write(trainer)

    def _write(self, trainer: Trainer) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        folder = Path(trainer.log_dir or trainer.default_root_dir)  # asked by every process: the first tells the others
        if trainer.is_global_zero and hasattr(data, "write_splits"):
            folder.mkdir(parents=True, exist_ok=True)
            data.write_splits(folder / "splits.csv")
