"""Fusion by averaging vectors."""

from __future__ import annotations

from fusion_pl.fusion.base import Fusion, check_sizes
from fusion_pl.layers import EmbeddingProjection, masked_mean, mlp
from fusion_pl.types import Encoded, Fused


class Mean(Fusion):
    """Average the vectors of the inputs that are present, each counting the same.

    ``u_m = W_m · LayerNorm(x_m) + b_m``, ``z = mean over the present m of u_m``, ``logits = MLP(z)``

    Cost: ``M D F + F²`` multiply-adds a sample.

    Source: "HeMIS: Hetero-Modal Image Segmentation", arXiv:1607.05194, which averages whatever inputs there are.
    Deviation: without their variance.

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
        check_sizes("Mean", dropout, dim=dim)
        self.project = EmbeddingProjection(dims, dim)
        self.classify = mlp(dim, dim, num_classes, dropout)

    def forward(self, inputs: dict[str, Encoded]) -> Fused:
        """Fuse B samples; ``embedding`` is z and ``weights`` are equal over the present inputs."""
        vectors, present = self.project(inputs), self.present(inputs)
        vector = masked_mean(vectors, present)
        weights = present / present.sum(-1, keepdim=True).clamp(min=1)
        return Fused(self.classify(vector), vector, weights.to(vectors.dtype))
