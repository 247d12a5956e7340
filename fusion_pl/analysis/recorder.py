"""Record the validation and test samples of a run, because only runs on the same samples can be compared."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from fusion_pl.types import Batch


class SampleLog:
    """Ids, class indices and presence masks of the samples that were evaluated, in the order of the batches."""

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.targets: list[int] | list[list[int]] = []
        self.present: dict[str, list[bool]] = defaultdict(list)

    def add(self, batch: Batch) -> None:
        """Add the samples of a batch."""
        assert batch.target is not None
        self.ids += batch.ids
        self.targets += batch.target.tolist()
        for name, mask in batch.present.items():
            self.present[name] += mask.tolist()

    @property
    def samples_hash(self) -> str:
        """Hash of ids and class indices; it changes if a label is corrected."""
        return hashlib.sha256(json.dumps([self.ids, self.targets]).encode()).hexdigest()[:16]

    def count_samples_with_any(self, inputs: Sequence[str]) -> int:
        """Count the samples that have at least one of the inputs."""
        return sum(map(any, zip(*(self.present[name] for name in inputs), strict=True)))


class SampleRecorder(Callback):
    """Record the samples of the last validation, and the samples, correct predictions and first batch of the test."""

    def __init__(self) -> None:
        self.validation, self.test = SampleLog(), SampleLog()
        self.correct: list[str] = []
        self.first_batch: Batch | None = None

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Discard the samples of the previous validation."""
        self.validation = SampleLog()

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, *index: int
    ) -> None:
        """Record the samples of a batch."""
        self.validation.add(batch)

    def on_test_batch_end(  # type: ignore[override]
        self, trainer: Trainer, pl_module: Any, outputs: Tensor, batch: Batch, *index: int
    ) -> None:
        """Record the samples of a batch, and which of them are classified correctly."""
        assert batch.target is not None
        self.first_batch = self.first_batch or batch
        self.test.add(batch)
        is_correct = pl_module.task.is_correct(outputs, batch.target)
        self.correct += ["01"[value] for value in is_correct.tolist()]
