"""Fusion by the outer product of all inputs, without ever writing it down."""

from __future__ import annotations

import torch
from torch import nn

from fusion_pl.fusion.base import Fusion, check_sizes
from fusion_pl.layers import EmbeddingProjection, mlp
from fusion_pl.types import Encoded, Fused


class LowRank(Fusion):
    """Read every product of the inputs' channels through a tensor of low rank: ``TensorFusion`` at a linear price.

    ``u_m = W_m · LayerNorm(x_m) + b_m``, ``y = Σ_r Π_m (A_{m,r} · [u_m; 1])``
    ``z = LayerNorm(y)``, ``logits = MLP(z)``

    Each channel of y is what a tensor of rank R, ``Σ_r A_{1,r} ⊗ … ⊗ A_{M,r}`` of that channel's rows, makes of
    ``[u_1; 1] ⊗ … ⊗ [u_M; 1]``. A missing input is ``[0; 1]`` in it, so all products with its channels vanish and those
    without it stay.

    Cost: ``M D F + M rank F² + F²`` multiply-adds a sample.

    Source: "Efficient Low-rank Multimodal Fusion with Modality-Specific Factors", arXiv:1806.00064.
    Deviations: the weights of the R terms are taken into the factors, and the result is normalised. Factors start near
    1, where a product of many still has a gradient.

    Args:
        dims: name of the input -> channels D of its vector.
        num_classes: C.
        dim: channels F that each input is given, and of the joint embedding z.
        rank: R.
        dropout: probability with which hidden channels are dropped in training.

    Raises:
        UserError: where a size or the dropout is out of range.
    """

    def __init__(
        self, dims: dict[str, int], num_classes: int, dim: int = 64, rank: int = 4, dropout: float = 0.1
    ) -> None:
        super().__init__(dims, num_classes)
        check_sizes("LowRank", dropout, dim=dim, rank=rank)
        self.project = EmbeddingProjection(dims, dim)
        self.factors = nn.Parameter(torch.randn(len(dims), rank, dim, dim) * dim**-0.5)
        self.constants = nn.Parameter(1 + 0.1 * torch.randn(len(dims), rank, dim))
        self.norm = nn.LayerNorm(dim)
        self.classify = mlp(dim, dim, num_classes, dropout)

    def forward(self, inputs: dict[str, Encoded]) -> Fused:
        """Fuse B samples; ``embedding`` is z."""
        factors = torch.einsum("bmi,mrio->bmro", self.project(inputs), self.factors) + self.constants
        vector = self.norm(factors.prod(1).sum(1))
        return Fused(self.classify(vector), vector)
