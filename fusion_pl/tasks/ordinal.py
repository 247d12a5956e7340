"""Task with ordered classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import logsigmoid, nll_loss
from torchmetrics import MeanAbsoluteError, Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassCohenKappa, MulticlassConfusionMatrix

from fusion_pl.messages import join_names
from fusion_pl.tasks.base import LabelColumn, Logits, Probabilities, Target
from fusion_pl.tasks.multi_class import MultiClass
from fusion_pl.types import UserError


class Ordinal(MultiClass):
    r"""Decide for one of C ordered classes, such as ratings, by C - 1 conditional probabilities: CORN.

    The classes are in the order of ``data.classes``, which must be given unless all labels are integers.

    Logit k is that of :math:`P(y > k \mid y > k - 1)`, so that :math:`P(y > k)` is a product of sigmoids and never
    increases with k. The probability of a class is the difference of two such products. The training loss is the
    criterion of these probabilities, by default :math:`-\log P(y)`, which is the sum of CORN's binary cross-entropies
    over its conditional subsets. The decision is the median: the number of k with P(y > k) > 1/2. The metrics are
    accuracy, mean absolute error in classes, which chooses the checkpoint, and Cohen's kappa with quadratic weights.

    CORN instead of a cumulative link model, because the probabilities are consistent without sorted thresholds, and the
    logits are independent outputs of any head, with any weights.

    Source: "Deep Neural Networks for Rank-Consistent Ordinal Regression Based On Conditional Probabilities",
    arXiv:2111.08851. Deviation: the mean over samples, not over the samples of all conditional subsets.
    """

    uses_softmax = False
    monitor = "mae"
    mode: Literal["max", "min"] = "min"
    error = "mae"

    def infer_classes(self, columns: Sequence[LabelColumn]) -> list[str]:
        """Return the distinct labels in numeric order.

        Raises:
            UserError: if a label is not an integer, since the order of the classes is unknown.
        """
        classes = super().infer_classes(columns)
        if classes and not all(name.removeprefix("-").isdecimal() for name in classes):
            raise UserError(
                f"the order of the classes {join_names(map(repr, classes))} in the column {columns[0].name!r} is "
                "unknown: give them from lowest to highest, such as --data.classes '[low, medium, high]'"
            )
        return classes

    def num_logits(self, num_classes: int) -> int:
        """Return C - 1."""
        return num_classes - 1

    def class_scores(self, logits: Logits) -> Float[Tensor, "B C"]:
        """Return the log-probability of each class, whose softmax is the probability."""
        exceeded = logsigmoid(logits).cumsum(-1)  # log P(y > k)
        first = torch.zeros_like(logits[:, :1])
        not_exceeded = torch.cat([logsigmoid(-logits), first], dim=-1)  # log P(y <= k | y > k - 1)
        return torch.cat([first, exceeded], dim=-1) + not_exceeded

    def probabilities(self, logits: Logits) -> Probabilities:
        """Return the probability of each class."""
        return self.class_scores(logits).exp()

    def decide(self, probabilities: Probabilities) -> Target:
        """Return the median of the classes."""
        return median_class(probabilities)

    def is_correct(self, logits: Logits, target: Target) -> Bool[Tensor, " B"]:
        """Return whether the median is the class of the sample."""
        return self.decide(self.probabilities(logits.float())) == target

    def sample_errors(self, logits: Logits, target: Target) -> Float[Tensor, " B"]:
        """Return the distance of the median from the class of the sample, in classes."""
        return (self.decide(self.probabilities(logits.float())) - target).abs().double()

    def losses(self, logits: Logits, target: Target, smoothing: float = 0.0) -> Float[Tensor, " B"]:
        """Return the negative log-probability of each sample."""
        scores = self.class_scores(logits)
        losses = nll_loss(scores, target, reduction="none")
        return torch.lerp(losses, -scores.mean(-1), smoothing) if smoothing else losses

    def metrics(self, num_classes: int, prefix: str) -> MetricCollection:
        """Return accuracy, mean absolute error, and Cohen's kappa with quadratic weights."""
        return MetricCollection(
            {
                "accuracy": _MedianAccuracy(num_classes, average="micro", validate_args=False),
                "mae": _MedianError(),
                "kappa": _MedianKappa(num_classes, weights="quadratic", validate_args=False),
            },
            prefix=prefix,
        )

    def outcomes(self, num_classes: int) -> Metric:
        """Return the confusion matrix."""
        return _MedianConfusion(num_classes, validate_args=False)


def median_class(probabilities: Probabilities) -> Target:
    """Return the index of the median class: the number of classes k with P(y > k) > 1/2.

    Example:
        >>> median_class(torch.tensor([[0.4, 0.3, 0.3]]))
        tensor([1])
    """
    return (1 - probabilities.cumsum(-1)[:, :-1] > 0.5).sum(-1)


class _MedianAccuracy(MulticlassAccuracy):
    def update(self, preds: Tensor, target: Tensor) -> None:
        super().update(median_class(preds), target)


class _MedianError(MeanAbsoluteError):
    def update(self, preds: Tensor, target: Tensor) -> None:
        super().update(median_class(preds).float(), target.float())


class _MedianKappa(MulticlassCohenKappa):
    def update(self, preds: Tensor, target: Tensor) -> None:
        super().update(median_class(preds), target)


class _MedianConfusion(MulticlassConfusionMatrix):
    def update(self, preds: Tensor, target: Tensor) -> None:
        super().update(median_class(preds), target)
