"""Calibrate a model, and score its samples, in every validation of a training; a checkpoint contains the results."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat

from fusion_pl.fusion.evidential import Evidential
from fusion_pl.layers import keep_rows
from fusion_pl.training.averaging import averaged_weights
from fusion_pl.training.calibration_report import Bins, reliability_bins
from fusion_pl.training.outlier_statistics import fit_outlier_detectors
from fusion_pl.types import Batch, Encoded, hash_ids
from fusion_pl.uncertainty.calibration import Outputs
from fusion_pl.uncertainty.calibration_fit import fit_calibration
from fusion_pl.uncertainty.drift import count_categories, decision_name, inputs_name
from fusion_pl.uncertainty.validation_scores import ValidationScores

SUBSET_SAMPLES = 500  # of each subset of the inputs; with 80, a temperature of a subset is often worse for new samples


class StoredOutputs(Metric):
    """Outputs of an evaluation, gathered from all processes."""

    logits: list[Tensor]
    target: list[Tensor]
    present: list[Tensor]
    complete: list[Tensor]
    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        for name in Outputs._fields:
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, logits: Tensor, target: Tensor, present: Tensor, complete: Tensor) -> None:
        """Add samples, see ``Outputs``."""
        self.logits.append(logits.float())
        self.target.append(target)
        self.present.append(present.byte())
        self.complete.append(complete.byte())

    def compute(self) -> tuple[NDArray[Any], ...]:
        """Return the states of all processes; as arrays, because a metric removes the dimensions of one number."""
        return tuple(dim_zero_cat(getattr(self, name)).cpu().numpy() for name in Outputs._fields)

    def gather(self) -> Outputs:
        """Return the samples of all processes, on the CPU."""
        logits, target, present, complete = map(torch.from_numpy, self.compute())
        return Outputs(logits, target, present.bool(), complete.bool())


class FitCalibration(Callback):
    """Fit calibration and outlier detectors after each validation of a training, before the checkpoint is saved.

    The callback runs when all metrics are computed, so that a validation during training measures the model without
    calibration. A task that chooses thresholds chooses those of the calibrated probabilities.

    Attributes:
        reliability: bins of the latest validation of the training, before and after calibration.
    """

    def __init__(self) -> None:
        self.reliability: dict[str, Bins] = {}

    def _discard_outputs(self, trainer: Trainer, pl_module: Any) -> None:
        """Discard the outputs of the previous evaluation."""
        pl_module.outputs.reset()
        pl_module.embeddings.reset()

    on_validation_start = on_test_start = _discard_outputs

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        """Discard the scores and detectors of the last validation, because a step changes the weights.

        The temperature is kept: that of slightly older weights is better than none.
        """
        pl_module.validation_scores, pl_module.outlier_detectors = None, {}

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Fit the calibration, and store the scores of the samples; all processes have the calibration of rank 0."""
        if trainer.state.fn != "fit" or trainer.sanity_checking or not pl_module.outputs.update_called:
            return
        outputs, task, method = pl_module.outputs.gather(), pl_module.task, pl_module.calibration_method
        pl_module.outputs.reset()
        pl_module.calibration = None
        if method != "none":
            with torch.inference_mode(mode=False), torch.enable_grad():
                copies = Outputs(*(values.clone() for values in outputs))  # those of inference mode have no gradient
                fitted = fit_calibration(task, copies, list(pl_module.encoders), method)
            pl_module.calibration = trainer.strategy.broadcast(fitted)
        whole = outputs.select(outputs.complete)
        calibrated = calibrate_outputs(pl_module, whole)
        after = {} if pl_module.calibration is None else {"after": calibrated}
        is_finite = bool(whole.logits.isfinite().all())
        self.reliability = reliability_bins(task, {"before": whole.logits} | after, whole.target) if is_finite else {}
        probabilities = task.probabilities(calibrated)
        if task.has_chosen_thresholds:
            every = Outputs(*(values[outputs.complete] for values in outputs))
            predictions = task.probabilities(calibrate_outputs(pl_module, every)), every.target
            task.choose_thresholds(*predictions)
        with averaged_weights(trainer, pl_module):  # those of the validation and of the checkpoint
            if task.has_chosen_thresholds:
                task.choose_thresholds(*predictions)  # again: thresholds are exchanged with the weights
            pl_module.outlier_detectors = fit_outlier_detectors(trainer, pl_module)
        pl_module.embeddings.reset()
        pl_module.validation_scores = None
        if probabilities.isfinite().all():
            scores, is_evidential = task.class_scores(whole.logits), isinstance(pl_module.fusion, Evidential)
            measured = ValidationScores.measure(
                scores, probabilities, whole.target, is_evidential, task.exclusive_classes
            )
            pl_module.validation_scores = replace(
                measured,
                predicted=count_categories(task.decide(probabilities), partial(decision_name, task, pl_module.classes)),
                inputs=count_categories(whole.present, partial(inputs_name, list(pl_module.encoders))),
            )


def calibrate_outputs(model: Any, outputs: Outputs) -> Tensor:
    """Return the calibrated logits of stored outputs."""
    calibrated: Tensor = model.calibrate(
        outputs.logits, dict(zip(model.encoders, outputs.present.unbind(1), strict=True))
    )
    return calibrated


def drop_inputs(
    encoded: Mapping[str, Encoded], batch: Batch, subsets: Sequence[Sequence[str]], shift: int = 0
) -> tuple[dict[str, Encoded], Tensor, Tensor]:
    """Keep one subset of the inputs of each sample, chosen by the sample's id, as if the others were missing.

    Args:
        encoded: outputs of the encoders.
        batch: the batch.
        subsets: names of the inputs of each subset.
        shift: number that is added to the index of the subset, for other subsets of the same samples.

    Returns:
        The outputs of the encoders; the presence of each input, of shape (B, M); and whether the sample has some, but
        not all of its inputs, of shape (B,).
    """
    present = torch.stack([batch.present[name] for name in encoded], dim=1)
    hashes = batch.id_hashes if batch.id_hashes is not None else hash_ids(batch.ids)
    members = torch.tensor([[name in subset for name in encoded] for subset in subsets], device=present.device)
    kept = present & members[(hashes.to(present.device) + shift) % len(subsets)]
    reduced = {name: keep_rows(value, kept[:, index]) for index, (name, value) in enumerate(encoded.items())}
    return reduced, kept, kept.any(1) & (kept != present).any(1)


def subsets_per_sample(num_subsets: int, num_samples: int | float) -> int:
    """Return with how many subsets of its inputs each validation sample is predicted.

    Each subset has about 500 samples, or all of a smaller validation; a larger one costs no more than that.

    Example:
        >>> subsets_per_sample(6, 200), subsets_per_sample(6, 1500), subsets_per_sample(6, 100_000)
        (6, 2, 1)
    """
    return min(num_subsets, max(1, math.ceil(SUBSET_SAMPLES * num_subsets / max(num_samples, 1))))
