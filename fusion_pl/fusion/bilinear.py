"""Fusion by factorised bilinear pooling."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fusion_pl.fusion.base import Fusion, check_sizes
from fusion_pl.layers import EmbeddingProjection, mlp, pair_products, signed_sqrt
from fusion_pl.types import Encoded, Fused


class Bilinear(Fusion):
    """Multiply every pair of inputs in many thin channels and sum these in small groups: bilinear pooling, factorised.

    ``u_m = W_m · LayerNorm(x_m) + b_m``, ``a_m = U_m · u_m`` with ``factor · F`` channels
    ``p = Σ a_m ∘ a_n over the present pairs m < n``, summed over each group of ``factor`` channels
    ``z = LayerNorm(signed√(p)) + Σ u_m over the present m``, ``logits = MLP(z)``

    The pairs cost no more than their inputs: ``Σ_{m<n} a_m ∘ a_n = ((Σ a_m)² − Σ a_m²) / 2``. For the root see
    ``fusion_pl.layers.signed_sqrt``.

    Cost: ``M D F + M factor F² + F²`` multiply-adds a sample.

    Source: "Hadamard Product for Low-rank Bilinear Pooling", arXiv:1610.04325 (``factor`` = 1), and "Multi-modal
    Factorized Bilinear Pooling", arXiv:1708.01471, both for two inputs. For M of them the pairs are added, each input
    using the same U in all of its pairs. Deviations: no activation on ``a_m`` (the first paper has tanh there), no
    dropout on the products (the second has it), and U has no bias, since ``b_m`` stands before it; a norm over the
    channels instead of the l2 norm; the inputs themselves are added, so that a sample with one input, which has no
    pair, is not blind.

    Args:
        dims: name of the input -> channels D of its vector.
        num_classes: C.
        dim: channels F of the joint embedding z.
        factor: products that are summed for each of its channels.
        dropout: probability with which hidden channels are dropped in training.

    Raises:
        UserError: where a size or the dropout is out of range.
    """

    def __init__(
        self, dims: dict[str, int], num_classes: int, dim: int = 128, factor: int = 4, dropout: float = 0.1
    ) -> None:
        super().__init__(dims, num_classes)
        check_sizes("Bilinear", dropout, dim=dim, factor=factor)
        self.factor = factor
        self.project = EmbeddingProjection(dims, dim)
        self.widen = nn.ModuleList(nn.Linear(dim, factor * dim, bias=False) for _ in dims)
        self.norm = nn.LayerNorm(dim)
        self.classify = mlp(dim, dim, num_classes, dropout)

    def forward(self, inputs: dict[str, Encoded]) -> Fused:
        """Fuse B samples; ``embedding`` is z."""
        vectors = self.project(inputs)
        wide = torch.stack([one(vector) for one, vector in zip(self.widen, vectors.unbind(1), strict=True)], dim=1)
        pairs: Tensor = pair_products(wide)
        vector = self.norm(signed_sqrt(pairs.view(pairs.shape[0], -1, self.factor).sum(-1))) + vectors.sum(1)
        return Fused(self.classify(vector), vector)
