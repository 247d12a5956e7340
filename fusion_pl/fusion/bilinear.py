"""Fusion by factorised bilinear pooling: sums of products of embeddings."""

from __future__ import annotations

import torch
from torch import nn

from fusion_pl.fusion.base import EmbeddingFusion, Embeddings, FusedEmbedding, PresenceMask
from fusion_pl.layers import mlp, signed_sqrt, sum_pairwise_products


class Bilinear(EmbeddingFusion):
    """Multiply the expanded embeddings of every pair of inputs per channel, and sum the products over channel groups.

    ``u_m = W_m · LayerNorm(x_m) + b_m``, ``a_m = U_m · u_m`` with ``factor · F`` channels
    ``p = Σ a_m ∘ a_n over the present pairs m < n``, summed over each group of ``factor`` channels
    ``z = LayerNorm(signed√(p)) + Σ u_m over present inputs m``, ``logits = MLP(z)``

    The cost of the pairs is linear in M: ``Σ_{m<n} a_m ∘ a_n = ((Σ a_m)² - Σ a_m²) / 2``. For signed√ see
    ``fusion_pl.layers.signed_sqrt``.

    Cost: ``M D F + M factor F² + F²`` multiply-adds per sample.

    Source: "Hadamard Product for Low-rank Bilinear Pooling", arXiv:1610.04325 (``factor`` = 1), and "Multi-modal
    Factorized Bilinear Pooling", arXiv:1708.01471, both for two inputs. Deviations: M inputs, whose pairs are added,
    with the same matrix U_m in all pairs of input m; no activation on ``a_m`` (tanh in the first paper); no dropout on
    the products (unlike the second paper); no bias in U, because ``u_m`` already has the bias ``b_m``; layer norm
    instead of the l2 norm; the embeddings are added to z, because a sample with a single input has no pairs.

    Args:
        factor: number of products that are summed to one channel of p.
    """

    def __init__(
        self, dims: dict[str, int], num_classes: int, dim: int = 128, factor: int = 4, dropout: float = 0.1
    ) -> None:
        super().__init__(dims, num_classes, dim, dropout, factor=factor)
        self.factor = factor
        self.expansion = nn.ModuleList(nn.Linear(dim, factor * dim, bias=False) for _ in dims)
        self.norm = nn.LayerNorm(dim)
        self.classifier = mlp(dim, dim, num_classes, dropout)

    def fuse(self, embeddings: Embeddings, present: PresenceMask) -> FusedEmbedding:
        """Return the fused embedding z."""
        expanded = [linear(embedding) for linear, embedding in zip(self.expansion, embeddings.unbind(1), strict=True)]
        products = sum_pairwise_products(torch.stack(expanded, dim=1))
        products = products.view(products.shape[0], -1, self.factor).sum(-1)
        return FusedEmbedding(self.norm(signed_sqrt(products)) + embeddings.sum(1))
