"""Fusion by the outer product of all inputs."""

from __future__ import annotations

import math

import torch
from torch import nn

from fusion_pl.fusion.base import Fusion, check_sizes
from fusion_pl.layers import EmbeddingProjection
from fusion_pl.types import Encoded, Fused, UserError

LARGEST = 100_000  # entries of the tensor; times ``hidden`` it is the parameters of the layer that reads it


class TensorFusion(Fusion):
    """Lay out every product of channels, one of each input, and let a small network read them all.

    ``u_m = W_m · LayerNorm(x_m) + b_m``, ``t = [u_1; 1] ⊗ … ⊗ [u_M; 1]``, ``h = GELU(A · LayerNorm(t) + b)``,
    ``logits = V · h + c``

    The ones keep each input alone, each pair and so on among the products. A missing input is ``[0; 1]``: all products
    with it vanish, and those without it stay.

    Cost: ``M D F + (F + 1)^M h`` multiply-adds a sample: it grows with a power of M. ``LowRank`` does not.

    Source: "Tensor Fusion Network for Multimodal Sentiment Analysis", arXiv:1707.07250, its tensor fusion layer.
    Deviations: inputs are projected linearly, and t is normalised.

    Args:
        dims: name of the input -> channels D of its vector.
        num_classes: C.
        dim: channels F that each input is given.
        hidden: channels of the joint embedding h.
        dropout: probability with which channels of h are dropped in training.

    Raises:
        UserError: where a size or the dropout is out of range, or the tensor would be too large.
    """

    def __init__(
        self, dims: dict[str, int], num_classes: int, dim: int = 16, hidden: int = 128, dropout: float = 0.1
    ) -> None:
        super().__init__(dims, num_classes)
        check_sizes("TensorFusion", dropout, dim=dim, hidden=hidden)
        size = (dim + 1) ** len(dims)
        if size > LARGEST:
            fits = math.floor(LARGEST ** (1 / len(dims))) - 1
            raise UserError(
                f"TensorFusion of {len(dims)} inputs with dim={dim} makes {size:,} products, more than {LARGEST:,}: "
                f"use {f'dim={fits} or less, or ' if fits else ''}LowRank"
            )
        self.project = EmbeddingProjection(dims, dim)
        self.norm = nn.LayerNorm(size)
        self.join = nn.Sequential(nn.Linear(size, hidden), nn.GELU())
        self.classify = nn.Sequential(nn.Dropout(dropout), nn.Linear(hidden, num_classes))

    def forward(self, inputs: dict[str, Encoded]) -> Fused:
        """Fuse B samples; ``embedding`` is h."""
        first, *rest = nn.functional.pad(self.project(inputs), (0, 1), value=1.0).unbind(1)
        product = first
        for vector in rest:
            product = torch.einsum("bi,bj->bij", product, vector).flatten(1)
        vector = self.join(self.norm(product))
        return Fused(self.classify(vector), vector)
