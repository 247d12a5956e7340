"""Fusion by linear layers whose parameters are computed from the other inputs."""

from __future__ import annotations

import torch
from torch import nn

from fusion_pl.fusion.base import EmbeddingFusion, Embeddings, FusedEmbedding, PresenceMask
from fusion_pl.layers import masked_mean, mlp


class HyperNetwork(EmbeddingFusion):
    """Transform each input by a linear layer whose matrix is computed per sample from the other inputs.

    ``u_m = W_m · LayerNorm(x_m) + b_m``
    ``c_m = e_m + mean of u_k over present inputs k other than m``, where ``e_m`` is a learned embedding of input m
    ``A_m = H · GELU(G · c_m + g) + d``, reshaped to an F × F matrix, ``h_m = LayerNorm(u_m + A_m · u_m / √F)``
    ``z = mean of h_m over present inputs m``, ``logits = MLP(z)``

    Cost: ``M D F + 2 M F² + M F³`` multiply-adds per sample: use a small ``dim``.

    Source: "HyperNetworks", arXiv:1609.09106, in which a small network computes the parameters of a large one.
    Deviation: the matrix of each of M inputs is computed from all other inputs.

    Args:
        hidden: number of channels of the classifier's hidden layer.
    """

    def __init__(
        self, dims: dict[str, int], num_classes: int, dim: int = 32, hidden: int = 128, dropout: float = 0.1
    ) -> None:
        super().__init__(dims, num_classes, dim, dropout, hidden=hidden)
        self.embedding = nn.Parameter(torch.randn(len(dims), dim) * 0.02)
        self.generator = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim * dim))
        self.norm = nn.LayerNorm(dim)
        self.classifier = mlp(dim, hidden, num_classes, dropout)

    def fuse(self, embeddings: Embeddings, present: PresenceMask) -> FusedEmbedding:
        """Return the fused embedding z."""
        dim = embeddings.shape[-1]
        other_count = present.sum(1, keepdim=True) - present.long()
        others = (embeddings.sum(1, keepdim=True) - embeddings) / other_count.clamp(min=1).unsqueeze(-1)
        weights = self.generator(others + self.embedding).unflatten(-1, (dim, dim))
        update = torch.einsum("bmoi,bmi->bmo", weights, embeddings) * dim**-0.5
        return FusedEmbedding(masked_mean(self.norm(embeddings + update), present))
