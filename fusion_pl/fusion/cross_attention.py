"""Fusion by attention between inputs."""

from __future__ import annotations

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from fusion_pl.attention import TokenProjection, TransformerLayer
from fusion_pl.fusion.base import Fusion, check_sizes
from fusion_pl.layers import keep_variance, masked_mean
from fusion_pl.types import Encoded, Fused


class CrossAttention(Fusion):
    """Let the tokens of every input look at the tokens of all others, so that a word can find its place in the picture.

    With three inputs, what each token (row) may attend to::

                 text  image audio
        text      ·     ×     ×       × = its real tokens
        image     ×     ·     ×
        audio     ×     ×     ·       · = only where the sample has no other input

    ``x = W_m · LayerNorm(token) + e_m``, where ``e_m`` is a learned embedding of input m
    ``num_layers`` times: ``x = x + Attention(LayerNorm(x))``, ``x = x + MLP(LayerNorm(x))``
    ``z`` = the mean over the present inputs of the mean of ``LayerNorm(x)`` over their tokens, ``logits = V · z + c``

    A sample with one input attends to itself: the head becomes an ordinary transformer instead of going blind. No
    positions are added, the encoders' tokens carry them. ``Fused.weights`` is None: from the first layer on every token
    holds something of the other inputs, and a share for each input would be made up.

    Cost: ``S D F + L (12 S F² + 2 S² F)`` multiply-adds a sample, S = all tokens.

    Source: "Multimodal Transformer for Unaligned Multimodal Language Sequences", arXiv:1906.00295. Deviations: one
    stack of layers for all inputs instead of one for each ordered pair, and one softmax over the tokens of all others.

    Args:
        dims: name of the input -> channels D of its tokens.
        num_classes: C.
        dim: channels F of the transformer and of the joint embedding z; its MLPs are four times as wide.
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
        dim: int = 128,
        num_heads: int = 4,
        num_layers: int = 2,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(dims, num_classes)
        check_sizes("CrossAttention", dropout, dim=dim, num_heads=num_heads, num_layers=num_layers)
        self.project = TokenProjection(dims, dim)
        self.layers = nn.ModuleList(TransformerLayer(dim, num_heads, dropout) for _ in range(num_layers))
        self.norm = nn.LayerNorm(dim)
        self.classify = nn.Sequential(nn.Dropout(dropout), nn.Linear(dim, num_classes))
        keep_variance(self)

    def forward(self, inputs: dict[str, Encoded]) -> Fused:
        """Fuse B samples; ``embedding`` is z."""
        masks = [inputs[name].mask for name in self.names]
        lengths = [mask.shape[1] for mask in masks]
        present = self.present(inputs)
        x = torch.cat(self.project(inputs), dim=1)
        attention_mask = across(torch.cat(masks, dim=1), present, lengths)
        for layer in self.layers:
            x = layer(x, attention_mask)
        embedding = [masked_mean(one, mask) for one, mask in zip(self.norm(x).split(lengths, 1), masks, strict=True)]
        vector = masked_mean(torch.stack(embedding, dim=1), present)
        return Fused(self.classify(vector), vector)


def across(real: Bool[Tensor, "B S"], present: Bool[Tensor, "B M"], lengths: list[int]) -> Bool[Tensor, "B S S"]:
    """Say which token may attend to which: True = may.

    Every row has at least one True, because a softmax over nothing is NaN: a sample without any input attends to all of
    its blank tokens, and nobody reads the result.

    Args:
        real: the real ones among the S tokens of all inputs, one input after the other.
        present: which inputs a sample has.
        lengths: how many of the S tokens each input holds, padding included.
    """
    inputs = torch.arange(len(lengths), device=real.device)
    owner = torch.cat([real.new_full((length,), i, dtype=torch.long) for i, length in enumerate(lengths)])
    others = present.sum(-1, keepdim=True) - present.long()  # how many inputs a sample has beside this one
    foreign = owner != inputs.unsqueeze(-1)
    seen = real.unsqueeze(1) & (foreign | (others == 0).unsqueeze(-1))  # B M S: which tokens an input sees
    seen = seen | ~present.any(-1).view(-1, 1, 1)
    return seen[:, owner]
