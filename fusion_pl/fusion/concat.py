"""Fusion by concatenation."""

from __future__ import annotations

import torch
from torch import nn

from fusion_pl.fusion.base import Fusion, check_sizes
from fusion_pl.layers import EmbeddingProjection
from fusion_pl.types import Encoded, Fused


class Concat(Fusion):
    """Lay the inputs' vectors side by side and let a small network read them together: the baseline to beat.

    ``u_m = W_m · LayerNorm(x_m) + b_m`` (zeros where input m is missing), ``p_m = 1`` where it is present, else 0
    ``h = GELU(W · [u_1 … u_M, p_1 … p_M] + b)``, ``logits = V · h + c``

    The flags ``p`` let the classifier tell a missing input from one that happens to project to zero.

    Cost: ``M D F + M F h`` multiply-adds a sample, h = ``hidden``.

    Source: early fusion in "Multimodal Machine Learning: A Survey and Taxonomy", arXiv:1705.09406. Deviation: the
    flags.

    Args:
        dims: name of the input -> channels D of its vector.
        num_classes: C.
        dim: channels that each input is given.
        hidden: channels F of the joint embedding h.
        dropout: probability with which channels of h are dropped in training.

    Raises:
        UserError: where a size or the dropout is out of range.

    Example:
        >>> mask = torch.ones(2, 4, dtype=torch.bool)  # two samples, four real tokens each
        >>> image = Encoded(tokens=torch.randn(2, 4, 8), mask=mask, embedding=torch.randn(2, 8))
        >>> Concat({"image": 8}, num_classes=3)({"image": image}).logits.shape
        torch.Size([2, 3])
    """

    def __init__(
        self, dims: dict[str, int], num_classes: int, dim: int = 128, hidden: int = 256, dropout: float = 0.1
    ) -> None:
        super().__init__(dims, num_classes)
        check_sizes("Concat", dropout, dim=dim, hidden=hidden)
        self.project = EmbeddingProjection(dims, dim)
        self.join = nn.Sequential(nn.Linear(len(dims) * (dim + 1), hidden), nn.GELU())
        self.classify = nn.Sequential(nn.Dropout(dropout), nn.Linear(hidden, num_classes))

    def forward(self, inputs: dict[str, Encoded]) -> Fused:
        """Fuse B samples; ``embedding`` is h."""
        vectors = self.project(inputs)
        present = self.present(inputs).to(vectors.dtype)
        vector = self.join(torch.cat([vectors.flatten(1), present], dim=-1))
        return Fused(self.classify(vector), vector)
