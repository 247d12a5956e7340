"""Nothing is lost when a run is stopped."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException
from rich import get_console
from torch import distributed

from fusion_pl.training.checkpoints import DiskFullError, DivergedError

STOPPING = "Stopping after this step; press Ctrl-C again to stop at once without saving."


class Stopped(BaseException):
    """The command was told to end. Not a ``KeyboardInterrupt``, which Lightning answers with exit code 1.

    Args:
        signum: the signal that told it.
        said: what the user is told.
    """

    def __init__(self, signum: int, said: str = "Stopped; nothing was saved.") -> None:
        super().__init__(said)
        self.signum = signum


class StopSignals:
    """Ctrl-C and SIGTERM, received by the process that the user started or by those that train with it.

    Each raises ``Stopped``, but for the first one while ``waits``: that is only noted, as ``received``. Whoever does
    not want to wait for the end of that stops the process with one more.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.waits = False
        self._raised = False
        self._process: int | None = None

    @property
    def active(self) -> bool:
        """Whether signals are received."""
        return self._process is not None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Receive signals, unless they are ignored, as those of a command in the background are."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self._process = os.getpid()
        before = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
        hook, sys.unraisablehook = sys.unraisablehook, self._again
        for signum, handler in before.items():
            if handler is not signal.SIG_IGN:
                signal.signal(signum, self.receive)
        try:
            yield
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)
            self._process, sys.unraisablehook = None, hook

    def receive(self, signum: int, frame: FrameType | None = None) -> None:
        """Handle a signal."""
        if os.getpid() != self._process:  # a worker that was started a moment ago
            if signum == signal.SIGTERM:
                os._exit(1)
            return
        if self._raised:
            get_console().show_cursor()
            os._exit(exit_code(signum))
        if self.waits and self.received is None:
            self.received = signum
            if is_rank_zero():  # by a thread: this one may be drawing the bar
                threading.Thread(target=get_console().print, args=[STOPPING]).start()
            return
        self._raised = True
        raise Stopped(signum, *(["Stopped at once, without saving."] if self.received else []))

    def _again(self, lost: sys.UnraisableHookArgs) -> None:
        """Raise once more, a moment later, where Python cannot: while it starts a process or deletes an object."""
        if isinstance(lost.exc_value, Stopped):
            self._raised = False
            threading.Timer(0.1, signal.raise_signal, [lost.exc_value.signum]).start()
        else:
            sys.__unraisablehook__(lost)


class SaveWhenStopped(Callback):
    """Save ``last.ckpt`` when training is stopped by Ctrl-C or SIGTERM, or fails in a single process.

    The first signal lets the step under way finish, so that weights and optimizer belong together. ``saved`` is the
    file, once there is one; signals are received while ``signals.listening()`` lasts.
    """

    def __init__(self) -> None:
        self.signals = StopSignals()
        self.saved: Path | None = None

    def _listen_alone(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take SIGTERM back from Lightning, whose handler starts a broadcast while others are in another one."""
        if self.signals.active:
            signal.signal(signal.SIGTERM, self.signals.receive)

    on_sanity_check_start = on_test_start = _listen_alone

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the step under way finish from here on."""
        self._listen_alone(trainer, pl_module)
        self.signals.waits = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop here if any process was told to."""
        self._stop(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure to the end where several processes do: those with fewer batches would wait for the others."""
        self._listen_alone(trainer, pl_module)
        if self.signals.waits and trainer.world_size > 1:
            trainer._signal_connector.received_sigterm = False

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: int
    ) -> None:
        """Stop here if this is the only process."""
        if trainer.world_size == 1:
            self._stop(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop here if any process was told to."""
        self._stop(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nothing is left to be saved."""
        self.signals.waits = False

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Write the checkpoint that ``--ckpt_path last`` finds."""
        trained, self.signals.waits = self.signals.waits, False
        if isinstance(exception, Stopped) and trainer.strategy.launcher is not None:
            trainer.strategy.launcher.kill(signal.SIGTERM)  # those that the terminal has not told
        told = isinstance(exception, SIGTERMException)
        if not trained or trainer.global_step == 0:  # a run that goes on is not complete before its training starts
            return
        if isinstance(exception, (KeyboardInterrupt, Stopped, DiskFullError, DivergedError)):
            return
        if not told and trainer.world_size > 1:  # one process that failed cannot save: saving waits for all of them
            return
        folder = next((c.dirpath for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)), None)
        if folder:
            path = Path(folder) / "last.ckpt"
            trainer.save_checkpoint(path, weights_only=False)
            self.saved = path

    def _stop(self, trainer: Trainer) -> None:
        """Let Lightning stop between two steps, as after SIGTERM: in every process at the same step, or in none."""
        if not self.signals.waits:
            return
        told = self.signals.received is not None
        if trainer.world_size > 1:
            told = trainer.strategy.reduce_boolean_decision(told, all=False)
        if told:
            trainer._signal_connector.received_sigterm = True


def is_rank_zero() -> bool:
    """Return whether this process is the only one, or the first of those that train together."""
    return getattr(rank_zero_only, "rank", 0) == 0


def exit_code(signum: int) -> int:
    """Return what a shell expects of a command that a signal ended; 0 for the processes that train with the first.

    As soon as another process fails, Lightning kills the first one: too early while it takes its leave, but just right
    while it still waits for the other to join.
    """
    joined = distributed.is_available() and distributed.is_initialized()
    return 0 if joined and not is_rank_zero() else 128 + signum
