"""Stop a run with Ctrl-C or SIGTERM, and save its state."""

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
    """A signal stops the command. Not a ``KeyboardInterrupt``, for which Lightning exits with code 1."""

    def __init__(self, signum: int, message: str = "Stopped; nothing was saved.") -> None:
        super().__init__(message)
        self.signum = signum


class StopSignals:
    """Handle Ctrl-C and SIGTERM in the process that the user starts and in those that train with it.

    A signal raises ``Stopped``. While ``waits`` is set, the first one is only stored as ``received``, and the second
    one raises.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.waits = False
        self._raised = False
        self.pid: int | None = None  # of the process that handles the signals

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle the signals, except ignored ones, as in a background command."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self.pid = os.getpid()
        handlers = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
        hook, sys.unraisablehook = sys.unraisablehook, self._raise_later
        for signum, handler in handlers.items():
            if handler is not signal.SIG_IGN:
                signal.signal(signum, self.receive)
        try:
            yield
        finally:
            for signum, handler in handlers.items():
                signal.signal(signum, handler)
            self.pid, sys.unraisablehook = None, hook

    def receive(self, signum: int, frame: FrameType | None = None) -> None:
        """Handle a signal."""
        if os.getpid() != self.pid:  # a loader's worker, forked a moment ago
            if signum == signal.SIGTERM:
                os._exit(1)
            return
        if self._raised:
            get_console().show_cursor()
            os._exit(exit_code(signum))
        if self.waits and self.received is None:
            self.received = signum
            if is_rank_zero():  # in a thread, because this one may hold the lock of the progress bar
                threading.Thread(target=get_console().print, args=[STOPPING]).start()
            return
        self._raised = True
        raise Stopped(signum, *(["Stopped at once, without saving."] if self.received else []))

    def _raise_later(self, unraisable: sys.UnraisableHookArgs) -> None:
        """Raise the signal again a moment later where Python ignored it: in a fork or in ``__del__``."""
        if isinstance(unraisable.exc_value, Stopped):
            self._raised = False
            threading.Timer(0.1, signal.raise_signal, [unraisable.exc_value.signum]).start()
        else:
            sys.__unraisablehook__(unraisable)


class SaveWhenStopped(Callback):
    """Save ``last.ckpt`` if training is stopped by Ctrl-C or SIGTERM, or fails in a single process.

    After the first signal the current step is finished, so that the weights and the optimizer state are of the same
    step. ``saved`` is the path of the file after it is written. Signals are handled within ``signals.listening()``.
    """

    def __init__(self) -> None:
        self.signals = StopSignals()
        self.saved: Path | None = None

    def _take_sigterm(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Replace Lightning's handler of SIGTERM, which broadcasts while other processes are in another collective."""
        if self.signals.pid is not None:
            signal.signal(signal.SIGTERM, self.signals.receive)

    on_sanity_check_start = on_test_start = _take_sigterm

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Finish the current step after a signal, from now on."""
        self._take_sigterm(trainer, pl_module)
        self.signals.waits = True

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Finish a validation on several processes: those with fewer batches would wait for the others."""
        self._take_sigterm(trainer, pl_module)
        if self.signals.waits and trainer.world_size > 1:
            trainer._signal_connector.received_sigterm = False

    def on_validation_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Stop a validation on one process."""
        if trainer.world_size == 1:
            self._stop(trainer)

    def _stop(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Let Lightning stop between two steps, as after SIGTERM, in all processes at the same step."""
        if not self.signals.waits:
            return
        stops = self.signals.received is not None
        if trainer.world_size > 1:
            stops = trainer.strategy.reduce_boolean_decision(stops, all=False)
        if stops:
            trainer._signal_connector.received_sigterm = True

    on_train_batch_end = on_validation_end = _stop

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop at once after a signal, from now on."""
        self.signals.waits = False

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save the checkpoint for ``--ckpt_path last``."""
        was_training, self.signals.waits = self.signals.waits, False
        if isinstance(exception, Stopped) and trainer.strategy.launcher is not None:
            trainer.strategy.launcher.kill(signal.SIGTERM)  # processes without the terminal's signal
        if not was_training or trainer.global_step == 0:  # a resumed run is restored when its training starts
            return
        if isinstance(exception, (KeyboardInterrupt, Stopped, DiskFullError, DivergedError)):
            return
        if trainer.world_size > 1 and not isinstance(exception, SIGTERMException):
            return  # saving waits for all processes, of which one has failed
        folder = next((c.dirpath for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)), None)
        if folder:
            path = Path(folder) / "last.ckpt"
            trainer.save_checkpoint(path, weights_only=False)
            self.saved = path


def is_rank_zero() -> bool:
    """Return whether this process is the only one, or has rank 0."""
    return getattr(rank_zero_only, "rank", 0) == 0


def exit_code(signum: int) -> int:
    """Return 128 + signum, the shell's exit code after a signal; 0 for the other processes of a process group.

    Lightning kills process 0 as soon as another one fails. That is too early while process 0 shuts down, but right
    while it still waits for the other one to join.
    """
    joined = distributed.is_available() and distributed.is_initialized()
    return 0 if joined and not is_rank_zero() else 128 + signum
