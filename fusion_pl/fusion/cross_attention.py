"""Fusion by attention between inputs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from fusion_pl.fusion.base import Fusion, check_sizes
from fusion_pl.layers import Project, masked_mean, mlp
from fusion_pl.types import Encoded, Fused, UserError


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

    Source: "Multimodal Transformer for Unaligned Multimodal Language Sequences", arXiv:1906.00295. Deviations: one
    stack of layers for all inputs instead of one for each ordered pair, and one softmax over the tokens of all others.

    Args:
        dims: name of the input -> channels D of its tokens.
        num_classes: C.
        dim: channels F of the transformer and of the joint embedding z; its MLPs are four times as wide.
        num_heads: H, a divisor of ``dim``.
        num_layers: L.
        dropout: probability in attention, residual branches and before the classifier, in training.

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
        if dim % num_heads:
            raise UserError(
                f"CrossAttention was given dim={dim} and num_heads={num_heads}: the heads share the channels equally, "
                "so dim must be a multiple of num_heads"
            )
        # Without a bias: the input's embedding is one.
        self.project = nn.ModuleDict({name: Project(channels, dim, bias=False) for name, channels in dims.items()})
        self.embedding = nn.Parameter(torch.randn(len(dims), dim) * 0.02)
        self.layers = nn.ModuleList(Layer(dim, num_heads, dropout) for _ in range(num_layers))
        self.norm = nn.LayerNorm(dim)
        self.classify = nn.Sequential(nn.Dropout(dropout), nn.Linear(dim, num_classes))

    def forward(self, inputs: dict[str, Encoded]) -> Fused:
        """Fuse B samples; ``vector`` is z."""
        masks = [inputs[name].mask for name in self.names]
        lengths = [mask.shape[1] for mask in masks]
        present = self.present(inputs)
        tokens = [project(inputs[name].tokens, inputs[name].mask) for name, project in self.project.items()]
        x = torch.cat([one + embedding for one, embedding in zip(tokens, self.embedding, strict=True)], dim=1)
        allowed = across(torch.cat(masks, dim=1), present, lengths)
        for layer in self.layers:
            x = layer(x, allowed)
        pooled = [masked_mean(one, mask) for one, mask in zip(self.norm(x).split(lengths, 1), masks, strict=True)]
        vector = masked_mean(torch.stack(pooled, dim=1), present)
        return Fused(self.classify(vector), vector)


def across(real: Bool[Tensor, "B S"], present: Bool[Tensor, "B M"], lengths: list[int]) -> Bool[Tensor, "B 1 S S"]:
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
    return seen[:, owner].unsqueeze(1)


class Layer(nn.Module):
    """One pre-norm transformer layer under a mask.

    Args:
        dim: channels F.
        num_heads: H.
        dropout: probability, in training.
    """

    def __init__(self, dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = nn.Dropout(dropout)
        self.norm_attention = nn.LayerNorm(dim)
        self.query_key_value = nn.Linear(dim, 3 * dim, bias=False)
        self.join_heads = nn.Linear(dim, dim)
        self.norm_mlp = nn.LayerNorm(dim)
        self.mlp = mlp(dim, 4 * dim, dim, dropout)

    def forward(self, x: Float[Tensor, "B S F"], allowed: Bool[Tensor, "B 1 S S"]) -> Float[Tensor, "B S F"]:
        """Attend where ``allowed``, then transform each token."""
        split = self.query_key_value(self.norm_attention(x)).unflatten(-1, (3, self.num_heads, -1))
        query, key, value = split.permute(2, 0, 3, 1, 4)
        dropout = self.dropout.p if self.training else 0.0
        heads = F.scaled_dot_product_attention(query, key, value, attn_mask=allowed, dropout_p=dropout)
        x = x + self.dropout(self.join_heads(heads.transpose(1, 2).flatten(2)))
        transformed: Tensor = self.dropout(self.mlp(self.norm_mlp(x)))
        return x + transformed
