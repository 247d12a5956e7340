"""Masked attention for fusion heads that read tokens. In every attention mask, True = attend."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from fusion_pl.layers import Projection, mlp
from fusion_pl.types import Encoded

POSITIONS = 256  # default length of a position embedding


class Attention(nn.Module):
    """Multi-head attention from queries to a context.

    Args:
        dim: channels F of queries and context.
        num_heads: attention heads H, a divisor of ``dim``.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(dim, dim, bias=False)
        self.key_value = nn.Linear(dim, 2 * dim, bias=False)
        self.output_projection = nn.Linear(dim, dim)

    def forward(
        self, x: Float[Tensor, "B S F"], context: Float[Tensor, "B R F"], attention_mask: Bool[Tensor, "B #S R"]
    ) -> Float[Tensor, "B S F"]:
        """Compute attention; each row of ``attention_mask`` needs at least one True, or the softmax is NaN."""
        query = self.query(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        key, value = self.key_value(context).unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        heads = F.scaled_dot_product_attention(query, key, value, attn_mask=attention_mask.unsqueeze(1))
        output: Tensor = self.output_projection(heads.transpose(1, 2).flatten(2))
        return output


class TransformerLayer(nn.Module):
    """Pre-norm transformer layer: self-attention or cross-attention, followed by an MLP.

    Dropout is applied to the two residual branches only. Dropout on attention weights and hidden channels would need
    many more random numbers and prevent fused attention kernels.

    Args:
        dim: channels F.
        num_heads: attention heads H, a divisor of ``dim``.
        dropout: probability that a channel of a residual branch is dropped, in training.
        cross: whether the layer attends to a context, normalised by a separate LayerNorm, instead of to its own tokens.
    """

    def __init__(self, dim: int, num_heads: int, dropout: float, cross: bool = False) -> None:
        super().__init__()
        self.norm_query = nn.LayerNorm(dim)
        self.norm_context = nn.LayerNorm(dim) if cross else None
        self.attention = Attention(dim, num_heads)
        self.norm_mlp = nn.LayerNorm(dim)
        self.mlp = mlp(dim, 4 * dim, dim, dropout=0.0)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Float[Tensor, "B S F"],
        attention_mask: Bool[Tensor, "B #S R"],
        context: Float[Tensor, "B R F"] | None = None,
        num_queries: int | None = None,
    ) -> Float[Tensor, "B _ F"]:
        """Apply the layer.

        Args:
            x: S tokens per sample.
            attention_mask: which of the R tokens of the context each token may attend to.
            context: tokens to attend to; None for self-attention.
            num_queries: number of leading tokens to compute; the others serve as context only. None = all.
        """
        query = self.norm_query(x)
        assert (context is None) == (self.norm_context is None), (
            "cross-attention needs a context, and self-attention has none"
        )
        context = query if self.norm_context is None else self.norm_context(context)
        x = x[:, :num_queries] + self.dropout(self.attention(query[:, :num_queries], context, attention_mask))
        transformed: Tensor = self.dropout(self.mlp(self.norm_mlp(x)))
        return x + transformed


class TokenProjection(nn.Module):
    """Project every input's tokens to a common dimension, and add an input embedding and a position embedding.

    ``x_{m,t} = W_m · LayerNorm(token) + e_m + p_{min(t, positions - 1)}``; t counts only real tokens, so that the
    result does not depend on the side on which an encoder pads. A padding token becomes ``e_m + p``.

    Args:
        dims: name of the input -> channels D of its tokens.
        dim: common number of channels F.
        positions: length of the learned position embedding p; all later tokens share the last entry. 0 = none.
    """

    def __init__(self, dims: dict[str, int], dim: int, positions: int = 0) -> None:
        super().__init__()
        self.projection = nn.ModuleDict(
            {name: Projection(channels, dim, bias=False) for name, channels in dims.items()}
        )
        self.embedding = nn.Parameter(torch.randn(len(dims), dim) * 0.02)
        self.position_embedding = nn.Parameter(torch.randn(positions, dim) * 0.02) if positions else None

    def forward(self, inputs: dict[str, Encoded]) -> list[Float[Tensor, "B T F"]]:
        """Return one sequence per input, in the order of ``dims``."""
        sequences = []
        for (name, project), embedding in zip(self.projection.items(), self.embedding, strict=True):
            tokens = project(inputs[name].tokens, inputs[name].mask) + embedding
            if self.position_embedding is not None:
                position = (inputs[name].mask.cumsum(1) - 1).clamp(min=0, max=len(self.position_embedding) - 1)
                tokens = tokens + nn.functional.embedding(position, self.position_embedding)
            sequences.append(tokens)
        return sequences


def to_attention_mask(mask: Bool[Tensor, "B R"]) -> Bool[Tensor, "B 1 R"]:
    """Return an attention mask with which every query attends to all real tokens.

    A row without real tokens becomes all True, because a softmax over no entries is NaN; the caller must mask the
    output of such a row.
    """
    return (mask | ~mask.any(-1, keepdim=True)).unsqueeze(1)
