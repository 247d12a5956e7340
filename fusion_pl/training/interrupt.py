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

from fusion_pl.training.averaging import restore_trained_weights
from fusion_pl.training.checkpoints import DiskFullError, DivergedError

STOPPING_MESSAGE = "Stopping after this step; press Ctrl-C again to stop at once without saving."


class StoppedBySignal(BaseException):
    """Raised when a signal stops the command; on a ``KeyboardInterrupt`` instead, Lightning would exit with code 1."""

    def __init__(self, signum: int, message: str = "Stopped; nothing was saved.") -> None:
        super().__init__(message)
        self.signum = signum


class StopSignals:
    """Handle Ctrl-C and SIGTERM in all processes of a training run.

    A signal raises ``StoppedBySignal``. While ``is_deferred`` is set, the first signal is only stored as
    ``received_signum``, and the second one raises.
    """

    def __init__(self) -> None:
        self.received_signum: int | None = None
        self.is_deferred = False
        self._raised = False
        self._stops = False  # since the exception was first raised, which may have been ignored
        self.pid: int | None = None  # ID of the process that handles the signals

    @contextmanager
    def handle_signals(self) -> Iterator[None]:
        """Handle the signals within the context, except signals that the process ignores, such as in the background."""
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
            self.pid = None
            if not self._stops:  # see ``_raise_later``
                sys.unraisablehook = hook

    def receive(self, signum: int, frame: FrameType | None = None) -> None:
        """Raise ``StoppedBySignal``, or store a deferred signal; after ``StoppedBySignal`` was raised, exit at once."""
        if os.getpid() != self.pid:  # a new loader worker, forked with this handler
            if signum == signal.SIGTERM:
                os._exit(1)
            return
        if self._raised:
            get_console().show_cursor()
            os._exit(exit_code(signum))
        if self.is_deferred and self.received_signum is None:
            self.received_signum = signum
            if is_rank_zero():  # in a new thread: this thread may hold the lock of the progress bar
                threading.Thread(target=get_console().print, args=[STOPPING_MESSAGE]).start()
            return
        self._raised = self._stops = True
        raise StoppedBySignal(signum, *(["Stopped at once, without saving."] if self.received_signum else []))

    def _raise_later(self, unraisable: sys.UnraisableHookArgs) -> None:
        """Send the signal again after 0.1 s if Python ignored the exception: in a fork or in ``__del__``.

        After a stop, and until the process exits, errors in ``__del__`` are not printed: the stop may leave objects,
        such as the loader's iterator, half constructed.
        """
        if isinstance(unraisable.exc_value, StoppedBySignal):
            self._raised = False
            threading.Timer(0.1, signal.raise_signal, [unraisable.exc_value.signum]).start()
        elif not self._stops:
            sys.__unraisablehook__(unraisable)


class SaveWhenStopped(Callback):
    """Save ``last.ckpt`` if training is stopped by Ctrl-C or SIGTERM, or fails in a single process.

    After the first signal the current step is finished, so that the model weights and the optimizer state belong to
    the same step. ``saved_path`` is the path of the written file. Use it within ``signals.handle_signals()``.
    """

    def __init__(self) -> None:
        self.signals = StopSignals()
        self.saved_path: Path | None = None
        self.in_validation = False

    def _install_sigterm_handler(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Replace Lightning's SIGTERM handler, whose broadcast would collide with collectives of other processes."""
        if self.signals.pid is not None:
            signal.signal(signal.SIGTERM, self.signals.receive)

    on_sanity_check_start = on_test_start = _install_sigterm_handler

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Defer signals to the end of the current step until training ends."""
        self._install_sigterm_handler(trainer, pl_module)
        self.signals.is_deferred = True

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let a validation on several processes finish: processes may have different numbers of batches."""
        self._install_sigterm_handler(trainer, pl_module)
        if self.signals.is_deferred and trainer.world_size > 1:
            trainer._signal_connector.received_sigterm = False

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note that the model gets averaged weights, if the run averages them."""
        self.in_validation = True

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note that the model has the trained weights again."""
        self.in_validation = False

    def on_validation_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Stop a validation on one process."""
        if trainer.world_size == 1:
            self._stop_if_signalled(trainer)

    def _stop_if_signalled(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """After a signal, let Lightning stop all processes after the same step, as it does after SIGTERM.

        A checkpoint has no gradients. Batches whose gradients are accumulated are therefore completed to a step.
        """
        if not self.signals.is_deferred or trainer.fit_loop._should_accumulate():
            return
        should_stop = self.signals.received_signum is not None
        if trainer.world_size > 1:
            should_stop = trainer.strategy.reduce_boolean_decision(should_stop, all=False)
        if should_stop:
            trainer._signal_connector.received_sigterm = True

    on_train_batch_end = on_validation_end = _stop_if_signalled

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop deferring signals."""
        self.signals.is_deferred = False

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save the checkpoint for ``--ckpt_path last``."""
        if self.in_validation:  # before this or another callback saves a checkpoint
            self.in_validation = False
            restore_trained_weights(trainer, pl_module)
        was_training, self.signals.is_deferred = self.signals.is_deferred, False
        if isinstance(exception, StoppedBySignal) and trainer.strategy.launcher is not None:
            trainer.strategy.launcher.kill(signal.SIGTERM)  # child processes that did not receive the signal
        if not was_training or trainer.global_step == 0:  # nothing is trained, or the checkpoint is not restored yet
            return
        if trainer.fast_dev_run:  # type: ignore[attr-defined]  # of ``--dry_run``, which counts a step
            return
        if isinstance(exception, (KeyboardInterrupt, StoppedBySignal, DiskFullError, DivergedError)):
            return
        if trainer.world_size > 1 and not isinstance(exception, SIGTERMException):
            return  # saving would wait for the failed process
        folder = next((c.dirpath for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)), None)
        if folder:
            path = Path(folder) / "last.ckpt"
            trainer.save_checkpoint(path, weights_only=False)
            self.saved_path = path


def is_rank_zero() -> bool:
    """Return whether this process has rank 0; true in a single process."""
    return getattr(rank_zero_only, "rank", 0) == 0


def exit_code(signum: int) -> int:
    """Return 128 + signum, the shell's exit code after a signal; 0 for ranks above 0 of a process group.

    Lightning kills rank 0 as soon as another process fails. Ranks above 0 therefore report no failure after they have
    joined the process group, so that rank 0 can save; before, they report it, because rank 0 waits for them.
    """
    has_joined = distributed.is_available() and distributed.is_initialized()
    return 0 if has_joined and not is_rank_zero() else 128 + signum
