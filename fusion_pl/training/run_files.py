"""Write ``config.yaml`` and ``splits.csv`` to the folder of a run."""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from itertools import count
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback


def run_folder(trainer: Trainer) -> Path | None:
    """Return the folder of a run. Every process must call this function, because rank 0 broadcasts the path.

    Return None without a logger or with ``fast_dev_run``: files in the current folder could replace the user's files.
    """
    logger = trainer.logger
    if logger is None or trainer.fast_dev_run:  # type: ignore[attr-defined]
        return None
    folder = Path(logger.log_dir or "")
    if logger.log_dir is None:  # an online service: use the folder of Lightning's checkpoints
        version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
        folder = Path(logger.save_dir or trainer.default_root_dir, str(logger.name), version)
    return Path(trainer.strategy.broadcast(str(folder)))


class _RunFileCallback(Callback, ABC):
    """Base class: write a file to the folder of a run; in ``fit`` only after all checks of the run have passed."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the file in ``validate`` and ``test``."""
        if stage != "fit":
            self._write_on_rank_zero(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the file in ``fit``."""
        self._write_on_rank_zero(trainer)

    def _write_on_rank_zero(self, trainer: Trainer) -> None:
        folder = run_folder(trainer)
        if trainer.is_global_zero and folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            self._write(trainer, folder)

    @abstractmethod
    def _write(self, trainer: Trainer, folder: Path) -> None: ...


class WriteConfig(_RunFileCallback, SaveConfigCallback):
    """Write ``config.yaml``. If a resumed run changes it, keep the old file as ``config-<n>.yaml``."""

    def _write(self, trainer: Trainer, folder: Path) -> None:
        path = folder / self.config_filename
        backup = next(file for number in count(1) if not (file := folder / f"config-{number}.yaml").exists())
        if path.is_file():
            shutil.copyfile(path, backup)
        options = {"skip_unset": False, "overwrite": True, "multifile": self.multifile}
        self.parser.save(self.config, path, skip_validation=True, **options)  # parsing has validated it
        if backup.is_file() and backup.read_bytes() == path.read_bytes():
            backup.unlink()


class WriteSplits(_RunFileCallback):
    """Write the row number, sample id and split of each row of a data table to ``splits.csv``."""

    def _write(self, trainer: Trainer, folder: Path) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]
        if hasattr(data, "write_splits"):
            data.write_splits(folder / "splits.csv")
