"""BLOCK: fusion by a bilinear form whose tensor is a block-term decomposition."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from fusion_pl.fusion.base import EmbeddingFusion, Embeddings, FusedEmbedding, PresenceMask
from fusion_pl.layers import mlp, signed_sqrt, sum_pairwise_products
from fusion_pl.types import UserError


class Block(EmbeddingFusion):
    """Split embeddings into chunks, and multiply the r-th chunks of every pair of inputs by a low-rank bilinear form.

    ``u_m = W_m · LayerNorm(x_m) + b_m``, split into R chunks ``u_{m,1} … u_{m,R}`` of equal size
    ``p_r = Σ_k Σ (A_{m,r,k} · u_{m,r}) ∘ (A_{n,r,k} · u_{n,r}) over k = 1 … rank and the present pairs m < n``
    ``q_r = signed√(p_r) / ‖signed√(p_r)‖``, where the norm is clamped to at least 0.01
    ``z = O · [q_1 … q_R] + o + Σ u_m over present inputs m``, ``logits = MLP(z)``

    For signed√ see ``fusion_pl.layers.signed_sqrt``.

    Cost: ``M D F + M rank F² / R + 2 F²`` multiply-adds per sample.

    Source: "BLOCK: Bilinear Superdiagonal Fusion for Visual Question Answering and Visual Relationship Detection",
    arXiv:1902.00038, for two inputs. Deviations: M inputs, whose pairs are added, with the same matrices A_m in all
    pairs of input m; no biases in A, unlike in the authors' code, because they would add terms for missing inputs; the
    embeddings are added to z, because a sample with a single input has no pairs; an MLP classifies z.

    Args:
        num_chunks: number of chunks R, a divisor of ``dim``.
        rank: rank of each chunk's bilinear form.

    Raises:
        UserError: if ``num_chunks`` does not divide ``dim``.
    """

    def __init__(
        self,
        dims: dict[str, int],
        num_classes: int,
        dim: int = 128,
        num_chunks: int = 8,
        rank: int = 4,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(dims, num_classes, dim, dropout, num_chunks=num_chunks, rank=rank)
        if dim % num_chunks:
            raise UserError(
                f"Block was given dim={dim} and num_chunks={num_chunks}: all chunks have the same size, so dim must be "
                "a multiple of num_chunks"
            )
        size = dim // num_chunks
        self.num_chunks = num_chunks
        self.factors = nn.Parameter(torch.randn(len(dims), num_chunks, rank, size, size) * size**-0.5)
        self.joint_layer = nn.Linear(dim, dim)
        self.classifier = mlp(dim, dim, num_classes, dropout)

    def fuse(self, embeddings: Embeddings, present: PresenceMask) -> FusedEmbedding:
        """Return the fused embedding z."""
        chunks = embeddings.view(*embeddings.shape[:2], self.num_chunks, -1)
        factors = torch.einsum("bmci,mcrio->bmcro", chunks, self.factors)
        products = sum_pairwise_products(factors).sum(2)  # B R F/R
        # A sample with one input has norm 0: with a smaller eps its gradient overflows in half precision.
        normalised = F.normalize(signed_sqrt(products), dim=-1, eps=0.01)
        return FusedEmbedding(self.joint_layer(normalised.flatten(1)) + embeddings.sum(1))
