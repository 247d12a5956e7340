"""Fusion by the maximum of embeddings per channel."""

from __future__ import annotations

from fusion_pl.fusion.base import EmbeddingFusion, Embeddings, FusedEmbedding, PresenceMask
from fusion_pl.layers import masked_max, mlp


class Max(EmbeddingFusion):
    """Take the maximum of the present inputs' embeddings in each channel.

    ``u_m = W_m · LayerNorm(x_m) + b_m``, ``z = max of u_m over present inputs m, per channel``, ``logits = MLP(z)``

    Cost: ``M D F + F²`` multiply-adds per sample.

    Source: "PointNet: Deep Learning on Point Sets for 3D Classification and Segmentation", arXiv:1612.00593, its
    symmetric function, with inputs as points and one linear map per input.
    """

    def __init__(self, dims: dict[str, int], num_classes: int, dim: int = 128, dropout: float = 0.1) -> None:
        super().__init__(dims, num_classes, dim, dropout)
        self.classifier = mlp(dim, dim, num_classes, dropout)

    def fuse(self, embeddings: Embeddings, present: PresenceMask) -> FusedEmbedding:
        """Return the fused embedding z."""
        return FusedEmbedding(masked_max(embeddings, present))
