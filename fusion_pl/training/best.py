"""Save the checkpoints of a run: ``best.ckpt`` and ``last.ckpt``."""

from __future__ import annotations

import math
import shutil
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.optim import Optimizer

from fusion_pl.training.checkpoints import DiskFullError, find_mount_point
from fusion_pl.training.states import optimizer_state_after_step, rank_checkpoints
from fusion_pl.types import UserError


class BestCheckpoint(ModelCheckpoint):
    """Save the best checkpoint and, after every epoch, the last checkpoint.

    Of checkpoints with an equal monitored metric, the best is that with the lowest ``val/loss`` (with
    ``ModelCheckpoint``, the first). ``last.ckpt`` contains the training state, from which training can be resumed, and
    is written after every epoch (with ``ModelCheckpoint``, only together with a new best checkpoint). If ``save_last``
    is set, the best checkpoints contain only the model weights, for inference, and ``every_n_train_steps`` and
    ``train_time_interval`` write ``last.ckpt`` only, because the monitored metric is computed by a validation.
    ``best_step`` is the global step of the best checkpoint. The arguments are the same as for ``ModelCheckpoint``.

    Raises:
        UserError: if several checkpoints would have the same name.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        fixed_name = self.filename is not None and "{" not in self.filename and not self._enable_version_counter
        if self.save_top_k not in {0, 1} and fixed_name:
            raise UserError(
                f"checkpoint.save_top_k is {self.save_top_k}, but all best checkpoints would have the name "
                f"{self.filename}.ckpt: give a checkpoint.filename such as best-{{epoch}}"
            )
        self.saves_last_within_epoch = self.monitor is not None and self.save_last is True
        if self.saves_last_within_epoch and (self._every_n_train_steps or self._train_time_interval):
            self._every_n_epochs = 1  # for the best checkpoint; ``ModelCheckpoint`` allows only one interval
        self.losses: dict[str, float] = {}
        self.best_step: int | None = None
        self._last_step: int | None = None

    @property
    def state_key(self) -> str:
        """State key of a ``ModelCheckpoint`` that saves every epoch, so that a resumed run may have other intervals."""
        key = self._generate_state_key(
            monitor=self.monitor, mode=self.mode, every_n_train_steps=0, every_n_epochs=1, train_time_interval=None
        )
        return key.replace(type(self).__qualname__, ModelCheckpoint.__qualname__, 1)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of ``ModelCheckpoint``, the losses of the best checkpoints, and the best step."""
        return super().state_dict() | {"losses": self.losses, "best_step": self.best_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state from a checkpoint; ``CheckTrainingState`` has already checked it."""
        super().load_state_dict(state_dict)
        self.losses = state_dict.get("losses", {})
        self.best_step = state_dict.get("best_step")

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Raise a ``DiskFullError`` if the disk has too little space for the checkpoints of the run."""
        should_check = trainer.is_global_zero and not trainer.fast_dev_run and "://" not in str(self.dirpath)  # type: ignore[attr-defined]
        message = trainer.strategy.broadcast(_disk_space_message(self, trainer) if should_check else None)
        if message:
            raise DiskFullError(message)

    def on_train_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Save the last checkpoint every ``every_n_train_steps`` steps, or after every ``train_time_interval``."""
        if not self.saves_last_within_epoch:
            super().on_train_batch_end(trainer, *args, **kwargs)
            return
        is_due = self._every_n_train_steps > 0 and trainer.global_step % self._every_n_train_steps == 0
        if self._train_time_interval is not None and self._last_time_checked is not None:
            elapsed = time.monotonic() - self._last_time_checked
            is_due = trainer.strategy.broadcast(elapsed >= self._train_time_interval.total_seconds())
        if is_due:
            self._save_last(trainer)
            self._last_time_checked = time.monotonic()
            self._last_global_step_saved, self._last_step = 0, None  # the validation or the epoch's end save again

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the best checkpoint and the last checkpoint."""
        super().on_validation_end(trainer, pl_module)
        self._save_last(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the last checkpoint after an epoch without validation."""
        super().on_train_epoch_end(trainer, pl_module)
        self._save_last(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save only the last checkpoint if ``save_on_exception`` is set; keep the best checkpoint."""
        if self._should_save_on_exception(trainer):
            self._save_last(trainer)

    def _save_last(self, trainer: Trainer) -> None:
        if self.save_last is True and trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))

    def _save_last_checkpoint(self, trainer: Trainer, monitor_candidates: dict[str, Tensor]) -> None:
        is_saved = self.save_last is True and self._last_step == trainer.global_step
        is_within_step = trainer.fit_loop._should_accumulate()  # a checkpoint has no accumulated gradients
        if is_saved or is_within_step or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        super()._save_last_checkpoint(trainer, monitor_candidates)
        self._last_step = trainer.global_step

    def check_monitor_top_k(self, trainer: Trainer, current: Tensor | None = None) -> bool:
        """Return whether this validation is in the top k, ranked by the monitored metric, then by ``val/loss``."""
        if super().check_monitor_top_k(trainer, current):
            return True
        if current is None or not self.best_k_models:
            return False
        worst = self.kth_best_model_path
        is_better = bool(current == self.best_k_models[worst]) and _val_loss(trainer) < self.losses.get(worst, math.nan)
        return trainer.strategy.reduce_boolean_decision(is_better)

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        if filepath in self.best_k_models:
            self.losses = {path: self.losses.get(path, math.nan) for path in self.best_k_models}
            self.losses[filepath] = _val_loss(trainer)
            ranked = rank_checkpoints(self.best_k_models, self.losses, self.mode)
            self.best_model_path, self.best_model_score = ranked[0], self.best_k_models[ranked[0]]
            if self.kth_best_model_path:
                self.kth_best_model_path, self.kth_value = ranked[-1], self.best_k_models[ranked[-1]]
        if filepath == self.best_model_path:
            self.best_step = trainer.global_step
        weights_only = self.save_weights_only
        self.save_weights_only = weights_only or (self.save_last is True and filepath != self.last_model_path)
        try:
            super()._save_checkpoint(trainer, filepath)
        finally:
            self.save_weights_only = weights_only


def find_checkpoint_callback(trainer: Trainer) -> BestCheckpoint | None:
    """Return the first ``BestCheckpoint`` callback of a Trainer, or None."""
    return next((callback for callback in trainer.checkpoint_callbacks if isinstance(callback, BestCheckpoint)), None)


def _val_loss(trainer: Trainer) -> float:
    return float(trainer.callback_metrics.get("val/loss", math.nan))


def _disk_space_message(callback: BestCheckpoint, trainer: Trainer) -> str | None:
    """Return a message if the disk has too little space for the checkpoints of a run, otherwise None."""
    folder = Path(str(callback.dirpath))
    weights = sum(tensor.nbytes for tensor in trainer.lightning_module.state_dict().values())
    full = weights if callback.save_weights_only else weights + sum(map(_optimizer_bytes, trainer.optimizers))
    sizes = {"best": weights if callback.save_last is True else full} if callback.save_top_k != 0 else {}
    sizes |= {"last": full} if callback.save_last else {}
    if not sizes:
        return None
    replacement = max(sizes.values())  # while a file is replaced, the old and the new file exist
    needed = replacement + sum(size for name, size in sizes.items() if not (folder / f"{name}.ckpt").is_file())
    existing = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(existing).free
    if free >= needed:
        return None
    files = ", ".join(f"{name}.ckpt {size / 1e6:.1f} MB" for name, size in sizes.items())
    return (
        f"the disk {find_mount_point(existing)}, where {folder} is, has {free / 1e6:.0f} MB free, and this run's "
        f"checkpoints need about {needed / 1e6:.1f} MB ({files}, and {replacement / 1e6:.1f} MB while one replaces "
        "another): free some space, or choose a folder on another disk with --checkpoint.dirpath"
    )


def _optimizer_bytes(optimizer: Optimizer) -> int:
    """Return the approximate size of an optimizer's state in bytes."""
    size = 0
    for group in optimizer.param_groups:
        smallest = min(group["params"], key=lambda parameter: (parameter.numel() < 2, parameter.numel()))
        state = optimizer_state_after_step(optimizer, group, smallest).values()
        copies = sum(isinstance(value, Tensor) and value.shape == smallest.shape for value in state)
        size += copies * sum(parameter.nbytes for parameter in group["params"])
    return size
