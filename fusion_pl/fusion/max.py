"""Fusion by the strongest voice in each channel."""

from __future__ import annotations

from fusion_pl.fusion.base import Fusion, check_sizes
from fusion_pl.layers import EmbeddingProjection, masked_max, mlp
from fusion_pl.types import Encoded, Fused


class Max(Fusion):
    """Keep, in every channel, the largest value that a present input has: one input that is sure is enough.

    ``u_m = W_m · LayerNorm(x_m) + b_m``, ``z = max u_m over the present m, channel by channel``, ``logits = MLP(z)``

    Cost: ``M D F + F²`` multiply-adds a sample.

    Source: "PointNet: Deep Learning on Point Sets for 3D Classification and Segmentation", arXiv:1612.00593, its
    symmetric function, with inputs as points and one linear map for each.

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
        check_sizes("Max", dropout, dim=dim)
        self.project = EmbeddingProjection(dims, dim)
        self.classify = mlp(dim, dim, num_classes, dropout)

    def forward(self, inputs: dict[str, Encoded]) -> Fused:
        """Fuse B samples; ``embedding`` is z."""
        vector = masked_max(self.project(inputs), self.present(inputs))
        return Fused(self.classify(vector), vector)
