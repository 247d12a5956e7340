"""Fusion by weights that one input writes for another."""

from __future__ import annotations

import torch
from torch import nn

from fusion_pl.fusion.base import Fusion, check_sizes
from fusion_pl.layers import EmbeddingProjection, masked_mean, mlp
from fusion_pl.types import Encoded, Fused


class HyperNetwork(Fusion):
    """Let the other inputs write the weights of the layer that reads an input, afresh for every sample.

    ``u_m = W_m · LayerNorm(x_m) + b_m``, ``c_m = mean of the present u_k with k other than m, + e_m`` (``e_m`` learned)
    ``A_m = reshape(H · GELU(G · c_m + g) + d)``, an F × F matrix, ``h_m = LayerNorm(u_m + A_m u_m / √F)``
    ``z = mean over the present m of h_m``, ``logits = MLP(z)``

    Cost: ``M D F + 2 M F² + M F³`` multiply-adds a sample: keep ``dim`` small.

    Source: "HyperNetworks", arXiv:1609.09106, in which a small network writes the weights of a large one. What writes
    for what, among M inputs, is ours: all others for each.

    Args:
        dims: name of the input -> channels D of its vector.
        num_classes: C.
        dim: channels F of every input and of the joint embedding z.
        hidden: channels of the classifier's hidden layer.
        dropout: probability with which hidden channels are dropped in training.

    Raises:
        UserError: where a size or the dropout is out of range.
    """

    def __init__(
        self, dims: dict[str, int], num_classes: int, dim: int = 32, hidden: int = 128, dropout: float = 0.1
    ) -> None:
        super().__init__(dims, num_classes)
        check_sizes("HyperNetwork", dropout, dim=dim, hidden=hidden)
        self.dim = dim
        self.project = EmbeddingProjection(dims, dim)
        self.embedding = nn.Parameter(torch.randn(len(dims), dim) * 0.02)
        self.write = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim * dim))
        self.norm = nn.LayerNorm(dim)
        self.classify = mlp(dim, hidden, num_classes, dropout)

    def forward(self, inputs: dict[str, Encoded]) -> Fused:
        """Fuse B samples; ``embedding`` is z."""
        vectors, present = self.project(inputs), self.present(inputs)
        others = present.sum(1, keepdim=True) - present.long()
        context = (vectors.sum(1, keepdim=True) - vectors) / others.clamp(min=1).unsqueeze(-1)
        weights = self.write(context + self.embedding).unflatten(-1, (self.dim, self.dim))
        read = torch.einsum("bmoi,bmi->bmo", weights, vectors) * self.dim**-0.5
        vector = masked_mean(self.norm(vectors + read), present)
        return Fused(self.classify(vector), vector)
