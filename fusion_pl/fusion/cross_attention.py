"""Fusion by a transformer in which each input attends to the other inputs."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from fusion_pl.attention import TransformerLayer
from fusion_pl.fusion.base import PresenceMask, TokenFusion, TokenMask, Tokens
from fusion_pl.layers import init_variance_preserving, masked_mean


class CrossAttention(TokenFusion):
    """Apply a transformer in which the tokens of each input attend to the tokens of all other inputs.

    Example with three inputs: the tokens (columns) to which the tokens of an input (row) may attend::

                 text  image audio
        text      ·     ×     ×       × = real tokens of the input
        image     ×     ·     ×
        audio     ×     ×     ·       · = only if the sample has no other input

    ``x = W_m · LayerNorm(token) + e_m``, where ``e_m`` is a learned embedding of input m
    ``num_layers`` times: ``x = x + Attention(LayerNorm(x))``, ``x = x + MLP(LayerNorm(x))``
    ``z`` = the mean over the present inputs of the mean of ``LayerNorm(x)`` over their tokens, ``logits = V · z + c``

    A sample with one input attends to itself, as in an ordinary transformer. There is no position embedding: the
    encoders' tokens contain their positions. ``Fused.weights`` is None: after the first layer every token contains
    information of all inputs, which cannot be attributed to one of them.

    Cost: ``S D F + L (12 S F² + 2 S² F)`` multiply-adds per sample, S = all tokens.

    Source: "Multimodal Transformer for Unaligned Multimodal Language Sequences", arXiv:1906.00295. Deviations: one
    stack of layers for all inputs instead of one per ordered pair, and one softmax over the tokens of all other inputs.
    """

    def __init__(
        self,
        dims: dict[str, int],
        num_classes: int,
        dim: int = 128,
        num_heads: int = 4,
        num_layers: int = 2,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(dims, num_classes, dim, num_heads, num_layers, dropout)
        self.layers = nn.ModuleList(TransformerLayer(dim, num_heads, dropout) for _ in range(num_layers))
        self.norm = nn.LayerNorm(dim)
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(dim, num_classes))
        init_variance_preserving(self)

    def fuse(self, tokens: list[Tokens], masks: list[TokenMask]) -> Float[Tensor, "B F"]:
        """Return the fused embedding z."""
        lengths = [mask.shape[1] for mask in masks]
        present = torch.stack([mask.any(-1) for mask in masks], dim=1)
        x = torch.cat(tokens, dim=1)
        attention_mask = cross_attention_mask(torch.cat(masks, dim=1), present, lengths)
        for layer in self.layers:
            x = layer(x, attention_mask)
        means = [masked_mean(part, mask) for part, mask in zip(self.norm(x).split(lengths, 1), masks, strict=True)]
        return masked_mean(torch.stack(means, dim=1), present)


def cross_attention_mask(mask: Bool[Tensor, "B S"], present: PresenceMask, lengths: list[int]) -> Bool[Tensor, "B S S"]:
    """Return the attention mask: entry (b, s, t) is True if token s of sample b may attend to token t.

    Every token may attend to at least one token, because a softmax over zero entries is NaN. In a sample without any
    input, every token attends to all padding tokens, and the caller masks the result.

    Args:
        mask: True = real token, for the S tokens of all inputs.
        present: which sample has which input.
        lengths: number of tokens of each input, including padding; they sum to S.
    """
    inputs = torch.arange(len(lengths), device=mask.device)
    token_input = torch.cat([mask.new_full((length,), i, dtype=torch.long) for i, length in enumerate(lengths)])
    other_count = present.sum(-1, keepdim=True) - present.long()
    is_other = token_input != inputs.unsqueeze(-1)
    allowed = mask.unsqueeze(1) & (is_other | (other_count == 0).unsqueeze(-1))  # B M S, per input
    allowed = allowed | ~present.any(-1).view(-1, 1, 1)
    return allowed[:, token_input]
