"""Fusion by the sum of embeddings."""

from __future__ import annotations

from fusion_pl.fusion.base import EmbeddingFusion, Embeddings, FusedEmbedding, PresenceMask
from fusion_pl.layers import mlp


class Sum(EmbeddingFusion):
    """Add the embeddings of the present inputs; unlike a mean, the sum grows with the number of inputs.

    ``u_m = W_m · LayerNorm(x_m) + b_m``, ``z = Σ u_m over present inputs m``, ``logits = MLP(z)``

    Cost: ``M D F + F²`` multiply-adds per sample.

    Source: "Deep Sets", arXiv:1703.06114, theorem 2, with one linear map per input (``DeepSet`` shares a network).
    """

    def __init__(self, dims: dict[str, int], num_classes: int, dim: int = 128, dropout: float = 0.1) -> None:
        super().__init__(dims, num_classes, dim, dropout)
        self.classifier = mlp(dim, dim, num_classes, dropout)

    def fuse(self, embeddings: Embeddings, present: PresenceMask) -> FusedEmbedding:
        """Return the fused embedding z."""
        return FusedEmbedding(embeddings.sum(1))  # the embedding of a missing input is zeros
