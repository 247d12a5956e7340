"""Fusion by a meta-classifier, whose input is the predictions of one classifier per input."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fusion_pl.fusion.base import LateFusion, LossOfLogits
from fusion_pl.layers import mlp
from fusion_pl.types import Batch, Encoded, Fused, UserError, hash_ids


class Stacking(LateFusion):
    """Train a meta-classifier on the inputs' predicted probabilities for samples that do not train their classifiers.

    ``P_m = softmax(V_m · GELU(W_m · LayerNorm(x_m) + b_m) + c_m)``, log P_m := 0 if input m is missing
    ``logits = B · GELU(A · [log P_1 … log P_M, p_1 … p_M])``, ``p_m = 1`` if input m is present, else 0
    Of independent labels, their logits instead of ``log P_m``.

    A fraction ``held_out`` of the training samples, selected by their ids, trains only the meta-classifier; the other
    samples train only the inputs' classifiers and the encoders. If all trained on the same samples, the meta-classifier
    would prefer the input that overfits most.

    Cost: ``M D F + M F C + M C F`` multiply-adds per sample.

    Source: "Stacked Generalization", Wolpert 1992 (Neural Networks 5). Deviation: one held-out subset instead of
    cross-validation, which would need one set of encoders per fold.

    Args:
        held_out: fraction of the training samples for the meta-classifier, in (0, 1).
        dim: hidden channels of the classifiers and of the meta-classifier.

    Raises:
        UserError: if ``held_out`` is out of range.
    """

    several_labels = True

    def __init__(
        self, dims: dict[str, int], num_classes: int, held_out: float = 0.2, dim: int = 128, dropout: float = 0.1
    ) -> None:
        super().__init__(dims, num_classes, dim, dropout)
        if not 0 < held_out < 1:
            raise UserError(f"Stacking was given held_out={held_out}, expected a fraction above 0 and below 1")
        self.held_out = held_out
        self.meta_classifier = mlp(len(dims) * (num_classes + 1), dim, num_classes, dropout)

    def forward(self, inputs: dict[str, Encoded]) -> Fused:
        """Fuse B samples; ``input_logits`` are zeros if an input is missing."""
        input_logits, present = self.unimodal(inputs), self.presence_mask(inputs)
        extra = {"detached_logits": self._meta_logits(input_logits.detach(), present)} if self.training else {}
        return Fused(
            self._meta_logits(input_logits, present), input_logits=self.logits_by_input(input_logits), extra=extra
        )

    def _meta_logits(self, input_logits: Float[Tensor, "B M C"], present: Bool[Tensor, "B M"]) -> Float[Tensor, "B C"]:
        features = input_logits.log_softmax(-1) if self.exclusive_classes else input_logits
        features = features.masked_fill(~present.unsqueeze(-1), 0.0).flatten(1)
        logits: Tensor = self.meta_classifier(torch.cat([features, present.to(input_logits.dtype)], dim=-1))
        return logits

    def held_out_mask(self, batch: Batch) -> Bool[Tensor, " B"]:
        """Return a mask of the held-out samples; they are selected by id, which is the same in every epoch and run."""
        hashes = batch.id_hashes  # computed by the loader: a compiled training step cannot read text
        if hashes is None:
            hashes = hash_ids(batch.ids).to(next(iter(batch.present.values())).device)
        return hashes % 1000 < 1000 * self.held_out

    def loss(self, fused: Fused, batch: Batch, criterion: LossOfLogits) -> dict[str, Tensor]:
        """Return the meta-classifier's loss on held-out samples, and the unimodal classifiers' losses on all others."""
        held_out = self.held_out_mask(batch)
        losses = {
            f"unimodal/{name}": criterion(fused.input_logits[name], batch.present[name] & ~held_out)
            for name in self.names
        }
        return losses | {"fused": criterion(fused.extra["detached_logits"], held_out)}
