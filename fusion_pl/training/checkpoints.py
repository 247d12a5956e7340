"""Checkpoint files, written atomically."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from lightning.fabric.plugins import CheckpointIO, TorchCheckpointIO

from fusion_pl.checkpoint import read_checkpoint
from fusion_pl.checkpoint.contents import find_non_finite
from fusion_pl.files import atomic_path
from fusion_pl.training.states import describe
from fusion_pl.types import UserError

DISK_FULL = {errno.ENOSPC, errno.EDQUOT}
SHARDED = "meta.pt"  # the file of a sharded checkpoint that describes the others
OLDEST = (2, 6)  # Lightning's versions that fusion-pl has been used with


class NoRoomError(UserError):
    """A checkpoint does not fit on its disk."""


class DivergedError(UserError):
    """The weights are infinite or NaN, so that nothing can be read from them or trained on."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write a checkpoint beside its name and rename it, so that the one before is kept until the new one is complete.

    Whatever kills the process or fills the disk, the name holds a complete checkpoint or none. Addresses such as
    ``s3://`` are left to Lightning.

    Args:
        loaded: path -> a checkpoint that was read and checked before; it is not read again.
    """

    def __init__(self, loaded: Mapping[str, dict[str, Any]] | None = None) -> None:
        super().__init__()
        self.loaded = dict(loaded or {})

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write a checkpoint.

        Raises:
            NoRoomError: where the disk is full.
            DivergedError: for weights that are not finite; the checkpoint of before stays.
        """
        if name := find_non_finite(checkpoint.get("state_dict") or {}):
            raise DivergedError(_diverged(name, checkpoint, Path(path).parent))
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with atomic_path(path) as partial, partial.open("wb") as file:
                stream = _Stream(file)
                torch.save(checkpoint, stream)  # type: ignore[arg-type]
                stream.finish()
            _sync_folder(path.parent)
        except OSError as error:
            if error.errno not in DISK_FULL:
                raise
            raise NoRoomError(disk_full_message(path, path.parent)) from error

    def load_checkpoint(
        self, path: str | Path, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint as plain data, whatever the arguments; ``CheckResumed`` looks into what training adds.

        Raises:
            UserError: where it is damaged, or not one that fusion-pl wrote.
        """
        checkpoint = self.loaded.pop(str(path), None) or read_checkpoint(path)
        version = checkpoint.get("pytorch-lightning_version")
        found = re.match(r"(\d{1,4})\.(\d{1,4})\.", version) if isinstance(version, str) else None
        if found is None or (int(found[1]), int(found[2])) < OLDEST:
            raise UserError(
                f"{path} names {describe(version)} as its version of Lightning: it is damaged, or not one of ours"
            )
        if not isinstance(checkpoint.setdefault("callbacks", {}), dict):  # without any, CheckResumed is not asked
            raise UserError(f"{path} is damaged: its callbacks are no table of states")
        return checkpoint

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a checkpoint and nothing else: a file, or the folder of a sharded one."""
        if "://" in str(path):
            super().remove_checkpoint(path)
        elif (Path(path) / SHARDED).is_file():
            shutil.rmtree(path)
        elif Path(path).is_file():
            Path(path).unlink()


def add_checkpoint_io(plugins: Any, loaded: Mapping[str, dict[str, Any]] | None = None) -> list[Any]:
    """Add our way to write checkpoints to the user's plugins, unless there is one among them."""
    given = plugins if isinstance(plugins, list) else [plugins] * (plugins is not None)
    return given if any(isinstance(one, CheckpointIO) for one in given) else [*given, AtomicCheckpointIO(loaded)]


class _Stream:
    """Write to a file and remember that it failed: torch must not see it, because it then cannot end its archive."""

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
        """Leave it to ``finish``."""

    def finish(self) -> None:
        """Bring everything to the disk, or raise what went wrong."""
        if self.error is not None:
            raise self.error
        self.file.flush()
        os.fsync(self.file.fileno())


def _sync_folder(folder: Path) -> None:
    """Bring a renamed file's name to the disk; Windows does that by itself, and cannot open folders."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def mount_point(path: Path) -> Path:
    """Return where the disk of a file is mounted."""
    path = path.resolve()
    return next(folder for folder in (path, *path.parents) if os.path.ismount(folder))


def _kept(checkpoints: Path) -> Path | None:
    """Return the checkpoint to go on from."""
    return next((one for one in (checkpoints / "last.ckpt", checkpoints / "best.ckpt") if one.is_file()), None)


def _diverged(name: str, checkpoint: dict[str, Any], checkpoints: Path) -> str:
    kept = _kept(checkpoints)
    return (
        f"training diverged: in epoch {checkpoint.get('epoch')} (counted from 0), at step "
        f"{checkpoint.get('global_step')}, the weights {name} are NaN or infinite, so no checkpoint is written; "
        + (f"the last finite one is {kept}" if kept else "there is none from before")
        + ": lower the learning rate (--model.optimizer.lr), or clip gradients (--trainer.gradient_clip_val 1)"
    )


def disk_full_message(path: Path, checkpoints: Path) -> str:
    """Return what to say where a disk is full: which one, what is left, and how to go on.

    Args:
        path: what could not be written.
        checkpoints: the folder of the run's checkpoints.
    """
    free = shutil.disk_usage(path.parent).free
    kept = checkpoints / "last.ckpt"
    said = f"the disk {mount_point(path)} is full ({free / 1e6:.0f} MB free), so {path} could not be written"
    if not kept.is_file():
        return f"{said}: make room there, or choose a folder on another disk with --checkpoint.dirpath"
    return (
        f"{said}; {kept} is complete: make room and repeat the command with --ckpt_path last, or go on on another disk "
        f"with --ckpt_path {kept} --trainer.logger.init_args.save_dir FOLDER"
    )
