"""Classification metrics for training, validation, test and reports."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torchmetrics import MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassAUROC,
    MulticlassCalibrationError,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
)


def classification_metrics(num_classes: int, prefix: str) -> MetricCollection:
    """Return accuracy (micro average), macro-F1, one-vs-rest macro AUROC and expected calibration error (15 bins).

    The metrics are exact for several processes and batches of different sizes, because they gather counts and scores
    instead of averaging results.

    Args:
        num_classes: number of classes C.
        prefix: prefix of each name, such as ``"val/"``.
    """
    return MetricCollection(
        {
            "accuracy": MulticlassAccuracy(num_classes, average="micro", validate_args=False),
            "f1": MulticlassF1Score(num_classes, average="macro", validate_args=False),
            "auroc": MulticlassAUROC(num_classes, average="macro", validate_args=False),
            "calibration_error": MulticlassCalibrationError(num_classes, n_bins=15, validate_args=False),
        },
        prefix=prefix,
    )


def confusion_matrix(num_classes: int) -> MulticlassConfusionMatrix:
    """Return the confusion matrix metric: row = true class, column = predicted class."""
    return MulticlassConfusionMatrix(num_classes, validate_args=False)


def per_class_metrics(confusion: Int[Tensor, "C C"], classes: list[str]) -> dict[str, dict[str, float]]:
    """Compute precision, recall, F1 and the number of samples per class from a confusion matrix.

    Example:
        >>> per_class_metrics(torch.tensor([[3, 1], [0, 4]]), ["cat", "dog"])["cat"]
        {'precision': 1.0, 'recall': 0.75, 'f1': 0.8571, 'samples': 4}
    """
    correct, true, predicted = confusion.diag(), confusion.sum(1), confusion.sum(0)
    columns = {
        "precision": correct / predicted.clamp(min=1),
        "recall": correct / true.clamp(min=1),
        "f1": 2 * correct / (true + predicted).clamp(min=1),
    }
    return {
        name: {metric: round(values[i].item(), 4) for metric, values in columns.items()} | {"samples": int(true[i])}
        for i, name in enumerate(classes)
    }


def subsets(names: Sequence[str]) -> list[tuple[str, ...]]:
    """Return all non-empty subsets of names, sorted by size.

    Example:
        >>> subsets(["text", "image"])
        [('text',), ('image',), ('text', 'image')]
    """
    return [subset for size in range(1, len(names) + 1) for subset in combinations(names, size)]


def balanced_class_weights(counts: list[int]) -> Float[Tensor, " C"]:
    r"""Compute class weights inversely proportional to class frequency: :math:`w_c = n / (C\, n_c)`.

    Args:
        counts: training samples per class, all positive.

    Example:
        >>> balanced_class_weights([1, 3])
        tensor([2.0000, 0.6667])
    """
    frequency = torch.tensor(counts, dtype=torch.float)
    return frequency.sum() / (len(counts) * frequency)
