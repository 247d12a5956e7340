"""Building blocks of the small encoders: masked convolutions over sequences, pooling, and the base class."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from fusion_pl.encoders.base import Encoder
from fusion_pl.encoders.layer_mixing import Combine, LayerMixing, build_layer_mixing
from fusion_pl.layers import masked_max, masked_mean
from fusion_pl.types import Encoded, UserError


class MaskedConv(nn.Module):
    """One-dimensional convolution with layer norm, ReLU and, if the shapes allow it, a residual connection.

    Padding must be zero in the input and is zero in the output, and the layer norm is over the channels of each
    position, so that the result does not depend on the amount of padding.

    Args:
        channels_in: number of input channels D.
        channels_out: number of output channels E.
        width: kernel size, odd.
        stride: stride of the convolution; 2 halves the length of the sequence.
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
        output = self.norm(self.conv(values.transpose(1, 2)).transpose(1, 2)).relu()
        mask = mask[:, :: self.stride]  # with an odd width, output t is centred on input t * stride
        output = output * mask.unsqueeze(-1)  # faster than masked_fill, and the values are finite
        return (values + output if self.skip else output), mask


class MeanMaxPooling(nn.Module):
    """Pool a sequence by its mean and its maximum: ``W [mean, max]``.

    Args:
        dim: number of channels D.
        dropout: probability that one of the 2 D pooled channels is dropped, in training.
    """

    def __init__(self, dim: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.projection = nn.Linear(2 * dim, dim)

    def forward(self, tokens: Float[Tensor, "B T D"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B D"]:
        """Return one embedding per row; zeros if a row has no real token."""
        pooled = torch.cat([masked_mean(tokens, mask), masked_max(tokens, mask)], dim=-1)
        embedding: Tensor = self.projection(self.dropout(pooled))
        return embedding.masked_fill(~mask.any(-1, keepdim=True), 0)


class SmallEncoder(Encoder):
    """Base of the encoders that are trained from scratch.

    Args:
        dim: number of channels D, a multiple of 8.
        num_layers: number of convolutional layers, 0 or more.
        dropout: probability that a pooled channel is dropped, in training.
        combine: how hidden layers are combined, see ``fusion_pl.encoders.layer_mixing.LayerMixing``; None = only the
            last layer is used.

    Raises:
        UserError: if an argument is out of range.
    """

    layers: nn.ModuleList
    layer_mixing: LayerMixing | None
    pool: MeanMaxPooling

    def __init__(self, dim: int, num_layers: int = 0) -> None:
        super().__init__()
        if num_layers < 0:
            raise UserError(f"{type(self).__name__}(num_layers={num_layers}): expected 0 or more")
        if dim < 8 or dim % 8:
            raise UserError(f"{type(self).__name__}(dim={dim}): expected a positive multiple of 8")
        self.dim = dim

    def _add_pooling(
        self, dims: Sequence[int], combine: Combine | None, dropout: float, has_feature_maps: bool = False
    ) -> None:
        """Add the pooling, and before it the combination of the hidden layers, which have ``dims`` channels."""
        self.hidden_layers = range(len(dims)) if combine else ()
        self.layer_mixing = build_layer_mixing(type(self).__name__, self.hidden_layers, combine, dims, has_feature_maps)
        if self.layer_mixing is not None:
            self.dim = self.layer_mixing.dim
        self.pool = MeanMaxPooling(self.dim, dropout)

    def _encode_sequence(self, tokens: Float[Tensor, "B T D"], mask: Bool[Tensor, "B T"]) -> Encoded:
        """Apply ``layers``, combine hidden layers if ``combine`` is set, and pool."""
        states, weights = [tokens], None
        for layer in self.layers:
            tokens, mask = layer(tokens, mask)
            states.append(tokens)
        if self.layer_mixing is not None:
            tokens, weights = self.layer_mixing(states, mask)
            tokens = tokens * mask.unsqueeze(-1)
        return Encoded(tokens, mask, self.pool(tokens, mask), weights)
