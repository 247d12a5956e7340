"""What is measured: the same numbers in training, validation, test and the written report."""

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
    """Collect accuracy (share of samples that are right), macro-F1, one-vs-rest AUROC and calibration error (15 bins).

    Exact over several processes and uneven batches: counts and scores are gathered, never averages of averages.

    Args:
        num_classes: C.
        prefix: put before each name, such as ``"val/"``.
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
    """Count true class (row) against predicted class (column)."""
    return MulticlassConfusionMatrix(num_classes, validate_args=False)


def per_class(confusion: Int[Tensor, "C C"], classes: list[str]) -> dict[str, dict[str, float]]:
    """Read precision, recall, F1 and the number of samples of each class off a confusion matrix.

    Example:
        >>> per_class(torch.tensor([[3, 1], [0, 4]]), ["cat", "dog"])["cat"]
        {'precision': 1.0, 'recall': 0.75, 'f1': 0.8571, 'samples': 4}
    """
    right, true, said = confusion.diag(), confusion.sum(1), confusion.sum(0)

    def share(part: Int[Tensor, " C"], whole: Int[Tensor, " C"]) -> Float[Tensor, " C"]:
        return part / whole.clamp(min=1)

    columns = zip(classes, share(right, said), share(right, true), share(2 * right, true + said), true, strict=True)
    return {
        name: {
            "precision": round(precision.item(), 4),
            "recall": round(recall.item(), 4),
            "f1": round(f1.item(), 4),
            "samples": int(samples),
        }
        for name, precision, recall, f1, samples in columns
    }


def subsets(names: Sequence[str]) -> list[tuple[str, ...]]:
    """Return every choice of at least one of the names, the small ones first and all of them last.

    Example:
        >>> subsets(["text", "image"])
        [('text',), ('image',), ('text', 'image')]
    """
    return [one for size in range(1, len(names) + 1) for one in combinations(names, size)]


def balanced_weights(counts: list[int]) -> Float[Tensor, " C"]:
    r"""Weigh classes by the inverse of their frequency: :math:`w_c = n / (C\, n_c)`.

    Args:
        counts: training samples of each class, all positive.

    Example:
        >>> balanced_weights([1, 3])
        tensor([2.0000, 0.6667])
    """
    frequency = torch.tensor(counts, dtype=torch.float)
    return frequency.sum() / (len(counts) * frequency)
