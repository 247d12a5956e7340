"""Metrics of several labels per sample, computed from all predictions of a stage; unknown labels are left out."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torchmetrics import MetricCollection
from torchmetrics.classification import MultilabelPrecisionRecallCurve
from torchmetrics.functional.classification import binary_auroc, binary_average_precision
from torchmetrics.utilities.data import dim_zero_cat

Probabilities = Float[Tensor, "N C"]
Labels = Int[Tensor, "N C"]  # 1, 0, or -1 = unknown
Thresholds = Callable[[Tensor, Tensor], Tensor]  # all probabilities and labels of a stage -> threshold per label


class _StoredPredictions(MultilabelPrecisionRecallCurve):
    """Base of metrics that keep all probabilities and labels; metrics of a collection share them."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes, validate_args=False)

    def compute(self) -> Tensor:  # type: ignore[override]
        """Compute the metric from the predictions of all processes."""
        return self.measure(dim_zero_cat(self.preds).float(), dim_zero_cat(self.target))

    @abstractmethod
    def measure(self, probabilities: Probabilities, labels: Labels) -> Tensor:
        """Return the metric."""


class _MacroAveragePrecision(_StoredPredictions):
    def measure(self, probabilities: Probabilities, labels: Labels) -> Tensor:
        return _mean(
            binary_average_precision(scores, known, validate_args=False)
            for scores, known in _known_labels(probabilities, labels)
            if (known == 1).any()
        )


class _MacroAUROC(_StoredPredictions):
    def measure(self, probabilities: Probabilities, labels: Labels) -> Tensor:
        return _mean(
            binary_auroc(scores, known, validate_args=False)
            for scores, known in _known_labels(probabilities, labels)
            if (known == 1).any() and (known == 0).any()
        )


class _DecisionMetric(_StoredPredictions):
    def __init__(self, choose_thresholds: Thresholds, num_classes: int) -> None:
        super().__init__(num_classes)
        self._choose_thresholds = choose_thresholds

    def _count_outcomes(self, probabilities: Probabilities, labels: Labels) -> Int[Tensor, "C 2 2"]:
        decided = probabilities >= self._choose_thresholds(probabilities, labels)
        return torch.stack(
            [
                torch.stack([((labels == actual) & (decided == predicted)).sum(0) for predicted in (False, True)], -1)
                for actual in (0, 1)
            ],
            dim=1,
        )


class Outcomes(_DecisionMetric):
    """Number of samples per label, true value (0 or 1) and predicted value (0 or 1).

    Args:
        choose_thresholds: function that returns the thresholds, from all predictions.
        num_classes: number of labels C.
    """

    def measure(self, probabilities: Probabilities, labels: Labels) -> Int[Tensor, "C 2 2"]:
        """Return the numbers of samples."""
        return self._count_outcomes(probabilities, labels)


class _MacroF1(_DecisionMetric):
    def measure(self, probabilities: Probabilities, labels: Labels) -> Tensor:
        return f1_scores(self._count_outcomes(probabilities, labels)).nanmean()


class _MicroF1(_DecisionMetric):
    def measure(self, probabilities: Probabilities, labels: Labels) -> Tensor:
        return f1_scores(self._count_outcomes(probabilities, labels).sum(0, keepdim=True))[0]


class _ExactMatch(_DecisionMetric):
    def measure(self, probabilities: Probabilities, labels: Labels) -> Tensor:
        decided = probabilities >= self._choose_thresholds(probabilities, labels)
        return ((decided == (labels == 1)) | (labels < 0)).all(-1).float().mean()


def multi_label_metrics(choose_thresholds: Thresholds, num_classes: int, prefix: str) -> MetricCollection:
    """Return macro average precision, macro AUROC, macro-F1, micro-F1 and exact match.

    A label without positive samples (AUROC: or without negative samples) is left out of a macro average.

    Args:
        choose_thresholds: function that returns the thresholds, from all predictions.
        num_classes: number of labels C.
        prefix: prefix of each name, such as ``"val/"``.
    """
    return MetricCollection(
        {
            "average_precision": _MacroAveragePrecision(num_classes),
            "auroc": _MacroAUROC(num_classes),
            "f1": _MacroF1(choose_thresholds, num_classes),
            "f1_micro": _MicroF1(choose_thresholds, num_classes),
            "exact_match": _ExactMatch(choose_thresholds, num_classes),
        },
        prefix=prefix,
    )


def f1_scores(outcomes: Int[Tensor, "C 2 2"]) -> Float[Tensor, " C"]:
    """Return F1 of each label; NaN for a label that no sample has and none is predicted to have."""
    errors = outcomes[:, 0, 1] + outcomes[:, 1, 0]
    return 2 * outcomes[:, 1, 1] / (2 * outcomes[:, 1, 1] + errors)


def best_thresholds(probabilities: Probabilities, labels: Labels) -> Float[Tensor, " C"]:
    """Return for each label the threshold with the largest F1; 0.5 for a label without positive samples.

    A threshold lies in the middle between two neighbouring probabilities.

    Example:
        >>> best_thresholds(torch.tensor([[0.1], [0.3], [0.4]]), torch.tensor([[0], [1], [1]]))
        tensor([0.2000])
    """
    thresholds = []
    for scores, known in _known_labels(probabilities, labels):
        if not (known == 1).any():
            thresholds.append(scores.new_tensor(0.5))
            continue
        ordered, order = scores.sort(descending=True)
        correct = known[order].cumsum(0)
        count = torch.arange(1, len(known) + 1, device=known.device)
        f1 = 2 * correct / (count + correct[-1])
        following = torch.cat([ordered[1:], ordered.new_zeros(1)])
        best = f1.where(ordered > following, -1.0).argmax()  # equal probabilities are on one side of a threshold
        thresholds.append((ordered[best] + following[best]) / 2)
    return torch.stack(thresholds)


def _known_labels(probabilities: Probabilities, labels: Labels) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the probabilities and the values of each label that are known."""
    for scores, values in zip(probabilities.unbind(1), labels.unbind(1), strict=True):
        yield scores[values >= 0], values[values >= 0]


def _mean(values: Iterator[Tensor]) -> Tensor:
    stacked = list(values)
    return torch.stack(stacked).mean() if stacked else torch.tensor(torch.nan)
