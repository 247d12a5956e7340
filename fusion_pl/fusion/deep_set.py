"""Fusion of a set."""

from __future__ import annotations

import torch
from torch import nn

from fusion_pl.fusion.base import Fusion, check_sizes
from fusion_pl.layers import EmbeddingProjection, mlp
from fusion_pl.types import Encoded, Fused


class DeepSet(Fusion):
    """Treat the present inputs as a set: transform each by the same network, add, transform again.

    ``u_m = W_m · LayerNorm(x_m) + b_m``, ``z = Σ φ(u_m + e_m) over the present m``, ``logits = ρ(LayerNorm(z))``

    φ and ρ are networks of one hidden layer; ``e_m`` is a learned embedding that tells φ which input it looks at.

    Cost: ``M D F + 2 M F² + F²`` multiply-adds a sample.

    Source: "Deep Sets", arXiv:1703.06114, theorem 2.

    Args:
        dims: name of the input -> channels D of its vector.
        num_classes: C.
        dim: channels F of the joint embedding z, and of the hidden layers.
        dropout: probability with which hidden channels are dropped in training.

    Raises:
        UserError: where a size or the dropout is out of range.
    """

    def __init__(self, dims: dict[str, int], num_classes: int, dim: int = 128, dropout: float = 0.1) -> None:
        super().__init__(dims, num_classes)
        check_sizes("DeepSet", dropout, dim=dim)
        self.project = EmbeddingProjection(dims, dim)
        self.embedding = nn.Parameter(torch.randn(len(dims), dim) * 0.02)
        self.transform = mlp(dim, dim, dim, dropout)
        self.norm = nn.LayerNorm(dim)
        self.classify = mlp(dim, dim, num_classes, dropout)

    def forward(self, inputs: dict[str, Encoded]) -> Fused:
        """Fuse B samples; ``embedding`` is the normalised z."""
        members = self.transform(self.project(inputs) + self.embedding)
        kept = members.masked_fill(~self.present(inputs).unsqueeze(-1), 0.0)
        vector = self.norm(kept.sum(1))
        return Fused(self.classify(vector), vector)
