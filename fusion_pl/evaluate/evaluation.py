"""Predictions of a model for the labelled rows of a table."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from fusion_pl.data.manifest import ManifestData
from fusion_pl.predict import Predictor
from fusion_pl.tasks import Task
from fusion_pl.training.calibrate import calibrate_outputs
from fusion_pl.training.decision_report import doubts_of
from fusion_pl.uncertainty.calibration import Outputs


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Predictions of a model for N labelled rows of a table.

    Attributes:
        name: name of the checkpoint.
        predictor: the model.
        data: the table, with the processors of the model.
        rows: rows of the table.
        outputs: logits without calibration, targets, and present inputs.
        lengths: input and unit -> length of each value, NaN if the input is missing.
        failed: row of the table -> message, for the rows that could not be predicted and are left out.
    """

    name: str
    predictor: Predictor
    data: ManifestData
    rows: NDArray[np.int64]
    outputs: Outputs
    lengths: dict[str, NDArray[np.float64]]
    failed: dict[int, str]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def classes(self) -> list[str]:
        """Names of the classes."""
        return self.predictor.classes

    @property
    def target(self) -> Tensor:
        """Targets of the rows."""
        return self.outputs.target

    @cached_property
    def task(self) -> Task:
        """The task of the model, on the CPU, as the outputs."""
        return copy.deepcopy(self.predictor.task).cpu()

    @cached_property
    def logits(self) -> Float[Tensor, "N L"]:
        """Calibrated logits."""
        return calibrate_outputs(self.predictor.model, self.outputs).float()

    @cached_property
    def probabilities(self) -> Float[Tensor, "N C"]:
        """Calibrated probabilities."""
        return self.task.probabilities(self.logits)

    @cached_property
    def correct(self) -> Bool[Tensor, " N"]:
        """Whether each prediction is correct."""
        return self.task.is_correct(self.logits, self.target)

    @cached_property
    def losses(self) -> Float[Tensor, " N"]:
        """Mean negative log-likelihood of each row."""
        return self.task.sample_losses(self.logits, self.target).double()

    @cached_property
    def errors(self) -> Float[Tensor, " N"]:
        """How wrong each prediction is, see ``Task.sample_errors``."""
        return self.task.sample_errors(self.logits, self.target)

    @cached_property
    def doubts(self) -> dict[str, Float[Tensor, " N"]]:
        """Scores of doubt."""
        return doubts_of(self.predictor.model, self.outputs)

    def select(self, rows: NDArray[np.int64]) -> Evaluation:
        """Return the evaluation of some of the rows of the table."""
        kept = np.flatnonzero(np.isin(self.rows, rows))
        indices = torch.from_numpy(kept)
        outputs = Outputs(*(values[indices] for values in self.outputs))
        lengths = {name: values[kept] for name, values in self.lengths.items()}
        return Evaluation(self.name, self.predictor, self.data, self.rows[kept], outputs, lengths, self.failed)
