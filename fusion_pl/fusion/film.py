"""Fusion by feature-wise linear modulation."""

from __future__ import annotations

import torch
from torch import nn

from fusion_pl.fusion.base import EmbeddingFusion, Embeddings, FusedEmbedding, PresenceMask
from fusion_pl.layers import masked_mean, mlp


class FiLM(EmbeddingFusion):
    """Scale and shift the channels of each input by factors that are computed from the other inputs.

    ``u_m = W_m · LayerNorm(x_m) + b_m``, ``(γ_m, β_m) = (1, 0) + Σ A_k · u_k over present inputs k other than m``
    ``h_m = GELU(γ_m ∘ u_m + β_m)``, ``z = mean of h_m over present inputs m``, ``logits = MLP(z)``

    Cost: ``M D F + 2 M F² + F²`` multiply-adds per sample.

    Source: "FiLM: Visual Reasoning with a General Conditioning Layer", arXiv:1709.07871, in which a question modulates
    the feature maps of a convolutional network. Deviation: each of M embeddings is modulated by all other embeddings,
    whose linear maps ``A_k · u_k`` are added, so that a missing input modulates nothing.
    """

    def __init__(self, dims: dict[str, int], num_classes: int, dim: int = 128, dropout: float = 0.1) -> None:
        super().__init__(dims, num_classes, dim, dropout)
        self.modulation = nn.ModuleList(nn.Linear(dim, 2 * dim, bias=False) for _ in dims)
        self.classifier = mlp(dim, dim, num_classes, dropout)

    def fuse(self, embeddings: Embeddings, present: PresenceMask) -> FusedEmbedding:
        """Return the fused embedding z."""
        pairs = zip(self.modulation, embeddings.unbind(1), strict=True)
        modulation = torch.stack([linear(embedding) for linear, embedding in pairs], dim=1)
        scale, shift = (modulation.sum(1, keepdim=True) - modulation).chunk(2, dim=-1)
        hidden = nn.functional.gelu((1 + scale) * embeddings + shift)
        return FusedEmbedding(masked_mean(hidden, present))
