"""Check the training state of a checkpoint before training resumes from it."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.strategies import Strategy
from lightning.pytorch.trainer.states import TrainerFn

from fusion_pl.training import states
from fusion_pl.training.progress import check_loops
from fusion_pl.training.states import InvalidStateError, check_counters, check_number, describe, match_template
from fusion_pl.training.train_metrics import SaveTrainMetrics
from fusion_pl.types import UserError

STATE_TYPES = {"loops": dict, "optimizer_states": list, "lr_schedulers": list}


class CheckTrainingState(Callback):
    """Check the training state of a checkpoint before Lightning and torch restore it.

    The states of callbacks, loops, optimizers and schedules must have the same types, shapes and lengths as in this
    run, and finite numbers; unknown keys are removed. Files in the state of a callback are used only if they are in the
    checkpoint folder of this run. If the checkpoint was saved during a validation, the validation is repeated.
    """

    def __init__(self) -> None:
        self._checkpoint: dict[str, Any] | None = None

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Check loops and callbacks; optimizers and schedules are checked in ``on_fit_start``, when they exist."""
        checkpoint.pop("native_amp_scaling_state", None)  # written by early versions of Lightning
        if trainer.state.fn != TrainerFn.FITTING:  # validate and test use only the model weights
            for part in STATE_TYPES:
                checkpoint.pop(part, None)
            checkpoint["callbacks"] = {}
            return
        if any(part not in checkpoint for part in STATE_TYPES):
            raise UserError(
                f"fit cannot resume from {trainer.ckpt_path}: it contains only the model weights, not the training "
                "state: pass --ckpt_path last, or the path of a last.ckpt (of a run without "
                "checkpoint.save_weights_only)"
            )
        with _convert_to_user_error(trainer):
            for part, kind in STATE_TYPES.items():
                if not isinstance(checkpoint[part], kind):
                    raise InvalidStateError(f"{part} is not a {kind.__name__}")
            is_within_epoch = check_loops(trainer, checkpoint)
            check_callbacks(trainer, checkpoint)
            if not is_within_epoch:
                checkpoint["callbacks"].pop(SaveTrainMetrics().state_key, None)
            precision = trainer.precision_plugin
            name = type(precision).__qualname__
            if name in checkpoint:
                checkpoint[name] = match_template(checkpoint[name], precision.state_dict(), name)
        self._checkpoint = checkpoint
        if trainer.strategy.restore_checkpoint_after_setup:
            self.on_fit_start(trainer, pl_module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check optimizers and schedules."""
        checkpoint, self._checkpoint = self._checkpoint, None
        if checkpoint is None:
            return
        with _convert_to_user_error(trainer):
            saved = states.check_length(checkpoint["optimizer_states"], trainer.optimizers, "optimizers")
            if type(trainer.strategy).load_optimizer_state_dict is Strategy.load_optimizer_state_dict:
                checkpoint["optimizer_states"] = list(map(states.check_optimizer_state, trainer.optimizers, saved))
            schedules = [config.scheduler for config in trainer.lr_scheduler_configs]
            saved = states.check_length(checkpoint["lr_schedulers"], schedules, "schedules")
            checkpoint["lr_schedulers"] = list(map(states.check_schedule_state, schedules, saved))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End a finished epoch: its number of batches is compared with that of this run's batch size."""
        batches = trainer.fit_loop.epoch_loop.batch_progress
        is_counted = trainer.num_training_batches < math.inf  # a stream ends by its last batch alone
        if trainer.fit_loop.restarting and batches.is_last_batch and is_counted:
            batches.current.load_state_dict(
                dict.fromkeys(batches.current.state_dict(), int(trainer.num_training_batches))
            )

    def _count_steps(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Correct the steps of the curves: Lightning counts a step twice, or not at all, when it resumes."""
        if trainer.fit_loop.is_resuming:
            trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step

    on_train_batch_start = on_train_epoch_end = _count_steps


@contextmanager
def _convert_to_user_error(trainer: Trainer) -> Iterator[None]:
    try:
        yield
    except InvalidStateError as error:
        if isinstance(error, states.MismatchError):
            problem = f"it {error}: use the optimizer and the lr_scheduler of that run's config.yaml"
        else:
            problem = (
                f"its {error}; the file is damaged, or from a run with another configuration: use the config.yaml of "
                "that run"
            )
        raise UserError(
            f"fit cannot resume from {trainer.ckpt_path}: {problem}, or train from the start without --ckpt_path"
        ) from error


def check_callbacks(trainer: Trainer, checkpoint: dict[str, Any]) -> None:
    """Check the states of this run's callbacks, and remove the states of other callbacks."""
    checked: dict[str, Any] = {}
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        key = callback.state_key
        state = checkpoint["callbacks"].get(key, {})
        if not isinstance(state, dict):
            raise InvalidStateError(f"state of {key} is {describe(state)}, expected a dictionary")
        if not state:
            continue
        if isinstance(callback, ModelCheckpoint):
            state = trainer.strategy.broadcast(_check_model_checkpoint(callback, state))  # rank 0 reads the folder
        elif isinstance(callback, EarlyStopping):
            template = callback.state_dict()
            counters = {name: template[name] for name in ("wait_count", "stopped_epoch")}
            best = match_template(state, {"best_score": template["best_score"]}, key)
            state = template | check_counters(state, counters, key) | best
        else:
            states.check_callback_state(state, key)
        checked[key] = state
    checkpoint["callbacks"] = checked


def _check_model_checkpoint(callback: ModelCheckpoint, state: dict[str, Any]) -> dict[str, Any]:
    """Return the state of a ``ModelCheckpoint``, reduced to checkpoint files in the checkpoint folder of this run.

    Folders in the state are ignored, because the run may have been moved, and Lightning would delete the worst
    checkpoint at the old path.
    """
    key = type(callback).__name__
    folder = Path(str(callback.dirpath))
    files = [path for path in folder.iterdir() if path.resolve().parent == folder.resolve()] if folder.is_dir() else []
    names = {path.name for path in files if path.suffix == callback.FILE_EXTENSION}
    paths = {name: os.path.join(str(callback.dirpath), name) for name in names}

    def local_path(path: Any) -> str:
        return paths.get(os.path.basename(path), "") if isinstance(path, str) else ""

    for part in ("best_k_models", "losses"):
        if not isinstance(state.setdefault(part, {}), dict):
            raise InvalidStateError(f"{part} of {key} is {describe(state[part])}, expected a dictionary")
    scores = {
        local_path(path): torch.tensor(float(check_number(score, f"score of {key}", allow_infinite=True)))
        for path, score in state["best_k_models"].items()
        if local_path(path)
    }
    losses = {
        local_path(path): loss
        for path, loss in state["losses"].items()
        if local_path(path) in scores and isinstance(loss, float) and math.isfinite(loss)
    }
    top_k = states.rank_checkpoints(scores, losses, callback.mode)[
        : callback.save_top_k if callback.save_top_k > 0 else None
    ]
    is_full = 0 < len(top_k) == callback.save_top_k
    step = state.get("best_step")
    best_without_monitor = local_path(state.get("best_model_path")) if callback.monitor is None else ""
    return {
        "dirpath": callback.dirpath,
        "best_model_path": top_k[0] if top_k else best_without_monitor,
        "best_model_score": scores[top_k[0]] if top_k else None,
        "best_k_models": {path: scores[path] for path in top_k},
        "kth_best_model_path": top_k[-1] if is_full else "",
        "kth_value": scores[top_k[-1]] if is_full else callback.kth_value,
        "last_model_path": local_path(state.get("last_model_path")),
        "losses": {path: losses.get(path, math.nan) for path in top_k},
        "best_step": check_counters(step, 0, f"best_step of {key}") if top_k and step is not None else None,
    }
