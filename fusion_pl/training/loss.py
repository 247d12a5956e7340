"""What training minimises."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from fusion_pl.fusion.base import Entropy
from fusion_pl.types import UserError


@dataclass(frozen=True)
class Loss:
    """Cross-entropy of the fused decision, and if wanted of each input's own.

    Args:
        label_smoothing: share of the target spread over all classes, in [0, 1).
        class_weights: one number a class, or ``balanced`` (inverse frequency in training).
        inputs: weight of the sum of the inputs' own losses, 0 or more. Each encoder then also learns to decide by
            itself (a linear classifier on its vector, used in training only), instead of leaving the work to the
            input that learns fastest.
            Source: the multi-task form of "What Makes Training Multi-modal Classification Networks Hard?",
            arXiv:1905.12681, with one weight for all instead of estimated ones.

    Raises:
        UserError: where a number is out of its range.
    """

    label_smoothing: float = 0.0
    class_weights: Literal["balanced"] | list[float] | None = None
    inputs: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise UserError(f"model.loss.label_smoothing must be at least 0 and below 1, not {self.label_smoothing}")
        if not 0 <= self.inputs < math.inf:
            raise UserError(f"model.loss.inputs must be 0 or more, not {self.inputs}")

    def check(self, classes: list[str]) -> None:
        """Refuse weights that do not fit the classes."""
        weights = self.class_weights
        if not isinstance(weights, list):
            return
        if len(weights) != len(classes):
            raise UserError(f"model.loss.class_weights has {len(weights)} numbers, expected one for each of {classes}")
        if not all(0 <= weight < math.inf for weight in weights) or not any(weights):
            raise UserError(f"model.loss.class_weights is {weights}, expected numbers that are 0 or more, not all 0")

    def entropy(self, target: Int[Tensor, " B"], weights: Float[Tensor, " C"] | None) -> Entropy:
        r"""Return the cross-entropy of a batch with these targets, for the head and for the inputs' own decisions.

        It is the weighted mean over the batch, :math:`\sum_{i \in A} w_{t_i} l_i / \sum_i w_{t_i}`, so that only the
        proportion of the class weights matters; a sample that is not among A counts as 0 and stays in the divisor.

        Args:
            target: class indices.
            weights: of the classes, None where all count alike.
        """
        total: Tensor | int = len(target)
        if weights is not None:
            total = weights[target].sum()
            total = total.where(total > 0, 1.0)  # a batch of which no sample counts

        def entropy(logits: Tensor, among: Tensor | None = None) -> Tensor:
            losses = cross_entropy(
                logits.float(), target, weights, label_smoothing=self.label_smoothing, reduction="none"
            )
            # A sum over the batch, so that one without this input gives zero, and every parameter takes part.
            counted = losses if among is None else losses.masked_fill(~among, 0.0)
            return counted.sum() / total

        return entropy
