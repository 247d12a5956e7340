"""Fusion by the product of embeddings."""

from __future__ import annotations

from torch import nn

from fusion_pl.fusion.base import EmbeddingFusion, Embeddings, FusedEmbedding, PresenceMask
from fusion_pl.layers import mlp


class Product(EmbeddingFusion):
    """Multiply the inputs' embeddings per channel, so that each input can scale or invert the channels of the others.

    ``u_m = W_m · LayerNorm(x_m) + b_m``, ``z = LayerNorm(Π (1 + u_m) over present inputs m)``, ``logits = MLP(z)``

    With the summand 1, a missing input does not change the product, and the expanded product contains a term for every
    subset of the inputs. The layer norm bounds the scale, which would change exponentially with the number of inputs.

    Cost: ``M D F + F²`` multiply-adds per sample.

    Source: "VQA: Visual Question Answering", arXiv:1505.00468, which multiplies the embeddings of a question and an
    image. Deviations: any number of inputs, the summand 1, and the layer norm.
    """

    def __init__(self, dims: dict[str, int], num_classes: int, dim: int = 128, dropout: float = 0.1) -> None:
        super().__init__(dims, num_classes, dim, dropout)
        self.norm = nn.LayerNorm(dim)
        self.classifier = mlp(dim, dim, num_classes, dropout)

    def fuse(self, embeddings: Embeddings, present: PresenceMask) -> FusedEmbedding:
        """Return the fused embedding z."""
        return FusedEmbedding(self.norm((1 + embeddings).prod(1)))  # the embedding of a missing input is zeros
