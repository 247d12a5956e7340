"""Check data, files, encoders and one batch without training."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from torch.optim import Optimizer
from torch.utils.data import Dataset

from fusion_pl.data.base import FusionData
from fusion_pl.data.manifest import REQUIRED_SPLITS
from fusion_pl.data.rows import ManifestRows
from fusion_pl.data.workers import iterate_in_workers
from fusion_pl.messages import join_lines
from fusion_pl.tables.splits import SPLITS, Split
from fusion_pl.types import Batch, UserError

MAX_LISTED = 10  # damaged files in the message


class DryRun(Callback):
    """Check all files before the model is set up, and run one training step without an update of the model.

    The step is the forward and the backward pass of a batch. Weights, buffers and random state stay as they are, and no
    gradients are left.
    Use it with ``fast_dev_run=1``, which writes neither logs nor checkpoints.
    """

    def __init__(self) -> None:
        self.num_files = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Open every file of the splits that the command uses, and raise a ``UserError`` that lists damaged files."""
        message = None
        if trainer.is_global_zero:
            data: FusionData = trainer.datamodule  # type: ignore[attr-defined]
            files = FileCheck(data, SPLITS if stage == "fit" else REQUIRED_SPLITS[stage])
            self.num_files = len(files)
            problems = files.run(data.num_loader_workers)
            if problems:
                verb = "is" if len(problems) == 1 else "are"
                damaged = join_lines(problems, MAX_LISTED)
                message = f"{len(problems)} of {len(files)} files {verb} damaged:\n  {damaged}"
        if message := trainer.strategy.broadcast(message):
            raise UserError(message)
        if hasattr(trainer.precision_plugin, "scaler"):
            trainer.precision_plugin.scaler = None  # refuses a step without gradients (16-mixed)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        """Save the random state and the buffers, such as those of batch normalization."""
        self._restore = ExitStack()
        self._restore.enter_context(isolate_rng())
        for buffer in pl_module.buffers():
            self._restore.callback(buffer.copy_, buffer.clone())

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Discard the gradients: an optimizer does not change a parameter that has none."""
        optimizer.zero_grad()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Restore the random state and the buffers."""
        self._restore.close()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Print that the check has passed."""
        if trainer.is_global_zero:
            print(f"Dry run: table, {self.num_files} files, encoders and one batch are valid; nothing was trained")


class FileCheck(Dataset[list[str]]):
    """Data set of all distinct files of the given splits; an item is the list of error messages of a file.

    Long recordings are read completely, not cropped as in training. Nothing is augmented.
    """

    def __init__(self, data: FusionData, splits: Iterable[Split]) -> None:
        self.items: list[tuple[Any, int]] = []
        paths: set[tuple[str, str]] = set()
        for split in splits:
            samples: Any = data.samples(split)
            if data.is_stream:
                continue  # would be read to its end
            if not isinstance(samples, ManifestRows):
                self.items += [(samples, index) for index in range(len(samples))]
                continue
            for column in samples.columns:
                if not column.processor.reads_files:
                    continue
                complete = replace(column, augment=None, whole=True)
                rows = replace(samples, columns=[complete], joint_augment={}, on_bad_file="raise")
                for index, cell in enumerate(column.cells):
                    path = (column.input, cell) if isinstance(cell, str) else None  # other cells are the content
                    if cell is not None and path not in paths:
                        paths |= {path} if path else set()
                        self.items.append((rows, index))

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> list[str]:
        """Return the error messages of a file; an empty list if it is valid."""
        samples, row = self.items[index]
        try:
            return list(samples[row].bad_files)
        except UserError as error:
            return [str(error)]

    def run(self, num_workers: int) -> list[str]:
        """Return the error messages of all files in table order; show a progress bar if there are many files."""
        return [problem for problems in iterate_in_workers(self, num_workers, "Checking files") for problem in problems]
