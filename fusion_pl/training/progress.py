"""Check the counters of Lightning's loops in a checkpoint, so that training continues after its last batch."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info

from fusion_pl.training.states import InvalidStateError, check_counters, describe
from fusion_pl.types import UserError

TRAINING_PROGRESS, VALIDATION_PROGRESS = "epoch_loop.batch_progress", "epoch_loop.val_loop.batch_progress"


def check_loops(trainer: Trainer, checkpoint: dict[str, Any]) -> bool:
    """Check the epoch and batch counters of the loops, and repeat an interrupted validation.

    Lightning restores the counters of every moment differently, and then leaves out validations or counts steps twice.
    They are therefore changed to those of one of two moments: between two epochs, or after a batch.

    Returns:
        Whether the training metrics of the current epoch are still to be logged.
    """
    saved = checkpoint["loops"].get("fit_loop")
    loops = check_counters(saved, trainer.fit_loop.state_dict(), "fit_loop")
    step = check_counters(checkpoint.get("global_step"), 0, "global_step")
    epochs, training = loops["epoch_progress"], loops[TRAINING_PROGRESS]
    batches = training["current"]
    training["is_last_batch"] &= batches["ready"] == batches["processed"]
    for counters in (training["total"], batches):  # the checkpoint may be from within a step
        counters.update(dict.fromkeys(counters, counters["processed"]))
    validated = batches["processed"] == 0 or _is_validated(checkpoint, loops, step)
    factor = _batch_size_factor(trainer, saved)
    if epochs["current"]["started"] <= epochs["current"]["processed"]:  # between two epochs
        for counters in (epochs["total"], epochs["current"]):
            counters["completed"] = counters["processed"]
        batches.update(dict.fromkeys(batches, 0))
        training["is_last_batch"], validated = False, True
    elif factor != 1 and not (training["is_last_batch"] and validated):
        if getattr(trainer.datamodule, "bucket_by_length", False):  # type: ignore[attr-defined]
            raise UserError(
                f"{trainer.ckpt_path} was saved within an epoch, and data.bucket_by_length orders the samples by batch "
                "size: resume with the same data.batch_size and number of processes"
            )
        whole_batches = batches["processed"] - training["is_last_batch"]  # the last one may be smaller
        batches.update(dict.fromkeys(batches, int(whole_batches * factor)))
        training["is_last_batch"] = False
    trained_epochs = epochs["current"]["processed"] + training["is_last_batch"]
    if not validated:
        # State during the first batch of a validation, from which Lightning restarts the validation, if it is due.
        loops[VALIDATION_PROGRESS] = {
            "total": {"ready": 1, "started": 1, "processed": 0, "completed": 0},
            "current": dict.fromkeys(loops[VALIDATION_PROGRESS]["current"], 0),
            "is_last_batch": False,
        }
    else:  # a validation that was stopped and repeated has counted a batch that it did not complete
        counters = loops[VALIDATION_PROGRESS]["total"]
        counters.update(dict.fromkeys(counters, counters["completed"]))
    max_epochs = trainer.max_epochs
    if max_epochs is not None and -1 < max_epochs < trained_epochs:
        raise UserError(
            f"{trainer.ckpt_path} is trained for {trained_epochs} epochs, and trainer.max_epochs is {max_epochs}: pass "
            "a larger --trainer.max_epochs"
        )
    if validated or not training["is_last_batch"]:
        _check_not_finished(trainer, trained_epochs, step)
    loops["epoch_loop.state_dict"]["_batches_that_stepped"] = max(0, step - 1)  # as before the validation
    checkpoint["loops"] = {"fit_loop": loops}
    return batches["processed"] > 0 and not (training["is_last_batch"] and validated)


def _is_validated(checkpoint: dict[str, Any], loops: dict[str, Any], step: int) -> bool:
    """Return whether a validation was completed after the last step."""
    results = checkpoint["callbacks"].get("WriteResults")
    if isinstance(results, dict) and isinstance(results.get("validated"), int):
        return bool(results["validated"] == step)
    validation = loops[VALIDATION_PROGRESS]  # a checkpoint of an earlier version of fusion-pl
    return bool(validation["is_last_batch"] and validation["total"]["completed"] == validation["total"]["ready"])


def _batch_size_factor(trainer: Trainer, saved: Any) -> Fraction:
    """Return the samples per batch of all processes in the saved epoch, as a multiple of those in this run.

    The processes share one order of samples, so that any batch size can go on after the samples that were trained on.
    The samples that fill no whole batch are repeated.
    """
    state = saved.get("state_dict", {})
    loaders = state.get("combined_loader", []) if isinstance(state, dict) else None
    if not isinstance(loaders, list):
        raise InvalidStateError(f"state of the loaders is {describe(loaders)}, expected a list")
    if not loaders:  # a checkpoint of an earlier version of fusion-pl
        return Fraction(1)
    current = {"batch_size": getattr(trainer.datamodule, "batch_size", 1), "processes": trainer.world_size}  # type: ignore[attr-defined]
    previous = check_counters(loaders[0], current, "combined_loader")
    if previous != current:
        rank_zero_info(
            f"Resume: {trainer.ckpt_path} is from {_describe(previous)}, and this run has {_describe(current)}: it "
            "continues with the unseen samples, but its result is not exactly that of a run that was never stopped."
        )
    old, new = (size["batch_size"] * size["processes"] for size in (previous, current))
    return Fraction(old, new)


def _describe(size: dict[str, int]) -> str:
    return "batches of {batch_size} in {processes} process(es)".format_map(size)


def _check_not_finished(trainer: Trainer, epochs: int, steps: int) -> None:
    """Raise a ``UserError`` if the run is finished, unless it was stopped before it wrote its results."""
    if epochs == trainer.max_epochs:
        limit = "max_epochs"
    elif -1 < trainer.max_steps <= steps:
        limit = "max_steps"
    else:
        return
    run = Path(str(trainer.ckpt_path)).parent.parent
    without_results = (run / "config.yaml").is_file() and not (run / "metrics.json").is_file()
    if not trainer.strategy.broadcast(without_results):
        raise UserError(
            f"nothing is left to train: {trainer.ckpt_path} has reached trainer.{limit} ({getattr(trainer, limit)}); "
            f"pass a larger --trainer.{limit}"
        )
