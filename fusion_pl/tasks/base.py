"""Base class of the tasks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

from fusion_pl.config import Configurable
from fusion_pl.losses import Criterion, CrossEntropy

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Targets = NDArray[np.int64]  # one element or one row per row of a table
Logits = Float[Tensor, "B _"]
Probabilities = Float[Tensor, "B C"]
Target = Int[Tensor, "B *K"]  # class index per sample; or per class 1, 0 or -1 (unknown)


class LabelColumn(NamedTuple):
    """A column of labels: the distinct cells, and which of them each row has.

    Attributes:
        name: name of the column.
        codes: index of each row's cell in ``cells``; -1 = the cell is empty.
        cells: distinct cells; the cells of a column of lists are tuples.
    """

    name: str
    codes: NDArray[np.int64]
    cells: list[str | tuple[str, ...]]


class Task(Configurable, nn.Module, ABC):
    """What a target is: how labels are read, and how logits are trained, decided and measured.

    The data module reads labels with the first group of methods, on distinct cells instead of rows. The model uses the
    others. A subclass whose state depends on the classes creates it in ``set_num_classes``.

    Attributes:
        exclusive_classes: whether every sample has exactly one class.
        uses_softmax: whether there is one logit per class, and the softmax of the logits is their probabilities.
        several_columns: whether the labels may be in several columns.
        default_criterion: criterion of the training, unless ``model.loss.criterion`` is given.
        monitor: name of the metric that chooses the checkpoint, without the prefix of the stage.
        mode: whether that metric is to be maximised or minimised.
        score: name of the mean of ``is_correct`` over samples.
        error: name of the mean of ``sample_errors`` over samples.
        prediction_fields: fields of a ``Prediction`` that contain the decision.
    """

    exclusive_classes: bool = True
    uses_softmax: bool = True
    several_columns: bool = False
    default_criterion: type[Criterion] = CrossEntropy
    monitor: str = "accuracy"
    mode: Literal["max", "min"] = "max"
    score: str = "accuracy"
    error: str = "error_rate"
    prediction_fields: tuple[str, ...] = ("label", "probability")

    def __init__(self) -> None:
        super().__init__()

    @abstractmethod
    def infer_classes(self, columns: Sequence[LabelColumn]) -> list[str]:
        """Return the names of the classes that the labels contain, in the order of the targets."""

    @abstractmethod
    def read_targets(self, columns: Sequence[LabelColumn], classes: Sequence[str]) -> Targets:
        """Return the target of each row; negative numbers where it is invalid or unknown."""

    @abstractmethod
    def find_invalid(self, columns: Sequence[LabelColumn], classes: Sequence[str]) -> list[NDArray[np.bool_]]:
        """Return for each column, and in it for each row, whether the cell is invalid."""

    @abstractmethod
    def explain_invalid(self, cell: str | tuple[str, ...] | None, classes: Sequence[str], several_columns: bool) -> str:
        """Return what is wrong with an invalid cell, of one or of several label columns, and what to do."""

    @abstractmethod
    def is_known(self, targets: Targets) -> NDArray[np.bool_]:
        """Return for each row whether it has a target; the others are not used."""

    @abstractmethod
    def has_class(self, targets: Targets, index: int) -> NDArray[np.bool_]:
        """Return for each row whether it has a class."""

    @abstractmethod
    def count_classes(self, targets: Targets, num_classes: int) -> NDArray[np.int64]:
        """Return the number of rows per class."""

    @abstractmethod
    def count_absent(self, targets: Targets, num_classes: int) -> NDArray[np.int64]:
        """Return the number of rows per class that are known not to have it."""

    @abstractmethod
    def strata(self, targets: Targets) -> NDArray[np.int64]:
        """Return an index of each row; drawn splits have a training row of each. Negative: the row is not used."""

    @abstractmethod
    def class_names(self, target: Any, classes: Sequence[str]) -> list[str]:
        """Return the names of the classes of one row, whose target is known."""

    def set_num_classes(self, num_classes: int) -> None:
        """Create state that depends on the number of classes; the model calls this method once."""

    def num_logits(self, num_classes: int) -> int:
        """Return the number of logits of a sample, which a fusion head gets as its number of classes."""
        return num_classes

    def start_validation(self, in_training: bool) -> None:
        """Prepare for a validation, which may be part of a training."""

    def class_scores(self, logits: Logits) -> Float[Tensor, "B C"]:
        """Return the scores of the classes, which the criterion gets."""
        return logits

    @abstractmethod
    def total_weight(self, target: Target, weights: Float[Tensor, " C"] | None) -> Tensor | int:
        """Return the denominator of the mean loss of a batch: the number of its targets, or the sum of weights."""

    @abstractmethod
    def probabilities(self, logits: Logits) -> Probabilities:
        """Return the probability of each class."""

    def log_odds(self, logits: Logits, index: int) -> Float[Tensor, " B"]:
        """Return ``log p - log(1 - p)`` of one class, also where p rounds to 1, in double precision."""
        probabilities = self.probabilities(logits.double()).clamp(min=torch.finfo(torch.double).tiny)
        others = probabilities.index_fill(-1, torch.tensor(index, device=logits.device), 0.0)
        return probabilities[..., index].log() - others.sum(-1).log()

    @abstractmethod
    def decide(self, probabilities: Probabilities) -> Target:
        """Return the predicted target of each sample."""

    @abstractmethod
    def is_correct(self, logits: Logits, target: Target) -> Bool[Tensor, " B"]:
        """Return whether the prediction of each sample is correct."""

    @abstractmethod
    def losses(self, logits: Logits, target: Target, smoothing: float = 0.0) -> Float[Tensor, " B"]:
        """Return the negative log-likelihood of each sample, the sum over its known labels.

        Args:
            logits: logits of the samples.
            target: their targets.
            smoothing: share of the target probability that is distributed over all classes.
        """

    def sum_losses(
        self, logits: Logits, target: Target, smoothing: float = 0.0
    ) -> tuple[Float[Tensor, ""], Tensor | int]:
        """Return the sum of ``losses`` and the number of labels, for validation, test and calibration."""
        return self.losses(logits, target, smoothing).sum(), len(target)

    def sample_losses(self, logits: Logits, target: Target) -> Float[Tensor, " B"]:
        """Return the mean negative log-likelihood of the known labels of each sample."""
        return self.losses(logits, target)

    def sample_errors(self, logits: Logits, target: Target) -> Float[Tensor, " B"]:
        """Return how wrong the prediction of each sample is: 0 if it is correct, else by default 1."""
        return (~self.is_correct(logits, target)).double()

    @abstractmethod
    def confidences(
        self, probabilities: Probabilities, target: Target
    ) -> tuple[Float[Tensor, " N"], Bool[Tensor, " N"]]:
        """Return the probabilities whose calibration is measured, and whether each predicted event is true."""

    @abstractmethod
    def sum_squared_errors(
        self, probabilities: Probabilities, target: Target
    ) -> tuple[Float[Tensor, ""], Tensor | int]:
        """Return the sum of the Brier scores and their number."""

    @property
    def has_chosen_thresholds(self) -> bool:
        """Whether the decision has thresholds that are chosen on validation."""
        return False

    def choose_thresholds(self, probabilities: Probabilities, target: Target) -> None:
        """Choose the thresholds of the decision with all calibrated predictions of the validation."""

    @abstractmethod
    def metrics(self, num_classes: int, prefix: str) -> MetricCollection:
        """Return the metrics of a stage, which get ``probabilities`` and targets; exact for several processes."""

    @abstractmethod
    def outcomes(self, num_classes: int) -> Metric:
        """Return a metric that counts right and wrong predictions, for ``per_class`` and ``plot``."""

    @abstractmethod
    def per_class(self, outcomes: Tensor, classes: list[str]) -> dict[str, dict[str, float]]:
        """Return class -> its metrics, at least ``f1`` and ``samples``, from computed ``outcomes``."""

    @abstractmethod
    def plot(self, outcomes: Tensor, classes: list[str], title: str) -> Figure | None:
        """Plot computed ``outcomes``; None if there are too many classes."""

    @abstractmethod
    def prediction(self, probabilities: Float[Tensor, " C"], classes: Sequence[str]) -> dict[str, Any]:
        """Return the values of ``prediction_fields`` for one sample."""

    @abstractmethod
    def matches(self, names: Sequence[str], target: Any, classes: Sequence[str]) -> bool:
        """Return whether the predicted names of one sample are those of its known target."""

    def format_decision(self, value: Any) -> Any:
        """Return a value of ``prediction_fields`` as a cell of a table."""
        return value


def cell_text(cell: str | tuple[str, ...]) -> str:
    """Return a cell of a ``LabelColumn`` as one text, without spaces around it."""
    return cell.strip() if isinstance(cell, str) else ", ".join(cell)
