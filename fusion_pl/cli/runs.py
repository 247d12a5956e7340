"""Run folders and the checkpoints in them."""

from __future__ import annotations

import shlex
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from jsonargparse import Namespace
from lightning.pytorch import Trainer

from fusion_pl.checkpoint.archive import refuse_shards
from fusion_pl.files import PARTIAL
from fusion_pl.messages import join_names
from fusion_pl.training.best import BestCheckpoint
from fusion_pl.training.checkpoints import DISK_FULL, DiskFullError, disk_full_message
from fusion_pl.types import MissingFileError, UserError

LOGGER: dict[str, Any] = {
    "class_path": "fusion_pl.training.TensorBoard",
    "init_args": {"save_dir": "lightning_logs", "name": "", "default_hp_metric": False},
}
EVENT_FILES = "events.out.tfevents.*"  # written by TensorBoard


def find_checkpoint(name: str, runs: Path, folder: str | None = None) -> str:
    """Return the path of the checkpoint that ``--ckpt_path`` selects.

    Args:
        name: path of a checkpoint; or ``best`` or ``last`` for ``best.ckpt`` or ``last.ckpt`` of the newest run.
        runs: folder of the runs, see ``runs_folder``.
        folder: common checkpoint folder of all runs; None if each run has its own.

    Raises:
        MissingFileError: if the file does not exist; an older run never replaces a newest run without checkpoint.
        UserError: if the checkpoint is a folder.
    """
    if name not in {"best", "last"}:
        refuse_shards(name)
        if not Path(name).is_file():
            raise MissingFileError(
                f"there is no checkpoint {name} (looked for {Path(name).absolute()}): check --ckpt_path, or give "
                "best or last for that of the newest run"
            )
        return name
    # Sorted by version number, because copying files changes their modification times.
    runs_by_number = sorted(runs.glob("version_*/checkpoints"), key=lambda path: _run_number(path.parent))
    folders = runs_by_number if folder is None else [Path(folder)]
    files = [path / f"{name}.ckpt" for path in folders]
    if files and files[-1].exists():
        return find_checkpoint(str(files[-1]), runs)
    if others := checkpoints_in(folders[-1]) if folders else []:
        raise MissingFileError(
            f"{folders[-1]} has no {name}.ckpt, but {join_names(path.name for path in others)}: give one of them, "
            f"such as --ckpt_path {shlex.quote(str(others[0]))}; the run's metrics.json names its best as checkpoint"
        )
    if older := [file for file in files if file.is_file()]:
        raise MissingFileError(
            f"the newest run, {files[-1].parent.parent}, has no {name}.ckpt: it was stopped before it wrote one, or "
            f"has not validated yet; give --ckpt_path {shlex.quote(str(older[-1]))} for the run before it"
        )
    where = folder if folder is not None else f"{runs}/version_*/checkpoints"
    named = sorted({path.parts[-4] for path in runs.glob(f"*/version_*/checkpoints/{name}.ckpt")})
    hint = f", or name a run with --trainer.logger.name {named[-1]}" if named and folder is None else ""
    raise MissingFileError(
        f"there is no {name}.ckpt below {where}: train first with fusion-pl fit, or give --ckpt_path a file{hint}"
    )


def checkpoints_in(folder: Path) -> list[Path]:
    """Return the checkpoint files of a folder, sorted by name."""
    return sorted(path for path in folder.glob("*.ckpt") if path.is_file())


def _run_number(run: Path) -> int:
    number = run.name.removeprefix("version_")
    return int(number) if number.isdecimal() else -1


def runs_folder(logger: Namespace | bool | None) -> Path:
    """Return the folder that contains the ``version_<n>`` folder of every run."""
    args = logger.init_args if isinstance(logger, Namespace) else LOGGER["init_args"]
    return Path(args["save_dir"]) / (args.get("name") or "")


def checkpoints_folder(config: Namespace) -> str | None:
    """Return the common checkpoint folder of all runs of a configuration, or None if each run has its own."""
    folder: str | None = config.checkpoint.dirpath
    if folder is None and config.trainer.logger is False:
        folder = str(Path(config.trainer.default_root_dir or "", "checkpoints"))
    return folder


def run_version(checkpoint: str | None, logger: Namespace | bool | None) -> str | None:
    """Return the ``version_<n>`` folder name of a checkpoint's run; None if it is outside the runs folder."""
    run = Path(checkpoint).resolve().parent.parent if checkpoint else Path()
    return run.name if checkpoint and run.parent == runs_folder(logger).resolve() else None


@contextmanager
def training_folder(trainer: Trainer, resumes: bool) -> Iterator[None]:
    """Lock the folders of a run for this process, and remove new files if the run fails before its first step.

    Raises:
        UserError: if another process trains in the folder, or a new run would replace existing checkpoints.
    """
    if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
        yield
        return
    new = _create_run_folder(trainer.logger)
    run = Path(trainer.log_dir or trainer.default_root_dir)
    events = set(run.glob(EVENT_FILES))
    chosen = [callback.dirpath for callback in trainer.checkpoint_callbacks if isinstance(callback, BestCheckpoint)]
    folder = Path(next(iter(chosen), None) or run / "checkpoints")
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _acquire(lock, folder.parent, resumes)
        if not resumes and (names := [path.name for path in checkpoints_in(folder)]):
            raise UserError(
                f"{folder} holds checkpoints of another run ({join_names(names)}), which a new one "
                "would replace: choose another folder with --checkpoint.dirpath, or give --ckpt_path last to resume it"
            )
        for partial in folder.glob(f"*{PARTIAL}"):  # left by a process that was killed during a write
            partial.unlink()
        with _report_full_disk(folder):
            yield
    except BaseException:
        if trainer.global_step == 0:  # such as after a checkpoint that was refused
            if new is not None and not any(new.rglob("*.ckpt")):
                _remove_run(new)
            for empty in set(run.glob(EVENT_FILES)) - events:  # Lightning creates it before it reads the checkpoint
                empty.unlink(missing_ok=True)
        raise
    finally:
        lock.release()


def _acquire(lock: FileLock, run: Path, resumes: bool) -> None:
    """Acquire the lock of a run, or raise a ``UserError`` if another process holds it."""
    try:
        lock.acquire()
    except Timeout:
        advice = "leave out --ckpt_path to start a new run" if resumes else "choose another --checkpoint.dirpath"
        raise UserError(f"another process is training in {run}: wait until it has finished, or {advice}") from None
    except NotImplementedError:  # a file system without locks
        pass


@contextmanager
def evaluation_folder(trainer: Trainer) -> Iterator[None]:
    """Create the run folder of ``validate`` or ``test``, and remove it if the run fails or is stopped."""
    writes = trainer.is_global_zero and not trainer.fast_dev_run  # type: ignore[attr-defined]
    new = _create_run_folder(trainer.logger) if writes else None
    try:
        yield
    except BaseException:
        if new is not None:
            _remove_run(new)
        raise


def _remove_run(run: Path) -> None:
    shutil.rmtree(run, ignore_errors=True)
    with suppress(OSError):  # the parent contains other runs
        run.parent.rmdir()


@contextmanager
def _report_full_disk(folder: Path) -> Iterator[None]:
    """Report a full disk in one sentence, and silence the same error in TensorBoard's writer thread."""
    before = threading.excepthook

    def hook(arguments: Any) -> None:
        if getattr(arguments.exc_value, "errno", None) not in DISK_FULL:
            before(arguments)

    threading.excepthook = hook
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        raise DiskFullError(disk_full_message(folder.parent, folder)) from error
    finally:
        threading.excepthook = before


def _create_run_folder(logger: Any) -> Path | None:
    """Create the folder of a new run; use the next number if another process has just created it."""
    if getattr(logger, "_version", "") is not None:  # the user chose a version, or the run is resumed
        return None
    while True:
        folder = Path(logger.log_dir)
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            logger._version = logger.version + 1
        except NotADirectoryError as error:
            raise UserError(f"{folder.parent} is a file, but runs need a folder: choose another save_dir") from error
        else:
            return folder
