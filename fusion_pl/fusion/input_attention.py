"""Fusion by attention over whole inputs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from fusion_pl.fusion.base import Fusion, check_sizes
from fusion_pl.layers import EmbeddingProjection, masked_mean, mlp
from fusion_pl.types import Encoded, Fused


class InputAttention(Fusion):
    """Ask every input, in view of all of them, how much it has to say: softmax attention over the inputs' vectors.

    ``u_m = W_m · LayerNorm(x_m) + b_m``, ``q = Q · [mean of the present u_m] + r``, ``k_m = K u_m``, ``v_m = V u_m``
    For each of H heads, with its F/H channels, ``w_m = softmax over the present m of (q · k_m / √(F/H))``
    ``z = O · [Σ w_m v_m of each head] + o + mean of the present u_m``, ``logits = MLP(z)``

    In ``Weighted`` the score of an input depends on that input; here it depends on what the others hold, too.

    Cost: ``M D F + 2 M F² + 3 F²`` multiply-adds a sample.

    Source: "Attention Is All You Need", arXiv:1706.03762, section 3.2, with one query a sample and inputs as its
    sequence.

    Args:
        dims: name of the input -> channels D of its vector.
        num_classes: C.
        dim: channels F of the joint embedding z, and of the classifier's hidden layer.
        num_heads: H, a divisor of ``dim``.
        dropout: probability with which hidden channels are dropped in training.

    Raises:
        UserError: where ``num_heads`` does not divide ``dim``, or a size or the dropout is out of range.
    """

    def __init__(
        self, dims: dict[str, int], num_classes: int, dim: int = 128, num_heads: int = 4, dropout: float = 0.1
    ) -> None:
        super().__init__(dims, num_classes)
        check_sizes("InputAttention", dropout, dim=dim, num_heads=num_heads)
        self.num_heads = num_heads
        self.project = EmbeddingProjection(dims, dim)
        self.query = nn.Linear(dim, dim)
        self.key_value = nn.Linear(dim, 2 * dim, bias=False)
        self.output_projection = nn.Linear(dim, dim)
        self.classify = mlp(dim, dim, num_classes, dropout)

    def forward(self, inputs: dict[str, Encoded]) -> Fused:
        """Fuse B samples; ``embedding`` is z, and ``weights`` are w, averaged over the heads."""
        vectors, present = self.project(inputs), self.present(inputs)
        context = masked_mean(vectors, present)
        query = self.query(context).unflatten(-1, (self.num_heads, 1, -1))  # B H 1 F/H
        key, value = self.key_value(vectors).unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # B H M F/H
        # Values that carry a one for their input come back as that input's weight.
        marks = torch.eye(len(self.names), dtype=value.dtype, device=value.device).expand(*value.shape[:2], -1, -1)
        attention_mask = present | ~present.any(
            -1, keepdim=True
        )  # a softmax over nothing is NaN; nobody reads that row
        read = F.scaled_dot_product_attention(
            query, key, torch.cat([value, marks], dim=-1), attn_mask=attention_mask[:, None, None]
        )
        said, weights = read.squeeze(2).tensor_split([value.shape[-1]], dim=-1)
        vector = self.output_projection(said.flatten(1)) + context
        return Fused(self.classify(vector), vector, weights.mean(1).masked_fill(~present, 0.0))
