"""The splits file of a run."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from fusion_pl.training.folder import run_folder


class WriteSplits(Callback):
    """Write ``splits.csv`` for data with a table: row number, id and split of every row."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the splits of ``fit``, after those of a checkpoint are restored."""
        self._write(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the splits of ``validate``."""
        if trainer.state.fn == "validate":
            self._write(trainer)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the splits of ``test``."""
        self._write(trainer)

    def _write(self, trainer: Trainer) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        folder = run_folder(trainer)
        if trainer.is_global_zero and folder is not None and hasattr(data, "write_splits"):
            folder.mkdir(parents=True, exist_ok=True)
            data.write_splits(folder / "splits.csv")
