"""The configuration file of a run."""

from __future__ import annotations

import shutil
from itertools import count

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback

from fusion_pl.training.folder import run_folder


class WriteConfig(SaveConfigCallback):
    """Write ``config.yaml``. If a resumed run has another configuration, keep the old one as ``config-<n>.yaml``."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the configuration of ``validate`` and ``test``."""
        if stage != "fit":
            self._write(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the configuration of ``fit``, once nothing can refuse the run any more."""
        self._write(trainer)

    def _write(self, trainer: Trainer) -> None:
        folder = run_folder(trainer)
        if self.already_saved or not trainer.is_global_zero or folder is None:
            return
        self.already_saved = True
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / self.config_filename
        number = next(number for number in count(1) if not path.with_name(f"config-{number}.yaml").exists())
        backup = path.with_name(f"config-{number}.yaml")
        if path.is_file():
            shutil.copyfile(path, backup)
        self.parser.save(self.config, path, skip_none=False, overwrite=True, multifile=self.multifile)
        if backup.is_file() and backup.read_bytes() == path.read_bytes():
            backup.unlink()
