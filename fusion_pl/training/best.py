"""Which checkpoints a run keeps: the best, and that of the last epoch."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from fusion_pl.training.checkpoints import NoRoomError, mount_point
from fusion_pl.training.states import rank_checkpoints, state_after_step
from fusion_pl.types import UserError


class BestCheckpoint(ModelCheckpoint):
    """Keep the best checkpoint, of equally good ones that of the lowest ``val/loss``; and the last of every epoch.

    ``last.ckpt`` has the state of training, to resume from. With ``save_last`` the best checkpoints have the weights
    alone, for inference. Lightning's own class keeps the first of equally good ones, and writes ``last.ckpt`` only in a
    step in which it wrote a best one too. ``best_step`` is the global step of the best checkpoint.

    Raises:
        UserError: where several checkpoints would have the same name.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        one_name = self.filename is not None and "{" not in self.filename and not self._enable_version_counter
        if self.save_top_k not in {0, 1} and one_name:
            raise UserError(
                f"checkpoint.save_top_k is {self.save_top_k}, but all of them would be named {self.filename}.ckpt: "
                "give a checkpoint.filename such as best-{epoch}"
            )
        self.losses: dict[str, float] = {}
        self.best_step: int | None = None
        self._last_step: int | None = None

    @property
    def state_key(self) -> str:
        """The same as that of Lightning's class, so that checkpoints of before are read."""
        return super().state_key.replace(type(self).__qualname__, ModelCheckpoint.__qualname__, 1)

    def state_dict(self) -> dict[str, Any]:
        """Carry the losses of the best checkpoints, too."""
        return super().state_dict() | {"losses": self.losses, "best_step": self.best_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a state that ``CheckResumed`` found sound."""
        super().load_state_dict(state_dict)
        self.losses = state_dict.get("losses", {})
        self.best_step = state_dict.get("best_step")

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ask for the room before training starts.

        Raises:
            NoRoomError: where the disk cannot hold the run's checkpoints and the one that is being written.
        """
        folder = str(self.dirpath)
        asked = trainer.is_global_zero and not _dry(trainer) and "://" not in folder
        said = _no_room(self, trainer) if asked else None
        if said := trainer.strategy.broadcast(said):
            raise NoRoomError(said)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the best, and the last."""
        super().on_validation_end(trainer, pl_module)
        self._write_last(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the last where an epoch ends without a validation."""
        super().on_train_epoch_end(trainer, pl_module)
        self._write_last(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Write the last where the user asks for it; Lightning's own would also replace the best."""
        if self._should_save_on_exception(trainer):
            self._write_last(trainer)

    def _write_last(self, trainer: Trainer) -> None:
        fitting = trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking and not _dry(trainer)
        if self.save_last is True and fitting:
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))

    def _save_last_checkpoint(self, trainer: Trainer, monitor_candidates: dict[str, Tensor]) -> None:
        if _dry(trainer) or (self.save_last is True and self._last_step == trainer.global_step):
            return
        super()._save_last_checkpoint(trainer, monitor_candidates)
        self._last_step = trainer.global_step

    def check_monitor_top_k(self, trainer: Trainer, current: Tensor | None = None) -> bool:
        """Return whether this validation is among the best: by the monitored metric, then by the loss."""
        if super().check_monitor_top_k(trainer, current):
            return True
        if current is None or not self.best_k_models:
            return False
        worst = self.kth_best_model_path
        tied = bool(current == self.best_k_models[worst]) and _loss(trainer) < self.losses.get(worst, math.nan)
        return trainer.strategy.reduce_boolean_decision(tied)

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        if filepath in self.best_k_models:
            self.losses = {path: self.losses.get(path, math.nan) for path in self.best_k_models}
            self.losses[filepath] = _loss(trainer)
            self._rank()
        if filepath == self.best_model_path:
            self.best_step = trainer.global_step
        weights_only = self.save_weights_only
        self.save_weights_only = weights_only or (self.save_last is True and filepath != self.last_model_path)
        try:
            super()._save_checkpoint(trainer, filepath)
        finally:
            self.save_weights_only = weights_only

    def _rank(self) -> None:
        """Let the loss order what Lightning's own leaves in the order of time."""
        order = rank_checkpoints(self.best_k_models, self.losses, self.mode)
        self.best_model_path, self.best_model_score = order[0], self.best_k_models[order[0]]
        if self.kth_best_model_path:
            self.kth_best_model_path, self.kth_value = order[-1], self.best_k_models[order[-1]]


def _dry(trainer: Trainer) -> bool:
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]


def _loss(trainer: Trainer) -> float:
    return float(trainer.callback_metrics.get("val/loss", math.nan))


def _no_room(callback: BestCheckpoint, trainer: Trainer) -> str | None:
    """Return a message where the disk has no room for a run's checkpoints."""
    folder = Path(str(callback.dirpath))
    weights, full = weights_bytes(trainer), checkpoint_bytes(trainer)
    sizes = {"best": weights if callback.save_last is True else full} if callback.save_top_k != 0 else {}
    sizes |= {"last": full} if callback.save_last else {}
    if callback.save_weights_only:
        sizes = dict.fromkeys(sizes, weights)
    if not sizes:
        return None
    replacement = max(sizes.values())  # the new file is complete before the old one is removed
    needed = replacement + sum(size for name, size in sizes.items() if not (folder / f"{name}.ckpt").is_file())
    existing = next(one for one in (folder, *folder.absolute().parents) if one.is_dir())
    free = shutil.disk_usage(existing).free
    if free >= needed:
        return None
    files = ", ".join(f"{name}.ckpt {size / 1e6:.1f} MB" for name, size in sizes.items())
    return (
        f"the disk {mount_point(existing)}, where {folder} is, has {free / 1e6:.0f} MB free, and this run's "
        f"checkpoints need about {needed / 1e6:.1f} MB ({files}, and {replacement / 1e6:.1f} MB while one replaces another): make "
        "room there, or choose a folder on another disk with --checkpoint.dirpath"
    )


def weights_bytes(trainer: Trainer) -> int:
    """Return the size of the weights of a run's model."""
    return sum(tensor.nbytes for tensor in trainer.lightning_module.state_dict().values())


def checkpoint_bytes(trainer: Trainer) -> int:
    """Return about how large a checkpoint is: the weights, and what the optimizer will keep for each of them."""
    size = weights_bytes(trainer)
    for optimizer in trainer.optimizers:
        for group in optimizer.param_groups:
            one = min(group["params"], key=lambda parameter: (parameter.numel() < 2, parameter.numel()))
            kept = state_after_step(optimizer, group, one).values()
            copies = sum(isinstance(value, Tensor) and value.shape == one.shape for value in kept)
            size += copies * sum(parameter.nbytes for parameter in group["params"])
    return size
