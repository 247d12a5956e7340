"""Fusion by the mean of embeddings."""

from __future__ import annotations

from fusion_pl.fusion.base import EmbeddingFusion, Embeddings, FusedEmbedding, PresenceMask
from fusion_pl.layers import masked_mean, mlp


class Mean(EmbeddingFusion):
    """Average the embeddings of the present inputs with equal weights.

    ``u_m = W_m · LayerNorm(x_m) + b_m``, ``z = mean of u_m over present inputs m``, ``logits = MLP(z)``

    Cost: ``M D F + F²`` multiply-adds per sample.

    Source: "HeMIS: Hetero-Modal Image Segmentation", arXiv:1607.05194. Deviation: the mean only, without the variance.
    """

    def __init__(self, dims: dict[str, int], num_classes: int, dim: int = 128, dropout: float = 0.1) -> None:
        super().__init__(dims, num_classes, dim, dropout)
        self.classifier = mlp(dim, dim, num_classes, dropout)

    def fuse(self, embeddings: Embeddings, present: PresenceMask) -> FusedEmbedding:
        """Return the fused embedding z, and equal input weights."""
        weights = present / present.sum(-1, keepdim=True).clamp(min=1)
        return FusedEmbedding(masked_mean(embeddings, present), weights.to(embeddings.dtype))
