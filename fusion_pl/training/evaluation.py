"""Evaluate a batch of validation or test."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from fusion_pl.training.calibrate import drop_inputs, subsets_per_sample
from fusion_pl.training.outlier_statistics import store_embeddings
from fusion_pl.training.stage_metrics import StageMetrics
from fusion_pl.types import Batch, Encoded, Fused

if TYPE_CHECKING:
    from fusion_pl.module import FusionClassifier


def evaluate_batch(model: FusionClassifier, batch: Batch, stage: Literal["val", "test"]) -> Tensor:
    """Update and log the metrics of a batch, and return its logits.

    A validation during training measures the model without calibration, and collects what ``FitCalibration`` needs.
    Otherwise the metrics are those of the calibrated model, also with every subset of the inputs.
    """
    assert batch.target is not None
    metrics = model.stage_metrics[stage]
    assert isinstance(metrics, StageMetrics)
    encoded = model.encode(batch)
    fused = model.fuse(encoded)
    in_training = model.trainer.state.fn == "fit"
    if not model.trainer.sanity_checking:
        _store_outputs(model, encoded, fused, batch, metrics)
    if not in_training:
        fused = metrics.calibrate(fused, model.calibration, batch)
    for name, metric in metrics.update(fused, encoded, batch).items():
        model.log(name, metric, prog_bar=name == f"{stage}/loss")
    for subset in [] if in_training else metrics.subsets:  # too slow after every training epoch
        reduced = metrics.calibrate(model.fuse(encoded, subset=subset), model.calibration, batch, subset)
        model.log_dict(metrics.update_subset(subset, reduced, batch))
    return fused.logits.float()


def _store_outputs(
    model: FusionClassifier, encoded: dict[str, Encoded], fused: Fused, batch: Batch, metrics: StageMetrics
) -> None:
    """Store the logits of all samples; in training also embeddings, and logits with some subsets of the inputs."""
    assert batch.target is not None
    present = torch.stack([batch.present[name] for name in encoded], dim=1)
    model.outputs.update(fused.logits, batch.target, present, torch.ones_like(present[:, 0]))
    if model.trainer.state.fn != "fit":
        return
    store_embeddings(model, model.embeddings, encoded, fused, batch)
    if not metrics.subsets or model.calibration_method == "none":
        return
    (num_batches,) = model.trainer.num_val_batches[:1]
    count = subsets_per_sample(len(metrics.subsets), num_batches * len(batch.ids) * model.trainer.world_size)
    for shift in range(count):
        reduced, kept, is_reduced = drop_inputs(encoded, batch, metrics.subsets, shift)
        values = (model.fuse(reduced).logits, batch.target, kept, torch.zeros_like(is_reduced))
        model.outputs.update(*(value[is_reduced] for value in values))
