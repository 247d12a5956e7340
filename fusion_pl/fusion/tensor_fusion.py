"""Fusion by the outer product of all inputs."""

from __future__ import annotations

import math

import torch
from torch import nn

from fusion_pl.fusion.base import EmbeddingFusion, Embeddings, FusedEmbedding, PresenceMask
from fusion_pl.types import UserError

MAX_PRODUCTS = 100_000  # maximum number of entries in the outer product


class TensorFusion(EmbeddingFusion):
    """Compute the outer product of all inputs' embeddings and classify it by an MLP.

    ``u_m = W_m · LayerNorm(x_m) + b_m``, ``t = [u_1; 1] ⊗ … ⊗ [u_M; 1]``, ``z = GELU(A · LayerNorm(t) + b)``,
    ``logits = V · z + c``

    Because of the appended 1, t contains the products of the channels of every subset of the inputs. A missing input is
    ``[0; 1]``, so that products with its channels are 0.

    Cost: ``M D F + (F + 1)^M h`` multiply-adds per sample, exponential in M; ``LowRank`` is linear.

    Source: "Tensor Fusion Network for Multimodal Sentiment Analysis", arXiv:1707.07250, the tensor fusion layer.
    Deviations: the projections of the inputs are linear, and t is normalised.

    Args:
        dim: number of channels F of the projected embeddings u.
        hidden: number of channels of the fused embedding z.
        dropout: probability that a channel of z is dropped, in training.

    Raises:
        UserError: if the outer product is too large.
    """

    def __init__(
        self, dims: dict[str, int], num_classes: int, dim: int = 16, hidden: int = 128, dropout: float = 0.1
    ) -> None:
        super().__init__(dims, num_classes, dim, dropout, hidden=hidden)
        size = (dim + 1) ** len(dims)
        if size > MAX_PRODUCTS:
            fits = math.floor(MAX_PRODUCTS ** (1 / len(dims))) - 1
            raise UserError(
                f"TensorFusion of {len(dims)} inputs with dim={dim} makes {size:,} products, more than "
                f"{MAX_PRODUCTS:,}: use {f'dim={fits} or less, or ' if fits else ''}LowRank"
            )
        self.norm = nn.LayerNorm(size)
        self.joint_layer = nn.Sequential(nn.Linear(size, hidden), nn.GELU())
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(hidden, num_classes))

    def fuse(self, embeddings: Embeddings, present: PresenceMask) -> FusedEmbedding:
        """Return the fused embedding z."""
        product, *others = nn.functional.pad(embeddings, (0, 1), value=1.0).unbind(1)
        for other in others:
            product = torch.einsum("bi,bj->bij", product, other).flatten(1)
        return FusedEmbedding(self.joint_layer(self.norm(product)))
