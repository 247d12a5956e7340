"""Which samples a run was validated and tested on: only runs on the same ones can be compared."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from fusion_pl.types import Batch


class Noted:
    """Samples in the order in which they came.

    Attributes:
        ids: names of the samples.
        targets: their classes.
        present: inputs that each of them has.
    """

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.targets: list[int] = []
        self.present: list[set[str]] = []

    def add(self, batch: Batch) -> None:
        """Note the samples of a batch."""
        assert batch.target is not None
        self.ids += batch.ids
        self.targets += batch.target.tolist()
        names = list(batch.present)
        for row in torch.stack([batch.present[name] for name in names], dim=1).tolist():
            self.present.append({name for name, has in zip(names, row, strict=True) if has})

    @property
    def hash(self) -> str:
        """Hash of ids and classes: a sample whose class was corrected is another one."""
        return hashlib.sha256(json.dumps([self.ids, self.targets]).encode()).hexdigest()[:16]

    def having(self, some: Sequence[str]) -> int:
        """Return how many samples have at least one of some inputs."""
        return sum(not has.isdisjoint(some) for has in self.present)


class SeenSamples(Callback):
    """Notes the samples of the last validation and test, which of the test were right, and the test's first batch."""

    def __init__(self) -> None:
        self.validated, self.tested = Noted(), Noted()
        self.correct: list[str] = []
        self.first: Batch | None = None

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the validation before."""
        del trainer, pl_module
        self.validated = Noted()

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, *index: int
    ) -> None:
        """Note a batch."""
        del trainer, pl_module, outputs, index
        self.validated.add(batch)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the test before."""
        del trainer, pl_module
        self.tested, self.correct, self.first = Noted(), [], None

    def on_test_batch_end(  # type: ignore[override]
        self, trainer: Trainer, pl_module: LightningModule, outputs: Tensor, batch: Batch, *index: int
    ) -> None:
        """Note a batch, and which of its samples were right."""
        del trainer, pl_module, index
        assert batch.target is not None
        self.first = self.first or batch
        self.tested.add(batch)
        self.correct += ["01"[int(right)] for right in outputs.argmax(-1).eq(batch.target).tolist()]
