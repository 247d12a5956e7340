"""The training loss."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from fusion_pl.fusion.base import CrossEntropyFunction, Fusion
from fusion_pl.metrics import balanced_class_weights
from fusion_pl.types import Batch, Fused, UserError


@dataclass(frozen=True)
class Loss:
    """Cross-entropy of the fusion head's prediction and, optionally, of an auxiliary head per input.

    Args:
        label_smoothing: share of the target probability that is distributed over all classes, in [0, 1).
        class_weights: one weight per class, or ``balanced`` for the inverse class frequency in the training split; it
            excludes ``data.sampling: class_balanced``.
        auxiliary_weight: weight of the sum of the auxiliary losses, 0 or more. Above 0, each input has an auxiliary
            head: a linear classifier on its embedding, used in training only, so that each encoder learns to classify
            even if the encoder of another input learns faster.
            Source: the multi-task form of "What Makes Training Multi-modal Classification Networks Hard?",
            arXiv:1905.12681, with one weight for all inputs instead of an estimated weight per input.
        mixup: parameter α of the Beta(α, α) distribution of the weights with which pairs of samples are mixed in
            training, after the encoders and in all inputs alike; a common value is 0.2. 0 = samples are not mixed.
            Training accuracy then refers to the class of the sample with the larger weight. See
            ``fusion_pl.training.mixup.Pairs``.

    Raises:
        UserError: if a value is out of range.
    """

    label_smoothing: float = 0.0
    class_weights: Literal["balanced"] | list[float] | None = None
    auxiliary_weight: float = 0.0
    mixup: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise UserError(f"model.loss.label_smoothing must be at least 0 and below 1, not {self.label_smoothing}")
        if not 0 <= self.auxiliary_weight < math.inf:
            raise UserError(f"model.loss.auxiliary_weight must be 0 or more, not {self.auxiliary_weight}")
        if not 0 <= self.mixup < math.inf:
            raise UserError(f"model.loss.mixup must be 0 (off) or more, not {self.mixup}")

    def check_class_weights(self, classes: list[str]) -> None:
        """Raise a ``UserError`` if the class weights are invalid or their number is not the number of classes."""
        weights = self.class_weights
        if not isinstance(weights, list):
            return
        if len(weights) != len(classes):
            raise UserError(f"model.loss.class_weights has {len(weights)} numbers, expected one for each of {classes}")
        if not all(0 <= weight < math.inf for weight in weights) or not any(weights):
            raise UserError(f"model.loss.class_weights is {weights}, expected numbers that are 0 or more, not all 0")

    def class_weight_tensor(self, data: object) -> Float[Tensor, " C"] | None:
        """Return the class weights; None if all classes have the same weight.

        Args:
            data: data module, whose training samples ``balanced`` counts.

        Raises:
            UserError: if ``balanced`` has no data module that counts them, or one that draws all classes equally often.
        """
        if self.class_weights != "balanced":
            return None if self.class_weights is None else torch.tensor(self.class_weights, dtype=torch.float)
        if getattr(data, "sampling", None) == "class_balanced":
            raise UserError(
                "model.loss.class_weights balanced and data.sampling class_balanced exclude each other: together, rare "
                "classes would count more than frequent ones; give only one of them"
            )
        counts = getattr(data, "class_counts", None)
        if counts is None:
            raise UserError(
                "class_weights: balanced counts the training samples of a FusionData, which a stream does not know: "
                "give one number per class"
            )
        return balanced_class_weights(counts)

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

    def compute(
        self,
        fusion: Fusion,
        fused: Fused,
        auxiliary_logits: Mapping[str, Float[Tensor, "B C"]],
        batch: Batch,
        weights: Float[Tensor, " C"] | None,
    ) -> Float[Tensor, ""]:
        """Return the loss of the fusion head plus the weighted losses of the auxiliary heads.

        Args:
            fusion: the fusion head.
            fused: its output for the batch.
            auxiliary_logits: name of the input -> logits of its auxiliary head.
            batch: the batch, including its targets.
            weights: one weight per class.
        """
        assert batch.target is not None
        cross_entropy = self.cross_entropy(batch.target, weights)
        loss = fusion.loss(fused, batch, cross_entropy)
        held_out = fusion.held_out_mask(batch)
        for name, logits in auxiliary_logits.items():
            mask = batch.present[name] if held_out is None else batch.present[name] & ~held_out
            loss = loss + self.auxiliary_weight * cross_entropy(logits, mask)
        return loss
