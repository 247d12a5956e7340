"""Fusion by gates, channel by channel."""

from __future__ import annotations

import torch
from torch import nn

from fusion_pl.fusion.base import Fusion, check_sizes
from fusion_pl.layers import EmbeddingProjection, mlp
from fusion_pl.types import Encoded, Fused


class Gated(Fusion):
    """Let a gate for each input and channel, which sees all inputs, decide how much of it passes: the gated unit.

    ``u_m = W_m · LayerNorm(x_m) + b_m``, ``h_m = tanh(u_m)``, ``g_m = σ(G_m · [u_1 … u_M] + c_m)``
    ``z = Σ g_m ∘ h_m over the present m``, ``logits = MLP(z)``

    Cost: ``M D F + M² F² + F²`` multiply-adds a sample.

    Source: "Gated Multimodal Units for Information Fusion", arXiv:1702.01992, in its form for more than two inputs
    (each its own gate, instead of one gate and its complement). Deviation: the gates see the projected inputs, in which
    a missing one is zeros, not the raw ones.

    Args:
        dims: name of the input -> channels D of its vector.
        num_classes: C.
        dim: channels F of the joint embedding z, and of the classifier's hidden layer.
        dropout: probability with which hidden channels are dropped in training.

    Raises:
        UserError: where a size or the dropout is out of range.
    """

    def __init__(self, dims: dict[str, int], num_classes: int, dim: int = 128, dropout: float = 0.1) -> None:
        super().__init__(dims, num_classes)
        check_sizes("Gated", dropout, dim=dim)
        self.project = EmbeddingProjection(dims, dim)
        self.gate = nn.Linear(len(dims) * dim, len(dims) * dim)
        self.classify = mlp(dim, dim, num_classes, dropout)

    def forward(self, inputs: dict[str, Encoded]) -> Fused:
        """Fuse B samples; ``embedding`` is z, and ``weights`` are the shares of the mean open gate."""
        vectors, present = self.project(inputs), self.present(inputs)
        gates = torch.sigmoid(self.gate(vectors.flatten(1))).view_as(vectors)
        gates = gates.masked_fill(~present.unsqueeze(-1), 0.0)
        vector = (gates * vectors.tanh()).sum(1)
        opened = gates.mean(-1)
        weights = opened / opened.sum(-1, keepdim=True).clamp(min=torch.finfo(opened.dtype).tiny)
        return Fused(self.classify(vector), vector, weights)
