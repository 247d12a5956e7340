"""Fusion by attention between every ordered pair of inputs."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from fusion_pl.attention import POSITIONS, TokenProjection, TransformerLayer, to_attention_mask
from fusion_pl.fusion.base import Fusion, check_sizes
from fusion_pl.layers import keep_variance, masked_mean
from fusion_pl.types import Encoded, Fused

Tokens = Float[Tensor, "B _ F"]


class Pairwise(Fusion):
    """Give every ordered pair of inputs its own attention: the picture read for the text, the text for the picture, ...

    ``x_m = W_m · LayerNorm(tokens of m) + e_m + p_t``; for every target m and source k other than m:
    ``y_{k→m} = L cross-attention layers, queries x_m, context x_k``
    ``y_m = one self-attention layer over the mean of y_{k→m} over the present k`` (over ``x_m`` where there is none)
    ``v_m = mean of LayerNorm(y_m) over its tokens``, zeros where m is missing
    ``z = GELU(A · [v_1 … v_M] + a)``, ``logits = V · z + c``

    Cost: ``M T D F + M ((M - 1) L + 1) (12 T F² + 2 T² F)`` multiply-adds a sample: it grows with the square of M.

    Source: "Multimodal Transformer for Unaligned Multimodal Language Sequences", arXiv:1906.00295. Deviations: a
    target's results are averaged over its sources instead of laid side by side, so that a missing source is left out
    exactly; the sequence is summed up by its mean instead of its last token; positions are learned. And from the
    authors' code: one self-attention layer instead of at least three; GELU instead of ReLU; tokens are not multiplied
    by √F before positions are added; no norm after the last cross-attention layer; query and context have norms of
    their own; a hidden layer A instead of a residual block before the classifier. As in the paper, all layers read the
    source as it was before the first.

    Args:
        dims: name of the input -> channels D of its tokens.
        num_classes: C.
        dim: channels F of the transformers; their MLPs are four times as wide.
        num_heads: H, a divisor of ``dim``.
        num_layers: L.
        dropout: probability in residual branches and before the classifier, in training.

    Raises:
        UserError: where ``num_heads`` does not divide ``dim``, or a size or the dropout is out of range.
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
        super().__init__(dims, num_classes)
        check_sizes("Pairwise", dropout, dim=dim, num_heads=num_heads, num_layers=num_layers)
        self.project = TokenProjection(dims, dim, positions=POSITIONS)
        pairs = len(dims) * (len(dims) - 1)
        self.cross = nn.ModuleList(
            nn.ModuleList(TransformerLayer(dim, num_heads, dropout, cross=True) for _ in range(num_layers))
            for _ in range(pairs)
        )
        self.layers = nn.ModuleList(TransformerLayer(dim, num_heads, dropout) for _ in dims)
        self.norm = nn.LayerNorm(dim)
        self.join = nn.Sequential(nn.Linear(len(dims) * dim, dim), nn.GELU())
        self.classify = nn.Sequential(nn.Dropout(dropout), nn.Linear(dim, num_classes))
        keep_variance(self)

    def forward(self, inputs: dict[str, Encoded]) -> Fused:
        """Fuse B samples; ``embedding`` is z."""
        masks, present = [inputs[name].mask for name in self.names], self.present(inputs)
        tokens, stacks = self.project(inputs), iter(self.cross)
        vectors = []
        for m, (target, layer) in enumerate(zip(tokens, self.layers, strict=True)):
            others = [k for k in range(len(masks)) if k != m]
            read = [self._read(next(stacks), target, tokens[k], masks[k]) for k in others]
            x = self._joined(target, read, present[:, others])
            vectors.append(masked_mean(self.norm(layer(x, to_attention_mask(masks[m]))), masks[m]))
        vector = self.join(torch.cat(vectors, dim=-1))
        return Fused(self.classify(vector), vector)

    def _read(self, stack: nn.Module, target: Tokens, source: Tokens, mask: Bool[Tensor, "B R"]) -> Tokens:
        assert isinstance(stack, nn.ModuleList)
        for layer in stack:
            target = layer(target, to_attention_mask(mask), source)
        return target

    def _joined(self, target: Tokens, read: list[Tokens], present: Bool[Tensor, "B K"]) -> Tokens:
        """Average what was read from the present sources; the target itself where there is none."""
        if not read:
            return target
        kept = [one.masked_fill(~here[:, None, None], 0.0) for one, here in zip(read, present.unbind(1), strict=True)]
        count = present.sum(1)[:, None, None]
        return torch.where(count > 0, torch.stack(kept).sum(0) / count.clamp(min=1), target.to(kept[0].dtype))
