"""Fusion by multiplying vectors."""

from __future__ import annotations

from torch import nn

from fusion_pl.fusion.base import Fusion, check_sizes
from fusion_pl.layers import EmbeddingProjection, mlp
from fusion_pl.types import Encoded, Fused


class Product(Fusion):
    """Multiply the inputs' vectors channel by channel, so that each can switch what the others say on, off or around.

    ``u_m = W_m · LayerNorm(x_m) + b_m``, ``z = LayerNorm(Π (1 + u_m) over the present m)``, ``logits = MLP(z)``

    The 1 makes a missing input neutral, and lets the product hold each input alone beside every combination of them.
    The norm keeps the scale where it can be learned from: a bare product of M vectors grows and shrinks like a power.

    Cost: ``M D F + F²`` multiply-adds a sample.

    Source: "VQA: Visual Question Answering", arXiv:1505.00468, which multiplies a question and a picture. Deviations:
    for any number of inputs, with the 1 and the norm.

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
        check_sizes("Product", dropout, dim=dim)
        self.project = EmbeddingProjection(dims, dim)
        self.norm = nn.LayerNorm(dim)
        self.classify = mlp(dim, dim, num_classes, dropout)

    def forward(self, inputs: dict[str, Encoded]) -> Fused:
        """Fuse B samples; ``embedding`` is z."""
        vector = self.norm((1 + self.project(inputs)).prod(1))  # a missing input is projected to zeros
        return Fused(self.classify(vector), vector)
