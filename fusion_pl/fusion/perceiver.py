"""Fusion by a few learned readers."""

from __future__ import annotations

import torch
from torch import nn

from fusion_pl.attention import POSITIONS, TokenProjection, TransformerLayer, to_attention_mask
from fusion_pl.fusion.base import Fusion, check_sizes
from fusion_pl.layers import keep_variance
from fusion_pl.types import Encoded, Fused


class Perceiver(Fusion):
    """Let N learned latents read all tokens of all inputs, then think among themselves: linear in the number of tokens.

    ``x_{m,t} = W_m · LayerNorm(token_t of m) + e_m + p_t``, ``l`` = N learned latents; L times:
    ``l = cross-attention layer, queries l, context [x_1, …, x_M]``, ``l = self-attention layer over l``
    ``z = mean of LayerNorm(l)``, ``logits = V · z + c``

    Cost: ``S D F + L (2 S F² + 2 N S F + 22 N F² + 2 N² F)`` multiply-adds a sample, S = all tokens.

    Source: "Perceiver: General Perception with Iterative Attention", arXiv:2103.03206, with its learned instead of
    Fourier positions, and weights of its own for every repetition.

    Args:
        dims: name of the input -> channels D of its tokens.
        num_classes: C.
        dim: channels F of tokens and latents; the MLPs are four times as wide.
        num_heads: H, a divisor of ``dim``.
        num_layers: L.
        num_latents: N.
        dropout: probability in residual branches and before the classifier, in training.

    Raises:
        UserError: where ``num_heads`` does not divide ``dim``, or a size or the dropout is out of range.
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
        super().__init__(dims, num_classes)
        check_sizes("Perceiver", dropout, dim=dim, num_heads=num_heads, num_layers=num_layers, num_latents=num_latents)
        self.project = TokenProjection(dims, dim, positions=POSITIONS)
        self.latents = nn.Parameter(torch.randn(num_latents, dim) * 0.02)
        self.read = nn.ModuleList(TransformerLayer(dim, num_heads, dropout, cross=True) for _ in range(num_layers))
        self.think = nn.ModuleList(TransformerLayer(dim, num_heads, dropout) for _ in range(num_layers))
        self.norm = nn.LayerNorm(dim)
        self.classify = nn.Sequential(nn.Dropout(dropout), nn.Linear(dim, num_classes))
        keep_variance(self)

    def forward(self, inputs: dict[str, Encoded]) -> Fused:
        """Fuse B samples; ``embedding`` is z. The latents of a sample without any input think, but read nothing."""
        context = torch.cat(self.project(inputs), dim=1)
        mask = torch.cat([inputs[name].mask for name in self.names], dim=1)
        found = mask.any(-1)[:, None, None]
        latents = self.latents.expand(mask.shape[0], -1, -1).to(context.dtype)
        everyone = mask.new_ones(1, 1, latents.shape[1])
        for read, think in zip(self.read, self.think, strict=True):
            told = read(latents, to_attention_mask(mask), context)
            latents = think(torch.where(found, told, latents.to(told.dtype)), everyone.expand(mask.shape[0], -1, -1))
        vector = self.norm(latents).mean(1)
        return Fused(self.classify(vector), vector)
