"""Classification metrics for training, validation, test and reports."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassCalibrationError,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
    MulticlassPrecisionRecallCurve,
)
from torchmetrics.functional.classification import binary_auroc
from torchmetrics.utilities.data import dim_zero_cat


def classification_metrics(num_classes: int, prefix: str) -> MetricCollection:
    """Return accuracy (micro average), macro-F1, one-vs-rest macro AUROC and expected calibration error (15 bins).

    The metrics are exact for several processes and batches of different sizes, because they gather counts and scores
    instead of averaging results. A class without samples is left out of AUROC, and of F1 if it is not predicted either.

    Args:
        num_classes: number of classes C.
        prefix: prefix of each name, such as ``"val/"``.
    """
    return MetricCollection(
        {
            "accuracy": MulticlassAccuracy(num_classes, average="micro", validate_args=False),
            "f1": MulticlassF1Score(num_classes, average="macro", validate_args=False),
            "auroc": _MacroAUROC(num_classes, validate_args=False),
            "calibration_error": MulticlassCalibrationError(num_classes, n_bins=15, validate_args=False),
        },
        prefix=prefix,
    )


class _MacroAUROC(MulticlassPrecisionRecallCurve):
    """Mean area over the classes; of a class without samples, or with all of them, the area is not defined.

    ``MulticlassAUROC`` counts it as 0.
    """

    def compute(self) -> Tensor:  # type: ignore[override]
        """Return the mean of the classes that have some, but not all samples; NaN if there are none."""
        probabilities, target = dim_zero_cat(self.preds), dim_zero_cat(self.target)
        areas = [
            binary_auroc(scores, is_class.long(), validate_args=False)
            for index, scores in enumerate(probabilities.unbind(1))
            if (is_class := target == index).any() and not is_class.all()
        ]
        return torch.stack(areas).mean() if areas else torch.tensor(torch.nan, device=target.device)


class EqualMassCalibrationError(Metric):
    r"""Expected calibration error with bins that have the same number of samples.

    :math:`\sum_b \frac{n_b}{n} |\bar{o}_b - \bar{c}_b|` over the bins b, with the mean confidence :math:`\bar{c}_b` and
    the share :math:`\bar{o}_b` of true predictions. NaN without samples.

    Bins of equal width, as in torchmetrics, have few samples where the model is uncertain, and their error is mostly
    noise. Source: "Verified Uncertainty Calibration", arXiv:1909.10155; "Measuring Calibration in Deep Learning",
    arXiv:1904.01685. Deviation: samples with equal confidence count with their common share of true predictions, so
    that the result does not depend on the order of the samples.

    Args:
        num_bins: number of bins; their sizes differ by at most one sample.
    """

    confidences: list[Tensor]
    outcomes: list[Tensor]
    full_state_update = False

    def __init__(self, num_bins: int = 15) -> None:
        super().__init__()
        self.num_bins = num_bins
        self.add_state("confidences", [], dist_reduce_fx="cat")
        self.add_state("outcomes", [], dist_reduce_fx="cat")

    def update(self, confidences: Float[Tensor, " N"], outcomes: Bool[Tensor, " N"]) -> None:
        """Add predictions: the probability of each predicted event, and whether it is true."""
        self.confidences.append(confidences)
        self.outcomes.append(outcomes)

    def compute(self) -> Tensor:
        """Return the error of all samples of all processes."""
        return calibration_error(*self.bins())

    def bins(self) -> tuple[Float[Tensor, " K"], Float[Tensor, " K"], Int[Tensor, " K"]]:
        """Return the mean confidence, the share of true predictions and the number of samples of each bin."""
        if not len(self.confidences):  # a tensor after processes have exchanged it
            return torch.zeros(0), torch.zeros(0), torch.zeros(0, dtype=torch.long)
        return equal_mass_bins(dim_zero_cat(self.confidences), dim_zero_cat(self.outcomes), self.num_bins)


def equal_mass_bins(
    confidences: Float[Tensor, " N"], outcomes: Bool[Tensor, " N"], num_bins: int = 15
) -> tuple[Float[Tensor, " K"], Float[Tensor, " K"], Int[Tensor, " K"]]:
    """Return the mean confidence, the share of true outcomes and the number of samples of bins of equal size.

    They are on the CPU: an Apple GPU has no double precision.
    """
    distinct, index, counts = torch.unique(confidences.cpu().double(), return_inverse=True, return_counts=True)
    shares = torch.zeros_like(distinct).index_add_(0, index, outcomes.cpu().double()) / counts
    ordered = index.sort().values
    parts = [part for part in ordered.tensor_split(num_bins) if len(part)]
    sizes = torch.tensor([len(part) for part in parts], dtype=torch.long)
    if not parts:
        return distinct, shares, sizes
    confidence, share = (torch.stack([values[part].mean() for part in parts]) for values in (distinct, shares))
    return confidence, share, sizes


def calibration_error(
    confidences: Float[Tensor, " K"], shares: Float[Tensor, " K"], sizes: Int[Tensor, " K"]
) -> Float[Tensor, ""]:
    """Return the expected calibration error of bins; NaN without samples."""
    return (sizes * (confidences - shares).abs()).sum() / sizes.sum()


def chance_calibration_error(confidences: Float[Tensor, " N"], num_bins: int = 15, draws: int = 100) -> float:
    """Return the mean calibration error of a perfectly calibrated model with these confidences, in bins of equal size.

    Its outcomes are random: in each of the draws, a prediction is true with the probability that it has. A measured
    error that is not above this one is no evidence of a wrong calibration. NaN without samples.

    Source: "Mitigating Bias in Calibration Error Estimation", arXiv:2012.08668.

    Args:
        confidences: probability of each predicted event.
        num_bins: number of bins.
        draws: number of simulations; the same random numbers are drawn in every call.
    """
    ordered = confidences.detach().cpu().double().sort().values
    parts = [part for part in ordered.tensor_split(num_bins) if len(part)]
    generator = torch.Generator().manual_seed(0)
    total = torch.zeros(draws, dtype=torch.float64)
    for part in parts:
        for draw in range(draws):
            total[draw] += (torch.rand(len(part), generator=generator) < part).sum().sub(part.sum()).abs()
    return float(total.mean() / len(ordered)) if len(ordered) else math.nan


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
