"""Fit outlier detectors: statistics of training samples, and scores of the validation samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat

from fusion_pl.data.base import FusionData
from fusion_pl.types import Batch, Encoded, Fused
from fusion_pl.uncertainty.outliers import MIN_SAMPLES, Embeddings, OutlierDetector, embeddings_of, fit_detectors

TRAINING_SAMPLES = (500, 2000)  # fewest and most samples of the statistics
MAX_SAMPLES = 5000  # validation samples whose scores a checkpoint has


class StoredEmbeddings(Metric):
    """Embeddings of samples, evenly reduced to at most 10,000 per process, gathered from all processes."""

    embeddings: list[Tensor]
    target: list[Tensor]
    present: list[Tensor]
    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        self.dims: dict[str, int] = {}
        self.stride, self.seen, self.stored = 1, 0, 0
        for name in ("embeddings", "target", "present"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def reset(self) -> None:
        """Discard the samples."""
        super().reset()
        self.stride, self.seen, self.stored = 1, 0, 0

    def update(self, embeddings: Mapping[str, Tensor], target: Tensor, present: Tensor) -> None:
        """Add samples: see ``embeddings_of``; classes, or 0; and one column per input, whether it is present."""
        self.dims = {name: values.shape[1] for name, values in embeddings.items()}
        rows = slice(-self.seen % self.stride, None, self.stride)  # of all samples, each stride-th one
        self.embeddings.append(torch.cat([values[rows] for values in embeddings.values()], dim=1))
        self.target.append(target[rows])
        self.present.append(present[rows].byte())
        self.seen += len(target)
        self.stored += len(self.target[-1])
        if self.stored > 2 * MAX_SAMPLES:
            for states in (self.embeddings, self.target, self.present):
                states[:] = [torch.cat(states)[::2]]
            self.stride, self.stored = 2 * self.stride, len(self.target[0])

    def compute(self) -> tuple[NDArray[Any], ...]:
        """Return the states of all processes; as arrays, because a metric removes the dimensions of one number."""
        return tuple(dim_zero_cat(state).cpu().numpy() for state in (self.embeddings, self.target, self.present))

    def gather(self, inputs: Sequence[str]) -> Embeddings:
        """Return at most 5,000 samples of all processes, on the CPU."""
        states = map(torch.from_numpy, self.compute())
        embeddings, target, present = (state[:: -(-len(state) // MAX_SAMPLES)] for state in states)
        parts = torch.split(embeddings, list(self.dims.values()), dim=1)
        masks = dict(zip(inputs, present.bool().unbind(1), strict=True))
        return Embeddings(dict(zip(self.dims, parts, strict=True)), masks, target)


def store_embeddings(
    model: Any, stored: StoredEmbeddings, encoded: dict[str, Encoded], fused: Fused, batch: Batch
) -> None:
    """Store the embeddings of a batch; the class of a sample with several labels is 0."""
    assert batch.target is not None
    present = torch.stack([batch.present[name] for name in encoded], dim=1)
    classes = batch.target if model.task.exclusive_classes else batch.target.new_zeros(len(batch.target))
    stored.update(embeddings_of(encoded, fused), classes, present)


def fit_outlier_detectors(trainer: Trainer, model: Any) -> dict[str, OutlierDetector]:
    """Return detectors for the best checkpoint, which is saved after this validation.

    The statistics are those of as many training samples as the validation has, between 500 and 2,000, so that encoding
    them takes about as long as the validation. Empty if the validation has fewer than 50 samples or gives no new best
    checkpoint, if the data module is no ``FusionData``, or if the strategy distributes the weights, which it gathers in
    the steps of a loop only.
    """
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    if not isinstance(data, FusionData) or trainer.strategy.restore_checkpoint_after_setup or not _is_saved(trainer):
        return {}
    inputs = list(model.encoders)
    validation = model.embeddings.gather(inputs)
    if len(validation.target) < MIN_SAMPLES:
        return {}
    training = StoredEmbeddings().to(model.device)
    fewest, most = TRAINING_SAMPLES
    for batch in data.statistics_loader(max(fewest, min(len(validation.target), most))):
        if trainer.received_sigterm:
            raise SIGTERMException
        moved = trainer.strategy.batch_to_device(trainer.precision_plugin.convert_input(batch))
        with trainer.precision_plugin.val_step_context():
            encoded = model.encode(moved)
            store_embeddings(model, training, encoded, model.fuse(encoded), moved)
    # Gathering needs every process, but with few training samples, some have none.
    if not trainer.strategy.reduce_boolean_decision(training.update_called):
        return {}
    return fit_detectors(training.gather(inputs), validation)


def _is_saved(trainer: Trainer) -> bool:
    """Return whether the model of this validation will be in a checkpoint other than that for resuming."""
    if trainer.fast_dev_run:  # type: ignore[attr-defined]
        return False
    metrics = trainer.callback_metrics
    return any(
        callback.monitor is None
        or callback.save_top_k == 0
        or callback.check_monitor_top_k(trainer, metrics.get(callback.monitor))
        for callback in trainer.checkpoint_callbacks
        if isinstance(callback, ModelCheckpoint)
    )
