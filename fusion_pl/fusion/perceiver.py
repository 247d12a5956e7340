"""Perceiver: fusion by learned latents that attend to the tokens of all inputs."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fusion_pl.attention import POSITIONS, TransformerLayer, to_attention_mask
from fusion_pl.fusion.base import TokenFusion, TokenMask, Tokens
from fusion_pl.layers import init_variance_preserving


class Perceiver(TokenFusion):
    """Let N learned latents attend to the tokens of all inputs and to each other, at a cost linear in the tokens.

    ``x_{m,t} = W_m · LayerNorm(token_t of m) + e_m + p_t``, ``l`` = N learned latents; L times:
    ``l = cross-attention layer, queries l, context [x_1, …, x_M]``, ``l = self-attention layer over l``
    ``z = mean of LayerNorm(l)``, ``logits = V · z + c``

    Cost: ``S D F + L (2 S F² + 2 N S F + 22 N F² + 2 N² F)`` multiply-adds per sample, S = all tokens.

    Source: "Perceiver: General Perception with Iterative Attention", arXiv:2103.03206, with a learned position
    embedding instead of Fourier features and without parameter sharing between the L repetitions.

    Args:
        num_latents: number of latents N.
    """

    def __init__(
        self,
        dims: dict[str, int],
        num_classes: int,
        dim: int = 128,
        num_heads: int = 4,
        num_layers: int = 2,
        num_latents: int = 8,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(dims, num_classes, dim, num_heads, num_layers, dropout, POSITIONS, num_latents=num_latents)
        self.latents = nn.Parameter(torch.randn(num_latents, dim) * 0.02)
        self.cross_attention = nn.ModuleList(
            TransformerLayer(dim, num_heads, dropout, cross=True) for _ in range(num_layers)
        )
        self.self_attention = nn.ModuleList(TransformerLayer(dim, num_heads, dropout) for _ in range(num_layers))
        self.norm = nn.LayerNorm(dim)
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(dim, num_classes))
        init_variance_preserving(self)

    def fuse(self, tokens: list[Tokens], masks: list[TokenMask]) -> Float[Tensor, "B F"]:
        """Return the fused embedding z. Without any input, the latents skip the cross-attention."""
        context, mask = torch.cat(tokens, dim=1), torch.cat(masks, dim=1)
        has_input = mask.any(-1)[:, None, None]
        latents = self.latents.expand(mask.shape[0], -1, -1).to(context.dtype)
        all_latents = mask.new_ones(mask.shape[0], 1, latents.shape[1])
        for cross_attention, self_attention in zip(self.cross_attention, self.self_attention, strict=True):
            attended = cross_attention(latents, to_attention_mask(mask), context)
            latents = self_attention(torch.where(has_input, attended, latents.to(attended.dtype)), all_latents)
        embedding: Tensor = self.norm(latents).mean(1)
        return embedding
