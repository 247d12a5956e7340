"""Fusion by a sum of embeddings with one gate per channel."""

from __future__ import annotations

import torch
from torch import nn

from fusion_pl.fusion.base import EmbeddingFusion, Embeddings, FusedEmbedding, PresenceMask
from fusion_pl.layers import mlp


class Gated(EmbeddingFusion):
    """Add the inputs' embeddings, each channel multiplied by a gate that is computed from all inputs.

    ``u_m = W_m · LayerNorm(x_m) + b_m``, ``h_m = tanh(u_m)``, ``g_m = σ(G_m · [u_1 … u_M] + c_m)``
    ``z = Σ g_m ∘ h_m over present inputs m``, ``logits = MLP(z)``

    Cost: ``M D F + M² F² + F²`` multiply-adds per sample.

    Source: "Gated Multimodal Units for Information Fusion", arXiv:1702.01992, in its variant for more than two
    inputs (one gate per input, instead of one gate and its complement). Deviation: the gates are computed from the
    projected embeddings, which are zeros for a missing input, not from the encoders' embeddings.
    """

    def __init__(self, dims: dict[str, int], num_classes: int, dim: int = 128, dropout: float = 0.1) -> None:
        super().__init__(dims, num_classes, dim, dropout)
        self.gate = nn.Linear(len(dims) * dim, len(dims) * dim)
        self.classifier = mlp(dim, dim, num_classes, dropout)

    def fuse(self, embeddings: Embeddings, present: PresenceMask) -> FusedEmbedding:
        """Return the fused embedding z; the input weights are the mean gates, normalised over the inputs."""
        gates = torch.sigmoid(self.gate(embeddings.flatten(1))).view_as(embeddings)
        gates = gates.masked_fill(~present.unsqueeze(-1), 0.0)
        mean = gates.mean(-1)
        weights = mean / mean.sum(-1, keepdim=True).clamp(min=torch.finfo(mean.dtype).tiny)
        return FusedEmbedding((gates * embeddings.tanh()).sum(1), weights)
