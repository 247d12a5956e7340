"""Fusion by adding vectors."""

from __future__ import annotations

from fusion_pl.fusion.base import Fusion, check_sizes
from fusion_pl.layers import EmbeddingProjection, mlp
from fusion_pl.types import Encoded, Fused


class Sum(Fusion):
    """Add up the vectors of the inputs that are present: unlike a mean, the more witnesses, the more it says.

    ``u_m = W_m · LayerNorm(x_m) + b_m``, ``z = Σ u_m over the present m``, ``logits = MLP(z)``

    Cost: ``M D F + F²`` multiply-adds a sample.

    Source: "Deep Sets", arXiv:1703.06114, theorem 2, with one linear map for each input (``DeepSet`` shares a network).

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
        check_sizes("Sum", dropout, dim=dim)
        self.project = EmbeddingProjection(dims, dim)
        self.classify = mlp(dim, dim, num_classes, dropout)

    def forward(self, inputs: dict[str, Encoded]) -> Fused:
        """Fuse B samples; ``embedding`` is z."""
        vector = self.project(inputs).sum(1)  # a missing input is projected to zeros
        return Fused(self.classify(vector), vector)
