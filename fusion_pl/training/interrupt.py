"""Nothing is lost when a run is stopped."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from types import FrameType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import SIGTERMException


class SaveWhenStopped(Callback):
    """Save ``last.ckpt`` when training is stopped by Ctrl-C or SIGTERM, or fails in a single process.

    The first Ctrl-C lets the step under way finish, so that weights and optimizer belong together; the second stops at
    once. ``saved`` is the file, once there is one, and ``signal`` what stopped the run.
    """

    def __init__(self) -> None:
        self.saved: Path | None = None
        self.signal: int | None = None
        self._first: Any = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Turn Ctrl-C into the termination signal, which Lightning obeys between two steps."""
        self._first = signal.getsignal(signal.SIGINT)

        def interrupt(signum: int, frame: FrameType | None) -> None:
            signal.signal(signal.SIGINT, self._first)
            if trainer.is_global_zero:  # the other processes are told by the first
                rank_zero_info("Stopping after this step; press Ctrl-C again to stop at once without saving.")
                self.signal = signum
                os.kill(os.getpid(), signal.SIGTERM)

        signal.signal(signal.SIGINT, interrupt)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give Ctrl-C back to whoever had it before."""
        if self._first is not None:
            signal.signal(signal.SIGINT, self._first)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Write the checkpoint that ``--ckpt_path last`` finds."""
        stopped = isinstance(exception, SIGTERMException)
        if stopped and self.signal is None:
            self.signal = signal.SIGTERM
        if trainer.state.fn != "fit" or trainer.global_step == 0 or isinstance(exception, KeyboardInterrupt):
            return
        if not stopped and trainer.world_size > 1:  # one process that failed cannot save: saving waits for all of them
            return
        folder = next((c.dirpath for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)), None)
        if folder:
            path = Path(folder) / "last.ckpt"
            trainer.save_checkpoint(path)
            self.saved = path
