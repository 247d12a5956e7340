"""Histograms of the validation samples, and the bins of the samples that are served."""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from fusion_pl.predict import Predictor
from fusion_pl.types import Prediction, Sample, UserError
from fusion_pl.uncertainty.doubt import doubt_scores
from fusion_pl.uncertainty.drift import decision_name, inputs_name, quantile_cuts
from fusion_pl.uncertainty.outliers import OutlierDetector


@dataclass(frozen=True)
class Histogram:
    """Number of validation samples in each bin.

    Attributes:
        bins: distinct names of the bins.
        counts: number of validation samples per bin.
    """

    bins: list[str]
    counts: list[int]

    @classmethod
    def of_categories(cls, counts: Mapping[str, int], total: int) -> Histogram:
        """Return a histogram with a bin per category, and a last one for all samples of other categories."""
        rest = "all others"
        while rest in counts:
            rest = f"({rest})"
        return cls([*counts, rest], [*counts.values(), total - sum(counts.values())])

    @classmethod
    def of_numbers(cls, values: Float[Tensor, " N"], cuts: Sequence[float]) -> Histogram:
        """Return a histogram of numbers with a bin between any two cuts, one below and one above them."""
        names = [f"{cut:.4g}" for cut in cuts]
        inner = [f"{names[i]} to {names[i + 1]}" for i in range(len(cuts) - 1)]
        if len(set(inner)) < len(inner):  # more digits tell apart what is nearly equal
            inner = [f"{cuts[i]!r} to {cuts[i + 1]!r}" for i in range(len(cuts) - 1)]
        bins = torch.bucketize(values.double(), torch.tensor(cuts, dtype=torch.float64))
        counts = bins.bincount(minlength=len(cuts) + 1).tolist()
        return cls([f"below {names[0]}", *inner, f"above {names[-1]}"], counts)


class Reference:
    """Histograms of the validation samples of a model, by the name of a quantity.

    ``confidence``: one minus the doubt ``probability``, the largest calibrated probability of a class. ``predictions``:
    the predicted class, or the set of labels. ``inputs``: which inputs a sample has. ``distance of`` an input, or of
    all of them: the squared Mahalanobis distance of the outlier detector.

    Raises:
        UserError: if the checkpoint has no histograms.
    """

    def __init__(self, predictor: Predictor) -> None:
        scores = predictor.model.validation_scores
        if scores is None or not scores.predicted or "probability" not in scores.doubts:
            raise UserError(
                "--reference needs the scores and the predictions of the validation samples, and the checkpoint has "
                "none: train with fusion-pl fit of this version, which writes them, or use best.ckpt instead of a "
                "last.ckpt from within an epoch"
            )
        self.predictor, total = predictor, len(scores.conformity)
        confidences = 1 - scores.doubts["probability"]
        confidence, self.confidence_cuts = confidence_histogram(confidences)
        self.histograms = {
            "confidence": confidence,
            "predictions": Histogram.of_categories(scores.predicted, total),
            "inputs": Histogram.of_categories(scores.inputs, total),
        }
        self.p_value_cuts: dict[str, list[float]] = {}
        for name, detector in predictor.model.outlier_detectors.items():
            cuts = quantile_cuts(detector.scores)
            self.histograms[f"distance of {name}"] = Histogram.of_numbers(detector.scores, cuts)
            self.p_value_cuts[name] = p_values_of_distances(detector, cuts)

    def bins(self, samples: Sequence[Sample], predictions: Sequence[Prediction]) -> list[dict[str, int]]:
        """Return the bin of each quantity, of each sample that has a prediction; a missing input has no distance.

        Args:
            samples: samples of a batch.
            predictions: their predictions, with the p-values of the outlier detectors.
        """
        rows = [
            (sample, prediction.probabilities, prediction.outlier_p_values or {})
            for sample, prediction in zip(samples, predictions, strict=True)
            if prediction.probabilities is not None
        ]
        if not rows:
            return []
        task, classes, inputs = self.predictor.task, self.predictor.classes, list(self.predictor.processors)
        probabilities = torch.tensor([[values[name] for name in classes] for _, values, _ in rows])
        # Of the scores, only those of the probabilities are used; the others need logits.
        doubts = doubt_scores(probabilities, probabilities, False, task.exclusive_classes)["probability"]
        decisions = task.decide(probabilities).tolist()
        found = []
        for (sample, _, p_values), doubt, decision in zip(rows, doubts.tolist(), decisions, strict=True):
            present = inputs_name(inputs, [name in sample.inputs for name in inputs])
            bins = {
                "confidence": bisect.bisect_left(self.confidence_cuts, 1 - doubt),
                "predictions": self._category("predictions", decision_name(task, classes, decision)),
                "inputs": self._category("inputs", present),
            }
            for name, p_value in p_values.items():
                if p_value is not None:
                    bins[f"distance of {name}"] = sum(p_value <= cut for cut in self.p_value_cuts[name])
            found.append(bins)
        return found

    def _category(self, quantity: str, name: str) -> int:
        bins = self.histograms[quantity].bins
        return bins.index(name) if name in bins[:-1] else len(bins) - 1


def confidence_histogram(confidences: Float[Tensor, " N"]) -> tuple[Histogram, list[float]]:
    """Return the histogram of numbers up to 1, and its cuts; if they reach up to 1, there is no bin above them."""
    cuts = quantile_cuts(confidences)
    if cuts[-1] < 0.9999:
        return Histogram.of_numbers(confidences, cuts), cuts
    cuts[-1] = 1.00001  # 1, and rounding errors
    histogram = Histogram.of_numbers(confidences, cuts)
    return Histogram(histogram.bins[:-1], histogram.counts[:-1]), cuts


def p_values_of_distances(detector: OutlierDetector, cuts: Sequence[float]) -> list[float]:
    """Return p-values of an outlier detector that are at most reached by samples beyond distances.

    A sample whose distance exceeds a cut has at most the returned p-value, and other samples have a larger one: the
    numbers are half a step above the p-value (1 + r) / (n + 1) of the r validation samples beyond the cut.
    """
    ordered = detector.scores.sort().values
    below = torch.searchsorted(ordered, torch.tensor(cuts, dtype=torch.float64)).tolist()
    return [(1.5 + len(ordered) - rank) / (len(ordered) + 1) for rank in below]
