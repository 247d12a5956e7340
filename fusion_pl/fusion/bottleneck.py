"""Multimodal Bottleneck Transformer (MBT): fusion by a few shared tokens."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fusion_pl.attention import POSITIONS, TransformerLayer
from fusion_pl.fusion.base import TokenFusion, TokenMask, Tokens
from fusion_pl.layers import init_variance_preserving, masked_mean
from fusion_pl.types import UserError


class Bottleneck(TokenFusion):
    """Apply one transformer per input, which exchange information through N shared bottleneck tokens only: MBT.

    ``x_m = W_m · LayerNorm(tokens of m) + e_m + p_t``, ``b`` = N learned tokens; L times:
    ``[x_m, b_m] = transformer layer of m over [x_m, b]`` for every input m, ``b = mean of b_m over present inputs m``
    ``z = mean over present inputs m of the mean of LayerNorm(x_m) over its tokens``, ``logits = V · z + c``

    After the first layer, no input has received information from another input, so L must be at least 2.

    Cost: ``S D F + L (12 (S + M N) F² + 2 Σ (T_m + N)² F)`` multiply-adds per sample, linear in M.

    Source: "Attention Bottlenecks for Multimodal Fusion", arXiv:2107.00135, on top of the encoders instead of in their
    upper layers. Deviation: means of tokens instead of class tokens.

    Args:
        num_layers: number of transformer layers L, at least 2.
        num_bottlenecks: number of bottleneck tokens N.

    Raises:
        UserError: if there are fewer than two layers.
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
        if num_layers < 2:
            raise UserError(
                f"Bottleneck was given num_layers={num_layers}, expected at least 2: one layer combines no inputs"
            )
        super().__init__(
            dims, num_classes, dim, num_heads, num_layers, dropout, POSITIONS, num_bottlenecks=num_bottlenecks
        )
        self.bottlenecks = nn.Parameter(torch.randn(num_bottlenecks, dim) * 0.02)
        self.layers = nn.ModuleList(
            nn.ModuleList(TransformerLayer(dim, num_heads, dropout) for _ in dims) for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(dim)
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(dim, num_classes))
        init_variance_preserving(self)

    def fuse(self, tokens: list[Tokens], masks: list[TokenMask]) -> Float[Tensor, "B F"]:
        """Return the fused embedding z."""
        present = torch.stack([mask.any(-1) for mask in masks], dim=1)
        shared = self.bottlenecks.expand(present.shape[0], -1, -1).to(tokens[0].dtype)
        count = shared.shape[1]
        # Tokens always attend to the bottlenecks, so no softmax is over zero entries.
        attention_masks = [nn.functional.pad(mask, (count, 0), value=True).unsqueeze(1) for mask in masks]
        for layers in self.layers:
            assert isinstance(layers, nn.ModuleList)
            bottlenecks = []
            for m, layer in enumerate(layers):
                x = layer(torch.cat([shared, tokens[m]], dim=1), attention_masks[m])
                updated, tokens[m] = x.tensor_split([count], dim=1)
                bottlenecks.append(updated)
            shared = masked_mean(torch.stack(bottlenecks, dim=-2), present.unsqueeze(1).expand(-1, count, -1))
        means = [masked_mean(self.norm(x), mask) for x, mask in zip(tokens, masks, strict=True)]
        return masked_mean(torch.stack(means, dim=1), present)
