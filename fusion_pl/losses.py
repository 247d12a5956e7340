"""Criteria, which compute the loss of logits with targets; given by class path as ``model.loss.criterion``."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from fusion_pl.types import UserError

Scores = Float[Tensor, "B C"]
ClassIndex = Int[Tensor, " B"]
LabelMatrix = Int[Tensor, "B C"]  # 1, 0, or -1 = unknown
ClassWeights = Float[Tensor, " C"]


class Criterion(nn.Module, ABC):
    """Base of the criteria.

    A task calls it with one score per class. Targets are class indices (B) if the classes exclude each other, else a
    matrix (B, C) of 1, 0 and -1 (unknown), whose unknown entries have loss 0.

    Attributes:
        exclusive_classes: whether it takes class indices.
        several_labels: whether it takes matrices of labels.
        smooths_labels: whether it supports ``model.loss.label_smoothing``.
    """

    exclusive_classes = False
    several_labels = False
    smooths_labels = False

    def set_counts(self, present: Sequence[int], absent: Sequence[int]) -> None:
        """Set the numbers of training samples that are known to have, and not to have, each class; before training."""

    @abstractmethod
    def forward(
        self, scores: Scores, target: Tensor, weights: ClassWeights | None, label_smoothing: float
    ) -> Float[Tensor, "B *K"]:
        """Return the loss of each sample (B), or of each label (B, C).

        Args:
            scores: logits; of exclusive classes, any scores whose softmax are the probabilities.
            target: class indices (B) or labels (B, C).
            weights: factor of the loss of each class; None = 1.
            label_smoothing: share of the target probability that is distributed over all classes, or over 1 and 0.
        """


class CrossEntropy(Criterion):
    """Cross-entropy of the softmax: ``-log P(y)``; the default for exclusive classes."""

    exclusive_classes = True
    smooths_labels = True

    def forward(
        self, scores: Scores, target: ClassIndex, weights: ClassWeights | None, label_smoothing: float
    ) -> Float[Tensor, " B"]:
        """Return the cross-entropy of each sample."""
        return F.cross_entropy(scores, target, weights, label_smoothing=label_smoothing, reduction="none")


class LogitAdjusted(Criterion):
    """Cross-entropy of logits to which the log prior of each class is added, for rare classes.

    ``-log softmax(f + τ log π)_y`` with the class frequencies π of the training split. In prediction the logits stay as
    they are, so that the decision is that for equally frequent classes.

    Source: "Long-tail learning via logit adjustment", arXiv:2007.07314, equation 10.

    Args:
        tau: factor τ of the log prior, 0 or more; 1 minimises the balanced error.

    Raises:
        UserError: if ``tau`` is out of range.
    """

    exclusive_classes = True
    smooths_labels = True
    log_prior: Tensor | None

    def __init__(self, tau: float = 1.0) -> None:
        super().__init__()
        _check_number("LogitAdjusted", "tau", tau)
        self.tau = tau
        self.register_buffer("log_prior", None, persistent=False)

    def set_counts(self, present: Sequence[int], absent: Sequence[int]) -> None:
        """Set the log prior from the numbers of training samples per class."""
        counts = torch.tensor(present, dtype=torch.float).clamp(min=1)
        self.log_prior = (counts / counts.sum()).log()

    def forward(
        self, scores: Scores, target: ClassIndex, weights: ClassWeights | None, label_smoothing: float
    ) -> Float[Tensor, " B"]:
        """Return the cross-entropy of each sample, with adjusted logits.

        Raises:
            UserError: if no data module has counted the classes.
        """
        if self.log_prior is None:
            raise UserError("LogitAdjusted counts the training samples per class: train with a FusionData")
        adjusted = scores + self.tau * self.log_prior.to(scores.device)
        return F.cross_entropy(adjusted, target, weights, label_smoothing=label_smoothing, reduction="none")


class BinaryCrossEntropy(Criterion):
    """Binary cross-entropy of each label: ``-w y log p - (1 - y) log (1 - p)``; the default for several labels.

    Args:
        positive_weights: factor w of the loss of present labels: one number per class, or ``balanced`` for the ratio
            of absent to present labels in the training split; null = 1.

    Raises:
        UserError: if a weight is out of range.
    """

    several_labels = True
    smooths_labels = True
    ratios: Tensor | None

    def __init__(self, positive_weights: Literal["balanced"] | list[float] | None = None) -> None:
        super().__init__()
        for weight in positive_weights if isinstance(positive_weights, list) else []:
            _check_number("BinaryCrossEntropy", "positive_weights", weight)
        self.positive_weights = positive_weights
        fixed = torch.tensor(positive_weights) if isinstance(positive_weights, list) else None
        self.register_buffer("ratios", fixed, persistent=False)

    def set_counts(self, present: Sequence[int], absent: Sequence[int]) -> None:
        """Compute balanced weights from the numbers of training samples with and without each class.

        Raises:
            UserError: if the number of weights is not the number of classes.
        """
        if self.positive_weights == "balanced":
            positives, negatives = (torch.tensor(counts, dtype=torch.float) for counts in (present, absent))
            self.ratios = negatives.clamp(min=1) / positives.clamp(min=1)
        elif self.ratios is not None and len(self.ratios) != len(present):
            raise UserError(
                f"BinaryCrossEntropy was given {len(self.ratios)} positive_weights, expected one for each of the "
                f"{len(present)} classes"
            )

    def forward(
        self, scores: Scores, target: LabelMatrix, weights: ClassWeights | None, label_smoothing: float
    ) -> Float[Tensor, "B C"]:
        """Return the loss of each label.

        Raises:
            UserError: if the weights are balanced, and no data module has counted the classes.
        """
        if self.positive_weights == "balanced" and self.ratios is None:
            raise UserError("positive_weights: balanced counts the training samples: train with a FusionData")
        smoothed = _labels(target, scores) * (1 - label_smoothing) + label_smoothing / 2
        ratios = None if self.ratios is None else self.ratios.to(scores.device)
        losses = F.binary_cross_entropy_with_logits(scores, smoothed, weights, reduction="none", pos_weight=ratios)
        return losses.masked_fill(target < 0, 0.0)


class Focal(Criterion):
    """Focal loss, which reduces the weight of samples that are already predicted well.

    Exclusive classes: ``-(1 - p_y)^γ log p_y`` with the softmax p. Several labels: ``-(1 - p_t)^γ log p_t`` per label,
    where ``p_t`` is the probability of the right value; with ``alpha``, times α for present labels and
    1 - α for absent ones.

    Source: "Focal Loss for Dense Object Detection", arXiv:1708.02002, equations 4 and 5, which has the sigmoid only.

    Args:
        gamma: exponent γ, 0 or more; 0 = cross-entropy.
        alpha: weight α of present labels, in [0, 1]; null = no weights. For several labels only.

    Raises:
        UserError: if an argument is out of range.
    """

    exclusive_classes = True
    several_labels = True

    def __init__(self, gamma: float = 2.0, alpha: float | None = None) -> None:
        super().__init__()
        _check_number("Focal", "gamma", gamma)
        if alpha is not None and not 0 <= alpha <= 1:
            raise UserError(f"Focal was given alpha={alpha}, expected a number from 0 to 1")
        self.gamma, self.alpha = gamma, alpha

    def forward(
        self, scores: Scores, target: Tensor, weights: ClassWeights | None, label_smoothing: float
    ) -> Float[Tensor, "B *K"]:
        """Return the loss of each sample or label."""
        if target.ndim == 1:
            losses = F.cross_entropy(scores, target, reduction="none")
            class_weights = 1.0 if weights is None else weights[target]
            return class_weights * _power(1 - (-losses).exp(), self.gamma) * losses
        labels = _labels(target, scores)
        losses = F.binary_cross_entropy_with_logits(scores, labels, weights, reduction="none")
        wrong = (scores.sigmoid() - labels).abs()  # 1 - p_t
        balance = 1.0 if self.alpha is None else self.alpha * labels + (1 - self.alpha) * (1 - labels)
        return (balance * _power(wrong, self.gamma) * losses).masked_fill(target < 0, 0.0)


class Asymmetric(Criterion):
    """Asymmetric loss (ASL), which reduces the weight of absent labels, most of which are easy.

    Present labels: ``-(1 - p)^γ₊ log p``. Absent labels: ``-q^γ₋ log (1 - q)`` with ``q = max(p - m, 0)``.

    Source: "Asymmetric Loss For Multi-Label Classification", arXiv:2009.14119, equation 6, with its γ₋ = 4, γ₊ = 0 and
    m = 0.05 for MS-COCO. The authors' code has γ₊ = 1 as its default, and no gradient of the focusing factors.

    Args:
        gamma_negative: exponent γ₋ for absent labels, 0 or more.
        gamma_positive: exponent γ₊ for present labels, 0 or more.
        margin: probability m below which an absent label has loss 0, in [0, 1).

    Raises:
        UserError: if an argument is out of range.
    """

    several_labels = True

    def __init__(self, gamma_negative: float = 4.0, gamma_positive: float = 0.0, margin: float = 0.05) -> None:
        super().__init__()
        _check_number("Asymmetric", "gamma_negative", gamma_negative)
        _check_number("Asymmetric", "gamma_positive", gamma_positive)
        if not 0 <= margin < 1:
            raise UserError(f"Asymmetric was given margin={margin}, expected a probability below 1")
        self.gamma_negative, self.gamma_positive, self.margin = gamma_negative, gamma_positive, margin

    def forward(
        self, scores: Scores, target: LabelMatrix, weights: ClassWeights | None, label_smoothing: float
    ) -> Float[Tensor, "B C"]:
        """Return the loss of each label."""
        probability = scores.sigmoid()
        factor = _power(probability - self.margin, self.gamma_negative)
        present = -_power(1 - probability, self.gamma_positive) * F.logsigmoid(scores)
        # 1 - q = min(1 - p + m, 1); computed from sigmoid(-f), which does not underflow.
        absent = -factor * (scores.neg().sigmoid() + self.margin).clamp(max=1).log()
        if not self.margin:
            absent = -factor * F.logsigmoid(-scores)
        losses = torch.where(target == 1, present, absent) * (1.0 if weights is None else weights)
        return losses.masked_fill(target < 0, 0.0)


def _labels(target: LabelMatrix, scores: Scores) -> Scores:
    """Return the labels as numbers, 0 if unknown."""
    return target.clamp(min=0).to(scores.dtype)


def _power(base: Tensor, exponent: float) -> Tensor:
    """Return ``max(base, 0) ** exponent`` with finite gradients, also of exponents below 1 at 0."""
    return base.clamp(min=torch.finfo(base.dtype).tiny) ** exponent


def _check_number(criterion: str, name: str, value: float) -> None:
    if not 0 <= value < math.inf:
        raise UserError(f"{criterion} was given {name}={value}, expected a number that is 0 or more")
