"""The folder of a run."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import Trainer


def run_folder(trainer: Trainer) -> Path | None:
    """Return the folder of a run. Every process has to call it, because the first one broadcasts the path.

    None without a logger and with ``fast_dev_run``: files in the current folder could replace the user's own.
    """
    logger = trainer.logger
    if logger is None or trainer.fast_dev_run:  # type: ignore[attr-defined]
        return None
    folder = Path(logger.log_dir or "")
    if logger.log_dir is None:  # the logger of an online service: where Lightning puts the checkpoints
        version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
        folder = Path(logger.save_dir or trainer.default_root_dir, str(logger.name), version)
    return Path(trainer.strategy.broadcast(str(folder)))
