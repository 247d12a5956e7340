"""Fusion by attention over the inputs' embeddings."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from fusion_pl.fusion.base import EmbeddingFusion, Embeddings, FusedEmbedding, PresenceMask
from fusion_pl.layers import masked_mean, mlp


class InputAttention(EmbeddingFusion):
    """Average the inputs' embeddings with weights from multi-head attention, with one query per sample.

    ``u_m = W_m · LayerNorm(x_m) + b_m``, ``q = Q · [mean of the present u_m] + r``, ``k_m = K u_m``, ``v_m = V u_m``
    For each of H attention heads with F/H channels, ``w_m = softmax over present inputs m of (q · k_m / √(F/H))``
    ``z = O · [Σ w_m v_m of each attention head] + o + mean of the present u_m``, ``logits = MLP(z)``

    Unlike in ``Weighted``, the score of an input depends on the embeddings of all inputs.

    Cost: ``M D F + 2 M F² + 3 F²`` multiply-adds per sample.

    Source: "Attention Is All You Need", arXiv:1706.03762, section 3.2, with one query per sample.

    Args:
        num_heads: number of attention heads H, a divisor of ``dim``.
    """

    def __init__(
        self, dims: dict[str, int], num_classes: int, dim: int = 128, num_heads: int = 4, dropout: float = 0.1
    ) -> None:
        super().__init__(dims, num_classes, dim, dropout, num_heads=num_heads)
        self.num_heads = num_heads
        self.query = nn.Linear(dim, dim)
        self.key_value = nn.Linear(dim, 2 * dim, bias=False)
        self.output_projection = nn.Linear(dim, dim)
        self.classifier = mlp(dim, dim, num_classes, dropout)

    def fuse(self, embeddings: Embeddings, present: PresenceMask) -> FusedEmbedding:
        """Return the fused embedding z, and the input weights w, averaged over the attention heads."""
        mean = masked_mean(embeddings, present)
        query = self.query(mean).unflatten(-1, (self.num_heads, 1, -1))  # B H 1 F/H
        key, value = self.key_value(embeddings).unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # B H M _
        # Attention to one-hot values returns the attention weights.
        one_hot = torch.eye(len(self.names), dtype=value.dtype, device=value.device).expand(*value.shape[:2], -1, -1)
        # A softmax over zero entries is NaN: a sample without inputs attends to all, and its weights are masked below.
        attention_mask = (present | ~present.any(-1, keepdim=True))[:, None, None]
        heads = F.scaled_dot_product_attention(query, key, torch.cat([value, one_hot], -1), attn_mask=attention_mask)
        attended, weights = heads.squeeze(2).tensor_split([value.shape[-1]], dim=-1)
        embedding = self.output_projection(attended.flatten(1)) + mean
        return FusedEmbedding(embedding, weights.mean(1).masked_fill(~present, 0.0))
