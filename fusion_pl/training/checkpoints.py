"""Write checkpoint files atomically, and read them as plain data."""

from __future__ import annotations

import errno
import os
import re
import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from lightning.fabric.plugins import CheckpointIO, TorchCheckpointIO

from fusion_pl.checkpoint import read_checkpoint
from fusion_pl.checkpoint.contents import find_non_finite_tensor
from fusion_pl.files import atomic_path
from fusion_pl.training.states import describe
from fusion_pl.types import UserError

DISK_FULL = {errno.ENOSPC, errno.EDQUOT}
SHARDED_METADATA = "meta.pt"  # file that every folder of a sharded checkpoint contains
MIN_LIGHTNING_VERSION = (2, 6)  # oldest version of Lightning with which fusion-pl has written checkpoints


class DiskFullError(UserError):
    """Raised when a disk has too little space for a checkpoint."""


class DivergedError(UserError):
    """Raised when model weights are NaN or infinite."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write checkpoints atomically: a new file replaces the old one only when it is complete.

    A URL such as ``s3://bucket/last.ckpt`` is written by Lightning, not atomically.

    Args:
        loaded_checkpoints: path -> checkpoint that is already read and checked, so that its file is not read again.
    """

    def __init__(self, loaded_checkpoints: Mapping[str, dict[str, Any]] | None = None) -> None:
        super().__init__()
        self.loaded_checkpoints = dict(loaded_checkpoints or {})

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write a checkpoint.

        Raises:
            DiskFullError: if the disk is full.
            DivergedError: if model weights are not finite; the previous checkpoint is kept.
        """
        if name := find_non_finite_tensor(checkpoint.get("state_dict") or {}):
            raise DivergedError(_diverged_message(name, checkpoint, Path(path).parent))
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with atomic_path(path) as partial, partial.open("wb") as file:
                stream = _DeferredErrorStream(file)
                torch.save(checkpoint, stream)  # type: ignore[arg-type]
                stream.finish()
            _sync_folder(path.parent)
        except OSError as error:
            if error.errno not in DISK_FULL:
                raise
            raise DiskFullError(disk_full_message(path, path.parent)) from error

    def load_checkpoint(
        self, path: str | Path, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint as plain data; the callback ``CheckTrainingState`` checks the training state later."""
        checkpoint = self.loaded_checkpoints.pop(str(path), None) or read_checkpoint(path)
        version = checkpoint.get("pytorch-lightning_version")
        match = re.match(r"(\d{1,4})\.(\d{1,4})\.", version) if isinstance(version, str) else None
        if match is None or (int(match[1]), int(match[2])) < MIN_LIGHTNING_VERSION:
            problem = f"{describe(version)} as the version of Lightning"
            raise UserError(f"{path} contains {problem}: the file is damaged, or not written by fusion-pl")
        if not isinstance(checkpoint.setdefault("callbacks", {}), dict):  # if absent, Lightning restores no callback
            raise UserError(f"{path} is damaged: its callbacks are not a dictionary of states")
        return checkpoint

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a checkpoint file or the folder of a sharded checkpoint, but no other folder."""
        if "://" in str(path):
            super().remove_checkpoint(path)
        elif (Path(path) / SHARDED_METADATA).is_file():
            shutil.rmtree(path)
        elif Path(path).is_file():
            Path(path).unlink()


def add_checkpoint_io(plugins: Any, loaded_checkpoints: Mapping[str, dict[str, Any]] | None = None) -> list[Any]:
    """Add an ``AtomicCheckpointIO`` to the Trainer's ``plugins``, unless they have a ``CheckpointIO``."""
    plugins = plugins if isinstance(plugins, list) else [plugins] * (plugins is not None)
    has_io = any(isinstance(plugin, CheckpointIO) for plugin in plugins)
    return plugins if has_io else [*plugins, AtomicCheckpointIO(loaded_checkpoints)]


class _DeferredErrorStream:
    """Write to a file, and raise write errors only in ``finish``: torch cannot close its archive after an error."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.error: OSError | None = None

    def write(self, data: bytes | memoryview) -> int:
        if self.error is None:
            try:
                self.file.write(data)
            except OSError as error:
                self.error = error
        return memoryview(data).nbytes

    def flush(self) -> None:
        """Do nothing; ``finish`` flushes."""

    def finish(self) -> None:
        """Sync the file to the disk, or raise the first error."""
        if self.error is not None:
            raise self.error
        self.file.flush()
        os.fsync(self.file.fileno())


def _sync_folder(folder: Path) -> None:
    """Sync a folder to the disk, so that a renamed file persists. Windows needs no sync and cannot open folders."""
    if os.name != "nt":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def find_mount_point(path: Path) -> Path:
    """Return the mount point of the file system that contains a path."""
    return next(folder for folder in (path.resolve(), *path.resolve().parents) if os.path.ismount(folder))


def _diverged_message(name: str, checkpoint: dict[str, Any], folder: Path) -> str:
    previous = next((path for path in (folder / "last.ckpt", folder / "best.ckpt") if path.is_file()), None)
    return (
        f"training diverged: in epoch {checkpoint.get('epoch')} (counted from 0), at step "
        f"{checkpoint.get('global_step')}, the weights {name} are NaN or infinite, so no checkpoint is written; "
        + (f"the last checkpoint with finite weights is {previous}" if previous else "there is no earlier checkpoint")
        + ": lower the learning rate (--model.optimizer.lr), or clip gradients (--trainer.gradient_clip_val 1)"
    )


def disk_full_message(path: Path, checkpoint_folder: Path) -> str:
    """Return a message for a file that could not be written: the disk, its free space, and how to continue."""
    free = shutil.disk_usage(path.parent).free
    last = checkpoint_folder / "last.ckpt"
    message = f"the disk {find_mount_point(path)} is full ({free / 1e6:.0f} MB free), so {path} could not be written"
    if not last.is_file():
        return f"{message}: free some space, or choose a folder on another disk with --checkpoint.dirpath"
    return (
        f"{message}; {last} is complete: free some space and repeat the command with --ckpt_path last, or resume on "
        f"another disk with --ckpt_path {shlex.quote(str(last))} --trainer.logger.init_args.save_dir FOLDER"
    )
