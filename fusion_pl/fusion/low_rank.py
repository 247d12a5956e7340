"""Fusion by a low-rank factorisation of the outer product of all inputs."""

from __future__ import annotations

import torch
from torch import nn

from fusion_pl.fusion.base import EmbeddingFusion, Embeddings, FusedEmbedding, PresenceMask
from fusion_pl.layers import mlp


class LowRank(EmbeddingFusion):
    """Compute a linear map of the outer product of all inputs with low-rank weights: ``TensorFusion`` at linear cost.

    ``u_m = W_m · LayerNorm(x_m) + b_m``, ``y = Σ_r Π_m (A_{m,r} · [u_m; 1])``
    ``z = LayerNorm(y)``, ``logits = MLP(z)``

    Each channel of y is the inner product of ``[u_1; 1] ⊗ … ⊗ [u_M; 1]`` with a tensor of rank R: the sum over r of the
    outer products of the rows of ``A_{1,r} … A_{M,r}`` for this channel. A missing input is ``[0; 1]``, so that
    products with its channels are 0 and all other products remain.

    Cost: ``M D F + M rank F² + F²`` multiply-adds per sample.

    Source: "Efficient Low-rank Multimodal Fusion with Modality-Specific Factors", arXiv:1806.00064.
    Deviations: the coefficients of the R terms are part of the factors, and the result is normalised. The constant
    factors are initialised near 1, so that a product of many factors has a gradient.

    Args:
        rank: rank R of each channel's tensor.
    """

    def __init__(
        self, dims: dict[str, int], num_classes: int, dim: int = 64, rank: int = 4, dropout: float = 0.1
    ) -> None:
        super().__init__(dims, num_classes, dim, dropout, rank=rank)
        self.factors = nn.Parameter(torch.randn(len(dims), rank, dim, dim) * dim**-0.5)
        self.constants = nn.Parameter(1 + 0.1 * torch.randn(len(dims), rank, dim))
        self.norm = nn.LayerNorm(dim)
        self.classifier = mlp(dim, dim, num_classes, dropout)

    def fuse(self, embeddings: Embeddings, present: PresenceMask) -> FusedEmbedding:
        """Return the fused embedding z."""
        factors = torch.einsum("bmi,mrio->bmro", embeddings, self.factors) + self.constants
        return FusedEmbedding(self.norm(factors.prod(1).sum(1)))
