"""Fusion by a Deep Sets network, which sums transformed embeddings."""

from __future__ import annotations

import torch
from torch import nn

from fusion_pl.fusion.base import EmbeddingFusion, Embeddings, FusedEmbedding, PresenceMask
from fusion_pl.layers import mlp


class DeepSet(EmbeddingFusion):
    """Transform the embedding of each present input by a shared network, add the results, and classify the sum.

    ``u_m = W_m · LayerNorm(x_m) + b_m``, ``z = Σ φ(u_m + e_m) over present inputs m``, ``logits = ρ(LayerNorm(z))``

    φ and ρ are MLPs with one hidden layer; ``e_m`` is a learned embedding of input m.

    Cost: ``M D F + 2 M F² + F²`` multiply-adds per sample.

    Source: "Deep Sets", arXiv:1703.06114, theorem 2.
    """

    def __init__(self, dims: dict[str, int], num_classes: int, dim: int = 128, dropout: float = 0.1) -> None:
        super().__init__(dims, num_classes, dim, dropout)
        self.embedding = nn.Parameter(torch.randn(len(dims), dim) * 0.02)
        self.transform = mlp(dim, dim, dim, dropout)
        self.norm = nn.LayerNorm(dim)
        self.classifier = mlp(dim, dim, num_classes, dropout)

    def fuse(self, embeddings: Embeddings, present: PresenceMask) -> FusedEmbedding:
        """Return the normalised fused embedding z."""
        transformed = self.transform(embeddings + self.embedding).masked_fill(~present.unsqueeze(-1), 0.0)
        return FusedEmbedding(self.norm(transformed.sum(1)))
