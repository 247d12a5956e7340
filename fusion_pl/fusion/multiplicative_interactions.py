"""Fusion by a bilinear layer without factorisation."""

from __future__ import annotations

import torch
from torch import nn

from fusion_pl.fusion.base import EmbeddingFusion, Embeddings, FusedEmbedding, PresenceMask
from fusion_pl.layers import mlp


class MultiplicativeInteractions(EmbeddingFusion):
    """Combine the inputs one after the other by a bilinear layer over all pairs of channels.

    ``u_m = W_m · LayerNorm(x_m) + b_m``, ``z_1 = u_1``
    ``z_m = LayerNorm(z_{m-1}ᵀ T_m u_m + U_m · z_{m-1} + V_m · u_m + c_m)``, ``logits = MLP(z_M)``

    A missing input leaves z unchanged; z starts as the embedding of the first present input.

    Cost: ``M D F + (M - 1) F³ + F h`` multiply-adds per sample, h = ``hidden``, and about as many parameters: use a
    small ``dim``.

    Source: "Multiplicative Interactions and Where to Find Them", Jayakumar et al., ICLR 2020, equation 1, for two
    inputs. Deviations: M inputs, combined in the order of ``model.encoders``; layer norms.

    Args:
        hidden: number of channels of the classifier's hidden layer.
    """

    def __init__(
        self, dims: dict[str, int], num_classes: int, dim: int = 32, hidden: int = 128, dropout: float = 0.1
    ) -> None:
        super().__init__(dims, num_classes, dim, dropout, hidden=hidden)
        steps = len(dims) - 1
        self.bilinear = nn.ParameterList(torch.randn(dim, dim, dim) / dim for _ in range(steps))
        self.linear = nn.ModuleList(nn.Linear(2 * dim, dim) for _ in range(steps))
        self.norm = nn.ModuleList(nn.LayerNorm(dim) for _ in range(steps))
        self.classifier = mlp(dim, hidden, num_classes, dropout)

    def fuse(self, embeddings: Embeddings, present: PresenceMask) -> FusedEmbedding:
        """Return the fused embedding z."""
        z, *others = embeddings.unbind(1)
        z_present, *others_present = present.unsqueeze(-1).unbind(1)
        layers = zip(self.bilinear, self.linear, self.norm, strict=True)
        for u, u_present, (bilinear, linear, norm) in zip(others, others_present, layers, strict=True):
            # Two einsums, because the order of products in an einsum of three operands depends on the batch size.
            product = torch.einsum("bjo,bj->bo", torch.einsum("bi,ijo->bjo", z, bilinear), u)
            combined = norm(product + linear(torch.cat([z, u], dim=-1)))
            z = torch.where(z_present & u_present, combined, torch.where(u_present, u, z).to(combined.dtype))
            z_present = z_present | u_present
        return FusedEmbedding(z)
