"""Fusion by feature-wise modulation."""

from __future__ import annotations

import torch
from torch import nn

from fusion_pl.fusion.base import Fusion, check_sizes
from fusion_pl.layers import EmbeddingProjection, masked_mean, mlp
from fusion_pl.types import Encoded, Fused


class FiLM(Fusion):
    """Let every input scale and shift the channels of the others, so that a question decides what is looked for.

    ``u_m = W_m · LayerNorm(x_m) + b_m``, ``(γ_m, β_m) = (1, 0) + Σ A_k · u_k over the present k other than m``
    ``h_m = GELU(γ_m ∘ u_m + β_m)``, ``z = mean over the present m of h_m``, ``logits = MLP(z)``

    Cost: ``M D F + 2 M F² + F²`` multiply-adds a sample.

    Source: "FiLM: Visual Reasoning with a General Conditioning Layer", arXiv:1709.07871. There a question modulates the
    maps of a convolutional network; here each of M vectors is modulated by all others, by linear maps whose results are
    added, so that a missing one modulates nothing.

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
        check_sizes("FiLM", dropout, dim=dim)
        self.project = EmbeddingProjection(dims, dim)
        self.modulate = nn.ModuleList(nn.Linear(dim, 2 * dim, bias=False) for _ in dims)
        self.classify = mlp(dim, dim, num_classes, dropout)

    def forward(self, inputs: dict[str, Encoded]) -> Fused:
        """Fuse B samples; ``embedding`` is z."""
        vectors = self.project(inputs)
        sent = torch.stack([one(vector) for one, vector in zip(self.modulate, vectors.unbind(1), strict=True)], dim=1)
        scale, shift = (sent.sum(1, keepdim=True) - sent).chunk(2, dim=-1)
        hidden = nn.functional.gelu((1 + scale) * vectors + shift)
        vector = masked_mean(hidden, self.present(inputs))
        return Fused(self.classify(vector), vector)
