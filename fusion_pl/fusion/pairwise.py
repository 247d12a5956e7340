"""Multimodal Transformer (MulT): fusion by attention between every ordered pair of inputs."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from fusion_pl.attention import POSITIONS, TransformerLayer, to_attention_mask
from fusion_pl.fusion.base import TokenFusion, TokenMask, Tokens
from fusion_pl.layers import init_variance_preserving, masked_mean


class Pairwise(TokenFusion):
    """Apply separate cross-attention layers to every ordered pair of inputs: MulT.

    ``x_m = W_m · LayerNorm(tokens of m) + e_m + p_t``; for every target m and source k other than m:
    ``y_{k→m} = L cross-attention layers, queries x_m, context x_k``
    ``y_m = self-attention layer over the mean of y_{k→m} over present inputs k``, or over ``x_m`` if no k is present
    ``v_m = mean of LayerNorm(y_m) over its tokens``, zeros if m is missing
    ``z = GELU(A · [v_1 … v_M] + a)``, ``logits = V · z + c``

    Cost: ``M T D F + M ((M - 1) L + 1) (12 T F² + 2 T² F)`` multiply-adds per sample, quadratic in M.

    Source: "Multimodal Transformer for Unaligned Multimodal Language Sequences", arXiv:1906.00295. Deviations: the
    results for a target are averaged over its sources instead of concatenated, so that a missing source is left out
    exactly; the mean of the sequence instead of its last token; learned positions. Unlike the authors' code: one
    self-attention layer instead of at least three; GELU instead of ReLU; tokens are not multiplied by √F before
    positions are added; no norm after the last cross-attention layer; separate norms for query and context; a hidden
    layer A instead of a residual block before the classifier. As in the paper, every layer has the same context: the
    projected source tokens ``x_k``.
    """

    def __init__(
        self,
        dims: dict[str, int],
        num_classes: int,
        dim: int = 64,
        num_heads: int = 4,
        num_layers: int = 1,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(dims, num_classes, dim, num_heads, num_layers, dropout, POSITIONS)
        self.cross = nn.ModuleList(
            nn.ModuleList(TransformerLayer(dim, num_heads, dropout, cross=True) for _ in range(num_layers))
            for _ in range(len(dims) * (len(dims) - 1))
        )
        self.layers = nn.ModuleList(TransformerLayer(dim, num_heads, dropout) for _ in dims)
        self.norm = nn.LayerNorm(dim)
        self.joint_layer = nn.Sequential(nn.Linear(len(dims) * dim, dim), nn.GELU())
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(dim, num_classes))
        init_variance_preserving(self)

    def fuse(self, tokens: list[Tokens], masks: list[TokenMask]) -> Float[Tensor, "B F"]:
        """Return the fused embedding z."""
        present = torch.stack([mask.any(-1) for mask in masks], dim=1)
        stacks, means = iter(self.cross), []
        for m, (target, layer) in enumerate(zip(tokens, self.layers, strict=True)):
            sources = [k for k in range(len(masks)) if k != m]
            attended = [_apply_cross_attention(next(stacks), target, tokens[k], masks[k]) for k in sources]
            x = _mean_over_present(attended, present[:, sources], target)
            means.append(masked_mean(self.norm(layer(x, to_attention_mask(masks[m]))), masks[m]))
        embedding: Tensor = self.joint_layer(torch.cat(means, dim=-1))
        return embedding


def _apply_cross_attention(
    stack: nn.Module, target: Tokens, source: Float[Tensor, "B R F"], mask: Bool[Tensor, "B R"]
) -> Tokens:
    assert isinstance(stack, nn.ModuleList)
    for layer in stack:
        target = layer(target, to_attention_mask(mask), source)
    return target


def _mean_over_present(attended: list[Tokens], present: Bool[Tensor, "B K"], target: Tokens) -> Tokens:
    """Average the results over the present sources; return the target if no source is present."""
    if not attended:
        return target
    pairs = zip(attended, present.unbind(1), strict=True)
    masked = [result.masked_fill(~is_present[:, None, None], 0.0) for result, is_present in pairs]
    count = present.sum(1)[:, None, None]
    return torch.where(count > 0, torch.stack(masked).sum(0) / count.clamp(min=1), target.to(masked[0].dtype))
