"""The training loss."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from fusion_pl.fusion.base import CrossEntropyFunction
from fusion_pl.types import UserError


@dataclass(frozen=True)
class Loss:
    """Cross-entropy of the fusion head's prediction and, optionally, of an auxiliary head per input.

    Args:
        label_smoothing: share of the target probability that is distributed over all classes, in [0, 1).
        class_weights: one weight per class, or ``balanced`` for the inverse class frequency in the training split.
        auxiliary_weight: weight of the sum of the auxiliary losses, 0 or more. Above 0, each input has an auxiliary
            head: a linear classifier on its embedding, used in training only, so that each encoder learns to classify
            even if the encoder of another input learns faster.
            Source: the multi-task form of "What Makes Training Multi-modal Classification Networks Hard?",
            arXiv:1905.12681, with one weight for all inputs instead of an estimated weight per input.

    Raises:
        UserError: if a value is out of range.
    """

    label_smoothing: float = 0.0
    class_weights: Literal["balanced"] | list[float] | None = None
    auxiliary_weight: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise UserError(f"model.loss.label_smoothing must be at least 0 and below 1, not {self.label_smoothing}")
        if not 0 <= self.auxiliary_weight < math.inf:
            raise UserError(f"model.loss.auxiliary_weight must be 0 or more, not {self.auxiliary_weight}")

    def check_class_weights(self, classes: list[str]) -> None:
        """Raise a ``UserError`` if the class weights are invalid or their number is not the number of classes."""
        weights = self.class_weights
        if not isinstance(weights, list):
            return
        if len(weights) != len(classes):
            raise UserError(f"model.loss.class_weights has {len(weights)} numbers, expected one for each of {classes}")
        if not all(0 <= weight < math.inf for weight in weights) or not any(weights):
            raise UserError(f"model.loss.class_weights is {weights}, expected numbers that are 0 or more, not all 0")

    def cross_entropy(self, target: Int[Tensor, " B"], weights: Float[Tensor, " C"] | None) -> CrossEntropyFunction:
        r"""Return a function that computes the cross-entropy of a batch from logits and an optional sample mask.

        The loss is the weighted mean :math:`\sum_{i \in A} w_{t_i} l_i / \sum_i w_{t_i}`, so that only the ratio of
        the class weights matters. A sample outside the mask A has loss 0 but is counted in the denominator.
        """
        total: Tensor | int = len(target)
        if weights is not None:
            total = weights[target].sum()
            total = total.where(total > 0, 1.0)  # avoids 0 / 0 if all weights in the batch are 0

        def cross_entropy(logits: Tensor, mask: Tensor | None = None) -> Tensor:
            losses = F.cross_entropy(
                logits.float(), target, weights, label_smoothing=self.label_smoothing, reduction="none"
            )
            # Masked losses stay in the sum as zeros: a batch without the input still has a gradient of each parameter.
            masked = losses if mask is None else losses.masked_fill(~mask, 0.0)
            return masked.sum() / total

        return cross_entropy
