"""What training takes from a checkpoint to go on: only what has been checked."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.strategies import Strategy
from lightning.pytorch.trainer.states import TrainerFn

from fusion_pl.training.states import (
    InvalidStateError,
    MismatchError,
    check_counters,
    check_length,
    check_number,
    check_optimizer_state,
    check_plain,
    check_schedule_state,
    describe,
    match_template,
    rank_checkpoints,
)
from fusion_pl.types import UserError

PARTS = {"loops": dict, "optimizer_states": list, "lr_schedulers": list}
TRAINED, VALIDATED = "epoch_loop.batch_progress", "epoch_loop.val_loop.batch_progress"


class CheckTrainingState(Callback):
    """Hold a checkpoint's training state against the run, before Lightning and torch take it up.

    Callbacks, loops, optimizers and schedules get known keys only, with the types, shapes and lengths that this run
    has, and finite numbers. Of the files that a callback names, only those that lie in the run's own folder are taken.
    Where training had finished an epoch but not its validation, the validation is repeated.
    """

    def __init__(self) -> None:
        self._states: dict[str, Any] | None = None

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Check all but optimizers and schedules, which most strategies make later.

        Raises:
            UserError: for a checkpoint that training cannot go on from.
        """
        checkpoint.pop("native_amp_scaling_state", None)  # what Lightning once read, and we never wrote
        if trainer.state.fn != TrainerFn.FITTING:  # needs weights only
            for part in PARTS:
                checkpoint.pop(part, None)
            checkpoint["callbacks"] = {}
            return
        if any(part not in checkpoint for part in PARTS):
            raise UserError(
                f"fit cannot resume from {trainer.ckpt_path}: it has the weights alone, without the state of training; "
                "give --ckpt_path last, or the last.ckpt beside it (of a run without checkpoint.save_weights_only)"
            )
        try:
            for part, kind in PARTS.items():
                if not isinstance(checkpoint[part], kind):
                    raise InvalidStateError(f"{part} is no {kind.__name__}")
            check_loops(trainer, checkpoint)
            check_callbacks(trainer, checkpoint)
            precision = trainer.precision_plugin
            name = type(precision).__qualname__
            if name in checkpoint:
                checkpoint[name] = match_template(checkpoint[name], precision.state_dict(), name)
        except InvalidStateError as error:
            raise _refusal(trainer, error) from error
        self._states = checkpoint
        if trainer.strategy.restore_checkpoint_after_setup:
            self.on_fit_start(trainer, pl_module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the states of optimizers and schedules.

        Raises:
            UserError: for states of other parameters, another optimizer or another schedule.
        """
        states, self._states = self._states, None
        if states is None:
            return
        try:
            saved = check_length(states["optimizer_states"], trainer.optimizers, "optimizers")
            if type(trainer.strategy).load_optimizer_state_dict is Strategy.load_optimizer_state_dict:
                states["optimizer_states"] = [
                    check_optimizer_state(optimizer, state)
                    for optimizer, state in zip(trainer.optimizers, saved, strict=True)
                ]
            configs = trainer.lr_scheduler_configs
            schedules = check_length(states["lr_schedulers"], configs, "schedules")
            states["lr_schedulers"] = [
                check_schedule_state(config.scheduler, state) for config, state in zip(configs, schedules, strict=True)
            ]
        except InvalidStateError as error:
            raise _refusal(trainer, error) from error


def _refusal(trainer: Trainer, error: InvalidStateError) -> UserError:
    if isinstance(error, MismatchError):
        return UserError(
            f"fit cannot go on from {trainer.ckpt_path}: it {error}: give the optimizer and the lr_scheduler of that "
            "run's config.yaml, or start anew without --ckpt_path"
        )
    return UserError(
        f"fit cannot go on from {trainer.ckpt_path}: its {error}; it is damaged, or from a run with another "
        "configuration: give that run's config.yaml, or start anew without --ckpt_path"
    )


def check_loops(trainer: Trainer, checkpoint: dict[str, Any]) -> None:
    """Keep of the loops' states what counts this run's epochs and batches; repeat a validation that was cut off."""
    loops = check_counters(checkpoint["loops"].get("fit_loop"), trainer.fit_loop.state_dict(), "fit_loop")
    step = check_counters(checkpoint.get("global_step"), 0, "global_step")
    trained, validated, epochs = loops[TRAINED], loops[VALIDATED], loops["epoch_progress"]["current"]
    whole = trained["is_last_batch"] and trained["current"]["ready"] == trained["current"]["completed"]
    within = whole and epochs["processed"] < epochs["ready"]  # saved before Lightning counted the epoch
    behind, done = epochs["processed"] + within, True
    if within:
        results = checkpoint["callbacks"].get("WriteResults")
        if isinstance(results, dict) and isinstance(results.get("validated"), int):
            done = results["validated"] == step
        else:  # from before this was noted
            done = validated["is_last_batch"] and validated["total"]["completed"] == validated["total"]["ready"]
        if not done:
            # As Lightning leaves it in the first batch of a validation, from where it starts that again.
            loops[VALIDATED] = {
                "total": {"ready": 1, "started": 1, "processed": 0, "completed": 0},
                "current": dict.fromkeys(validated["current"], 0),
                "is_last_batch": False,
            }
    most = trainer.max_epochs
    if most is not None and -1 < most < behind:
        raise UserError(
            f"{trainer.ckpt_path} has {behind} epochs behind it, and trainer.max_epochs is {most}: give "
            "--trainer.max_epochs a larger number"
        )
    if done:
        _refuse_finished(trainer, behind, step)
    checkpoint["loops"] = {"fit_loop": loops}


def _refuse_finished(trainer: Trainer, epochs: int, steps: int) -> None:
    """Refuse to go on where nothing is left to train, unless the run was stopped before it wrote its results."""
    reached = {"max_epochs": epochs == trainer.max_epochs, "max_steps": -1 < trainer.max_steps <= steps}
    limit = next((name for name, there in reached.items() if there), None)
    run = Path(str(trainer.ckpt_path)).parent.parent
    stopped = (run / "config.yaml").is_file() and not (run / "metrics.json").is_file()
    if limit is not None and not trainer.strategy.broadcast(stopped):
        raise UserError(
            f"nothing is left to train: {trainer.ckpt_path} has trainer.{limit} ({getattr(trainer, limit)}) behind it; "
            f"give --trainer.{limit} a larger number"
        )


def check_callbacks(trainer: Trainer, checkpoint: dict[str, Any]) -> None:
    """Keep the states of the callbacks that this run has."""
    kept: dict[str, Any] = {}
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        key = callback.state_key
        state = checkpoint["callbacks"].get(key, {})
        if not isinstance(state, dict):
            raise InvalidStateError(f"state of {key} is {describe(state)}, expected a table")
        if not state:
            continue
        if isinstance(callback, ModelCheckpoint):
            state = trainer.strategy.broadcast(_files(callback, state))  # of the disk that checkpoints are written to
        elif isinstance(callback, EarlyStopping):
            own = callback.state_dict()
            patient = {name: value for name, value in own.items() if name in {"wait_count", "stopped_epoch"}}
            state = (
                own
                | check_counters(state, patient, key)
                | match_template(state, {"best_score": own["best_score"]}, key)
            )
        else:
            check_plain(state, key)
        kept[key] = state
    checkpoint["callbacks"] = kept


def _files(callback: ModelCheckpoint, state: dict[str, Any]) -> dict[str, Any]:
    """Return the state of a ModelCheckpoint with the files that are there, in the run's own folder.

    Only the names of files are taken: Lightning deletes the worst of them, wherever it is, and a run may have moved.
    """
    key = type(callback).__name__
    folder = Path(str(callback.dirpath))
    inside = [one for one in folder.iterdir() if one.resolve().parent == folder.resolve()] if folder.is_dir() else []
    there = {one.name for one in inside if one.suffix == callback.FILE_EXTENSION}

    def own(path: Any) -> str:
        name = os.path.basename(path) if isinstance(path, str) else ""
        return os.path.join(str(callback.dirpath), name) if name in there else ""

    for part in ("best_k_models", "losses"):
        if not isinstance(state.setdefault(part, {}), dict):
            raise InvalidStateError(f"{part} of {key} is {describe(state[part])}, expected a table")
    scores = {
        own(path): torch.tensor(float(check_number(score, f"score of {key}", infinite=True)))
        for path, score in state["best_k_models"].items()
        if own(path)
    }
    losses = {own(path): loss for path, loss in state["losses"].items() if own(path) in scores}
    losses = {path: loss for path, loss in losses.items() if isinstance(loss, float) and math.isfinite(loss)}
    order = rank_checkpoints(scores, losses, callback.mode)[: callback.save_top_k if callback.save_top_k > 0 else None]
    full = 0 < len(order) == callback.save_top_k
    step = state.get("best_step")
    return {
        "dirpath": callback.dirpath,
        "best_model_path": order[0] if order else own(state.get("best_model_path")) if callback.monitor is None else "",
        "best_model_score": scores[order[0]] if order else None,
        "best_k_models": {path: scores[path] for path in order},
        "kth_best_model_path": order[-1] if full else "",
        "kth_value": scores[order[-1]] if full else callback.kth_value,
        "last_model_path": own(state.get("last_model_path")),
        "losses": {path: losses.get(path, math.nan) for path in order},
        "best_step": check_counters(step, 0, f"best_step of {key}") if order and step is not None else None,
    }
