"""Fusion through a few shared tokens."""

from __future__ import annotations

import torch
from torch import nn

from fusion_pl.attention import POSITIONS, TokenProjection, TransformerLayer
from fusion_pl.fusion.base import Fusion, check_sizes
from fusion_pl.layers import keep_variance, masked_mean
from fusion_pl.types import Encoded, Fused, UserError


class Bottleneck(Fusion):
    """Keep the inputs' tokens apart but for a few shared ones: each input must say in N tokens what the others need.

    ``x_m = W_m · LayerNorm(tokens of m) + e_m + p_t``, ``b`` = N learned tokens; L times:
    ``[x_m, b_m] = transformer layer of m over [x_m, b]`` for every input m, ``b = mean of b_m over the present m``
    ``z = mean over the present m of the mean of LayerNorm(x_m) over its tokens``, ``logits = V · z + c``

    Nothing crosses in the first layer: with L = 1 the inputs never meet, so L is at least 2.

    Cost: ``S D F + L (12 (S + M N) F² + 2 Σ (T_m + N)² F)`` multiply-adds a sample, linear in M.

    Source: "Attention Bottlenecks for Multimodal Fusion", arXiv:2107.00135, on top of the encoders instead of in their
    upper layers. Deviation: means of tokens instead of class tokens.

    Args:
        dims: name of the input -> channels D of its tokens.
        num_classes: C.
        dim: channels F of the transformers; their MLPs are four times as wide.
        num_heads: H, a divisor of ``dim``.
        num_layers: L, at least 2.
        num_bottlenecks: N.
        dropout: probability in residual branches and before the classifier, in training.

    Raises:
        UserError: where ``num_heads`` does not divide ``dim``, there are fewer than two layers, or a size or the
            dropout is out of range.
    """

    def __init__(
        self,
        dims: dict[str, int],
        num_classes: int,
        dim: int = 64,
        num_heads: int = 4,
        num_layers: int = 2,
        num_bottlenecks: int = 4,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(dims, num_classes)
        check_sizes("Bottleneck", dropout, dim=dim, num_heads=num_heads, num_bottlenecks=num_bottlenecks)
        if num_layers < 2:
            raise UserError(f"Bottleneck was given num_layers={num_layers}: the inputs first meet in the second layer")
        self.project = TokenProjection(dims, dim, positions=POSITIONS)
        self.bottlenecks = nn.Parameter(torch.randn(num_bottlenecks, dim) * 0.02)
        self.layers = nn.ModuleList(
            nn.ModuleList(TransformerLayer(dim, num_heads, dropout) for _ in dims) for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(dim)
        self.classify = nn.Sequential(nn.Dropout(dropout), nn.Linear(dim, num_classes))
        keep_variance(self)

    def forward(self, inputs: dict[str, Encoded]) -> Fused:
        """Fuse B samples; ``embedding`` is z."""
        masks, present = [inputs[name].mask for name in self.names], self.present(inputs)
        tokens = self.project(inputs)
        shared = self.bottlenecks.expand(present.shape[0], -1, -1).to(tokens[0].dtype)
        # The bottlenecks come first, where a sample's own tokens may all be blank.
        attention_mask = [nn.functional.pad(mask, (shared.shape[1], 0), value=True).unsqueeze(1) for mask in masks]
        for layers in self.layers:
            assert isinstance(layers, nn.ModuleList)
            seen = []
            for m, layer in enumerate(layers):
                x = layer(torch.cat([shared, tokens[m]], dim=1), attention_mask[m])
                said, tokens[m] = x.tensor_split([shared.shape[1]], dim=1)
                seen.append(said)
            everywhere = present.unsqueeze(1).expand(-1, shared.shape[1], -1)
            shared = masked_mean(torch.stack(seen, dim=-2), everywhere)
        embedding = [masked_mean(self.norm(one), mask) for one, mask in zip(tokens, masks, strict=True)]
        vector = masked_mean(torch.stack(embedding, dim=1), present)
        return Fused(self.classify(vector), vector)
