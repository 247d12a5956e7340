"""Attention under a mask, for heads that read tokens. Every mask is True = may be attended to."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from fusion_pl.layers import Projection, mlp
from fusion_pl.types import Encoded

POSITIONS = 256  # position_embedding with an embedding; all later tokens share the last one


class Attention(nn.Module):
    """Let queries read a context with several heads.

    Args:
        dim: channels F of both.
        num_heads: H, a divisor of ``dim``.
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
        """Read; every query needs a True in its row of ``attention_mask``, since a softmax over nothing is NaN."""
        query = self.query(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        key, value = self.key_value(context).unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        heads = F.scaled_dot_product_attention(query, key, value, attn_mask=attention_mask.unsqueeze(1))
        read: Tensor = self.output_projection(heads.transpose(1, 2).flatten(2))
        return read


class TransformerLayer(nn.Module):
    """One pre-norm transformer layer: attend to oneself, or to a context, then transform each token.

    Dropout is on the two residual branches alone: on attention weights and hidden channels it would draw more random
    numbers than all the rest, and keep the fused attention kernels away.

    Args:
        dim: channels F.
        num_heads: H, a divisor of ``dim``.
        dropout: probability that a channel of a residual branch is dropped, in training.
        cross: whether there is a context, normalised by a norm of its own.
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
        first: int | None = None,
    ) -> Float[Tensor, "B _ F"]:
        """Attend where ``attention_mask``, then transform.

        Args:
            x: the S tokens of a sample.
            attention_mask: which of the R = S tokens, or of the context's R, each may attend to.
            context: what is read instead of x.
            first: only these many leading tokens are wanted; the others are just read.
        """
        query = self.norm_query(x)
        assert (context is None) == (self.norm_context is None), "a layer has a context exactly if it was built for one"
        read = query if self.norm_context is None else self.norm_context(context)
        x = x[:, :first] + self.dropout(self.attention(query[:, :first], read, attention_mask))
        transformed: Tensor = self.dropout(self.mlp(self.norm_mlp(x)))
        return x + transformed


class TokenProjection(nn.Module):
    """Bring every input's tokens to one width, and mark each with the input it comes from and with its place.

    ``x_{m,t} = W_m · LayerNorm(token) + e_m + p_{min(t, positions - 1)}``, t counted over the real tokens, so that it
    does not matter on which side an encoder pads; tokens that are not real become marks alone, whatever stood there.

    Args:
        dims: name of the input -> channels D of its tokens.
        dim: the common width F.
        positions: length of the learned position embedding p, whose last entry all later tokens share; 0 = none, where
            the encoders' tokens carry their positions.
    """

    def __init__(self, dims: dict[str, int], dim: int, positions: int = 0) -> None:
        super().__init__()
        self.project = nn.ModuleDict({name: Projection(channels, dim, bias=False) for name, channels in dims.items()})
        self.embedding = nn.Parameter(torch.randn(len(dims), dim) * 0.02)
        self.position_embedding = nn.Parameter(torch.randn(positions, dim) * 0.02) if positions else None

    def forward(self, inputs: dict[str, Encoded]) -> list[Float[Tensor, "B T F"]]:
        """Projection; one sequence an input, in the order of ``dims``."""
        found = []
        for (name, project), embedding in zip(self.project.items(), self.embedding, strict=True):
            tokens = project(inputs[name].tokens, inputs[name].mask) + embedding
            if self.position_embedding is not None:
                place = (inputs[name].mask.cumsum(1) - 1).clamp(min=0, max=len(self.position_embedding) - 1)
                tokens = tokens + nn.functional.embedding(place, self.position_embedding)
            found.append(tokens)
        return found


def to_attention_mask(mask: Bool[Tensor, "B R"]) -> Bool[Tensor, "B 1 R"]:
    """Turn a mask of real tokens into what every query may attend to.

    A row without any real token may attend to all of its blank ones, because a softmax over nothing is NaN; its caller
    leaves out what comes of it.
    """
    return (mask | ~mask.any(-1, keepdim=True)).unsqueeze(1)
