"""Convolutions over sequences that know where the sequence ends."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from fusion_pl.encoders.layer_mixing import LayerMixing
from fusion_pl.layers import masked_max, masked_mean
from fusion_pl.types import Encoded, UserError


def check_dim(encoder: str, dim: int, num_layers: int = 0) -> int:
    """Return the channels D of a small encoder.

    Raises:
        UserError: where they cannot be halved and grouped, or a number of layers is negative.
    """
    if num_layers < 0:
        raise UserError(f"{encoder}(num_layers={num_layers}): expected 0 or more")
    if dim < 8 or dim % 8:
        raise UserError(f"{encoder}(dim={dim}): expected a positive multiple of 8")
    return dim


class MaskedConv(nn.Module):
    """One convolution over time with normalisation, activation and, where the shapes allow, a skip connection.

    Positions that are not real must be zero on the way in and are zero on the way out, so that a sequence's end looks
    the same whatever stands beside it in the batch. The norm is over the channels of one position for the same reason.

    Args:
        channels_in: D before.
        channels_out: E after.
        width: positions seen, odd.
        stride: 2 halves the sequence.
    """

    def __init__(self, channels_in: int, channels_out: int, width: int = 5, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels_in, channels_out, width, stride, padding=width // 2)
        self.norm = nn.LayerNorm(channels_out)
        self.stride = stride
        self.skip = stride == 1 and channels_in == channels_out

    def forward(
        self, values: Float[Tensor, "B T D"], mask: Bool[Tensor, "B T"]
    ) -> tuple[Float[Tensor, "B T2 E"], Bool[Tensor, "B T2"]]:
        """Return the new sequence and its mask; T2 = ceil(T / stride)."""
        found = self.norm(self.conv(values.transpose(1, 2)).transpose(1, 2)).relu()
        mask = mask[:, :: self.stride]  # an odd width centres output t on input t * stride
        found = found * mask.unsqueeze(-1)  # cheaper than filling, and the values are finite
        return (values + found if self.skip else found), mask


class MeanMax(nn.Module):
    """Sum up a sequence by what it is on average and by what stands out most: ``W [mean, max]``.

    Args:
        dim: channels D.
        dropout: probability that one of the 2 D figures is dropped; here, where they are few, it costs next to nothing.
    """

    def __init__(self, dim: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.project = nn.Linear(2 * dim, dim)

    def forward(self, tokens: Float[Tensor, "B T D"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B D"]:
        """Return one vector a row; zeros where a row has no real token."""
        both = torch.cat([masked_mean(tokens, mask), masked_max(tokens, mask)], dim=-1)
        embedding: Tensor = self.project(self.dropout(both))
        return embedding.masked_fill(~mask.any(-1, keepdim=True), 0)


def summed_up(
    states: Sequence[Float[Tensor, "B T D"]], mask: Bool[Tensor, "B T"], pool: MeanMax, mixing: LayerMixing | None
) -> Encoded:
    """Return an encoder's tokens and embedding: of its last state, or of all of them combined."""
    tokens, weights = states[-1], None
    if mixing is not None:
        tokens, weights = mixing(states, mask.to(tokens.dtype))
        tokens = tokens * mask.unsqueeze(-1)
    return Encoded(tokens, mask, pool(tokens, mask), weights)
