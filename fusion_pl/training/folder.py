"""The folder in which a run leaves what it found."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import Trainer


def run_folder(trainer: Trainer) -> Path | None:
    """Return the folder that a run has for itself, to be asked by every process, since the first tells the others.

    None where there is no such folder, without a logger and in a dry run: what was written to the current folder then
    would replace the user's own files.
    """
    logger = trainer.logger
    if logger is None or trainer.fast_dev_run:  # type: ignore[attr-defined]
        return None
    folder = Path(logger.log_dir or "")
    if logger.log_dir is None:  # a logger of some service: where Lightning keeps the checkpoints of the run
        version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
        folder = Path(logger.save_dir or trainer.default_root_dir, str(logger.name), version)
    return Path(trainer.strategy.broadcast(str(folder)))
