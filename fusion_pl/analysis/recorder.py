"""Record which samples a run was validated and tested on: only runs on the same samples can be compared."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from fusion_pl.types import Batch


class SampleLog:
    """Samples in the order of the batches.

    Attributes:
        ids: of the samples.
        targets: their classes.
        present: inputs that each of them has.
    """

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.targets: list[int] = []
        self.present: list[set[str]] = []

    def add(self, batch: Batch) -> None:
        """Add the samples of a batch."""
        assert batch.target is not None
        self.ids += batch.ids
        self.targets += batch.target.tolist()
        names = list(batch.present)
        for row in torch.stack([batch.present[name] for name in names], dim=1).tolist():
            self.present.append({name for name, is_present in zip(names, row, strict=True) if is_present})

    @property
    def hash(self) -> str:
        """Hash of ids and classes: a sample with a corrected label counts as another sample."""
        return hashlib.sha256(json.dumps([self.ids, self.targets]).encode()).hexdigest()[:16]

    def count_with_any(self, inputs: Sequence[str]) -> int:
        """Return how many samples have at least one of some inputs."""
        return sum(not present.isdisjoint(inputs) for present in self.present)


class SampleRecorder(Callback):
    """Record the samples of the last validation and test, which test samples are correct, and the first test batch."""

    def __init__(self) -> None:
        self.validation, self.test = SampleLog(), SampleLog()
        self.correct: list[str] = []
        self.first_batch: Batch | None = None

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Discard the previous validation."""
        self.validation = SampleLog()

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, *index: int
    ) -> None:
        """Record a batch."""
        self.validation.add(batch)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Discard the previous test."""
        self.test, self.correct, self.first_batch = SampleLog(), [], None

    def on_test_batch_end(  # type: ignore[override]
        self, trainer: Trainer, pl_module: LightningModule, outputs: Tensor, batch: Batch, *index: int
    ) -> None:
        """Record a batch and which of its samples are classified correctly."""
        assert batch.target is not None
        self.first_batch = self.first_batch or batch
        self.test.add(batch)
        self.correct += ["01"[int(is_correct)] for is_correct in outputs.argmax(-1).eq(batch.target).tolist()]
