"""Fusion by concatenation."""

from __future__ import annotations

import torch
from torch import nn

from fusion_pl.fusion.base import EmbeddingFusion, Embeddings, FusedEmbedding, PresenceMask


class Concat(EmbeddingFusion):
    """Concatenate the inputs' embeddings and classify them by an MLP: the baseline for all other heads.

    ``u_m = W_m · LayerNorm(x_m) + b_m`` (zeros if input m is missing), ``p_m = 1`` if it is present, else 0
    ``z = GELU(W · [u_1 … u_M, p_1 … p_M] + b)``, ``logits = V · z + c``

    The flags ``p`` distinguish a missing input from an input whose embedding is zero.

    Cost: ``M D F + M F h`` multiply-adds per sample, h = ``hidden``.

    Source: early fusion in "Multimodal Machine Learning: A Survey and Taxonomy", arXiv:1705.09406. Deviation: the
    presence flags p.

    Args:
        dim: number of channels F of the projected embeddings u.
        hidden: number of channels of the fused embedding z.
        dropout: probability that a channel of z is dropped, in training.

    Example:
        >>> from fusion_pl.types import Encoded
        >>> mask = torch.ones(2, 4, dtype=torch.bool)  # two samples with four real tokens each
        >>> image = Encoded(tokens=torch.randn(2, 4, 8), mask=mask, embedding=torch.randn(2, 8))
        >>> Concat({"image": 8}, num_classes=3)({"image": image}).logits.shape
        torch.Size([2, 3])
    """

    def __init__(
        self, dims: dict[str, int], num_classes: int, dim: int = 128, hidden: int = 256, dropout: float = 0.1
    ) -> None:
        super().__init__(dims, num_classes, dim, dropout, hidden=hidden)
        self.joint_layer = nn.Sequential(nn.Linear(len(dims) * (dim + 1), hidden), nn.GELU())
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(hidden, num_classes))

    def fuse(self, embeddings: Embeddings, present: PresenceMask) -> FusedEmbedding:
        """Return the fused embedding z."""
        return FusedEmbedding(
            self.joint_layer(torch.cat([embeddings.flatten(1), present.to(embeddings.dtype)], dim=-1))
        )
