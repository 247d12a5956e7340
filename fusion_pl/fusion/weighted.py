"""Fusion by a weighted mean of embeddings."""

from __future__ import annotations

from typing import Literal

from fusion_pl.fusion.base import EmbeddingFusion, Embeddings, FusedEmbedding, PresenceMask
from fusion_pl.layers import InputWeights, mlp


class Weighted(EmbeddingFusion):
    """Average the inputs' embeddings with fixed or learned input weights.

    ``u_m = W_m · LayerNorm(x_m) + b_m``, ``z = Σ_m w_m u_m``, ``logits = MLP(z)``
    ``w`` sums to 1 over the present inputs.

    Cost: ``M D F + M F² + F²`` multiply-adds per sample; ``M F²`` only for ``weights: sample``.

    Source: "Attention-based Deep Multiple Instance Learning", arXiv:1802.04712, equation 8, for ``sample``. Deviation:
    a learned offset per input.

    Args:
        weights: ``{text: 2.0, image: 1.0}``: fixed, one number >= 0 per input, normalised over present inputs.
            ``global``: learned, one number per input. ``sample``: learned, computed from each sample's embeddings, so
            that a noisy recording can have a smaller weight (see ``fusion_pl.layers.InputWeights``).

    Raises:
        UserError: if fixed input weights do not match the inputs.
    """

    def __init__(
        self,
        dims: dict[str, int],
        num_classes: int,
        weights: dict[str, float] | Literal["global", "sample"] = "sample",
        dim: int = 128,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(dims, num_classes, dim, dropout)
        self.weighting = InputWeights(self.names, dim, weights)
        self.classifier = mlp(dim, dim, num_classes, dropout)

    def fuse(self, embeddings: Embeddings, present: PresenceMask) -> FusedEmbedding:
        """Return the fused embedding z and the input weights w."""
        weights = self.weighting(embeddings, present).exp().masked_fill(~present, 0.0)
        return FusedEmbedding((weights.unsqueeze(-1) * embeddings).sum(1), weights)
