"""Fusion of decisions by a classifier that learns whom to believe."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fusion_pl.fusion.base import CrossEntropy, Fusion, check_sizes
from fusion_pl.layers import UnimodalClassifiers, mlp
from fusion_pl.types import Batch, Encoded, Fused, UserError, hash_ids


class Stacking(Fusion):
    """Let every input decide, and train a classifier over their probabilities on samples that none of them has seen.

    ``P_m = softmax(V_m · GELU(W_m · LayerNorm(x_m) + b_m) + c_m)``, no opinion (log P_m := 0) where input m is missing
    ``logits = B · GELU(A · [log P_1 … log P_M, p_1 … p_M])``, ``p_m = 1`` where input m is present, else 0

    Of the training samples one in ``1 / held_out``, chosen by their ids, is kept from the inputs' classifiers (and from
    the encoders); the stacked classifier learns from these alone, with the probabilities taken as given. On samples
    that the inputs had learned by heart it would believe whichever overfits most.

    Cost: ``M D F + M F C + M C F`` multiply-adds a sample.

    Source: "Stacked Generalization", Wolpert 1992 (Neural Networks 5). Deviation: one held-out part instead of a fold
    for every sample, which would need the encoders as often as there are folds.

    Args:
        dims: name of the input -> channels D of its vector.
        num_classes: C.
        held_out: part of the training samples for the stacked classifier, in (0, 1).
        dim: hidden channels of the classifiers.
        dropout: probability with which hidden channels are dropped in training.

    Raises:
        UserError: where ``held_out``, a size or the dropout is out of range.
    """

    def __init__(
        self, dims: dict[str, int], num_classes: int, held_out: float = 0.2, dim: int = 128, dropout: float = 0.1
    ) -> None:
        super().__init__(dims, num_classes)
        check_sizes("Stacking", dropout, dim=dim)
        if not 0 < held_out < 1:
            raise UserError(f"Stacking was given held_out={held_out}, expected a part above 0 and below 1")
        self.share = held_out
        self.unimodal = UnimodalClassifiers(dims, num_classes, dim, dropout)
        self.stack = mlp(len(dims) * (num_classes + 1), dim, num_classes, dropout)

    def forward(self, inputs: dict[str, Encoded]) -> Fused:
        """Fuse B samples; ``input_logits`` are the inputs' own, zeros (no opinion) where an input is missing."""
        decisions, present = self.unimodal(inputs), self.present(inputs)
        extra = {"given": self._stacked(decisions.detach(), present)} if self.training else {}
        named = self.named(decisions)
        return Fused(self._stacked(decisions, present), input_logits=named, extra=extra)

    def _stacked(self, decisions: Float[Tensor, "B M C"], present: Bool[Tensor, "B M"]) -> Float[Tensor, "B C"]:
        known = decisions.log_softmax(-1).masked_fill(~present.unsqueeze(-1), 0.0)
        logits: Tensor = self.stack(torch.cat([known.flatten(1), present.to(decisions.dtype)], dim=-1))
        return logits

    def held_out(self, batch: Batch) -> Bool[Tensor, " B"]:
        """Choose by id, so that a sample is on the same side in every epoch, process and run."""
        hashes = batch.id_hashes  # the loader's: a compiled training step cannot read text
        if hashes is None:
            hashes = hash_ids(batch.ids).to(next(iter(batch.present.values())).device)
        return hashes % 1000 < 1000 * self.share

    def loss(self, fused: Fused, batch: Batch, cross_entropy: CrossEntropy) -> Tensor:
        """Return the classifiers' losses on their samples plus the stacked one's on the held-out ones."""
        held = self.held_out(batch)
        own = [cross_entropy(fused.input_logits[name], batch.present[name] & ~held) for name in self.names]
        return torch.stack([*own, cross_entropy(fused.extra["given"], held)]).sum()
