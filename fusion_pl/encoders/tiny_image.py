"""A small image encoder, trained from scratch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from fusion_pl.encoders.base import Encoder
from fusion_pl.encoders.convolution import MeanMax, check_dim
from fusion_pl.encoders.layer_mixing import Combine, as_tokens, build_layer_mixing
from fusion_pl.types import Encoded, Kind, UserError


class Pixels:
    """Turn pictures into bytes of one size: a quarter of what floats weigh on the way to the model.

    Args:
        image_size: height and width, in pixels; the picture's own proportions are not kept.
        channels: 1 (grey) or 3 (RGB).
    """

    kind: Kind = "image"

    def __init__(self, image_size: int, channels: int) -> None:
        if channels not in {1, 3}:
            raise UserError(f"TinyImage(channels={channels}): expected 1 (grey) or 3 (RGB)")
        if image_size < 8:
            raise UserError(f"TinyImage(image_size={image_size}): expected at least 8 pixels")
        self.image_size = image_size
        self.mode = "L" if channels == 1 else "RGB"

    def __call__(self, values: Sequence[Any], training: bool = False) -> dict[str, Tensor]:
        """Return ``pixels``, (P, channels, image_size, image_size)."""
        del training
        size = (self.image_size, self.image_size)
        pictures = (picture if picture.mode == self.mode else picture.convert(self.mode) for picture in values)
        resized = [picture if picture.size == size else picture.resize(size) for picture in pictures]
        pixels = torch.from_numpy(np.stack([np.asarray(picture) for picture in resized]))
        return {"pixels": pixels.unsqueeze(1) if self.mode == "L" else pixels.movedim(-1, 1)}


class TinyImage(Encoder):
    """Encode pictures by a small convolutional network; a token is a patch of eight by eight pixels and more around it.

    The vector sums up a grid twice as fine, of which each token is the mean of four places: a head that attends pays
    for every token.

    Args:
        dim: channels D.
        image_size: pictures are resized to this height and width, in pixels.
        channels: 1 (grey) or 3 (RGB).
        dropout: probability that a channel of the vector is dropped.
        coordinates: whether every convolution sees two more channels, each place's row and column. The vector forgets
            where something was seen; with them it can hold "red, above". Source: CoordConv, arXiv:1807.03247.
        combine: how all its hidden layers together become the tokens (see
            ``fusion_pl.encoders.layer_mixing.LayerMixing``); None = the last one alone does.
    """

    def __init__(
        self,
        dim: int = 64,
        image_size: int = 32,
        channels: int = 3,
        dropout: float = 0.1,
        coordinates: bool = False,
        combine: Combine | None = None,
    ) -> None:
        super().__init__()
        self.dim = check_dim("TinyImage", dim)
        self.processor = Pixels(image_size, channels)
        self.coordinates = coordinates
        self.layers = nn.Sequential(
            _conv(channels + 2 * coordinates, dim // 2, width=5, stride=2),
            _conv(dim // 2 + 2 * coordinates, dim, stride=2),
            _conv(dim + 2 * coordinates, dim),
        )
        self.hidden_layers = range(3) if combine else ()
        self.layer_mixing = build_layer_mixing(
            "TinyImage", self.hidden_layers, combine, [dim // 2, dim, dim], maps=True
        )
        if self.layer_mixing is not None:
            self.dim = self.layer_mixing.dim
        self.pool = MeanMax(self.dim, dropout)

    def forward(self, pixels: UInt8[Tensor, "P K S S"]) -> Encoded:  # type: ignore[override]
        """Return a token per patch, row by row."""
        dtype = self.pool.project.weight.dtype
        values = pixels.to(dtype, memory_format=torch.contiguous_format).div_(127.5).sub_(1)
        states = []
        for layer in self.layers:
            values = layer(_placed(values) if self.coordinates else values)
            states.append(values)
        fine, weights = as_tokens(values), None
        if self.layer_mixing is not None:
            fine, weights = self.layer_mixing(states)
        embedding = self.pool(fine, fine.new_ones(fine.shape[:2], dtype=torch.bool))
        grid = fine.transpose(1, 2).reshape(len(fine), -1, *values.shape[-2:])
        tokens = as_tokens(nn.functional.avg_pool2d(grid, 2, ceil_mode=True))
        return Encoded(tokens, tokens.new_ones(tokens.shape[:2], dtype=torch.bool), embedding, weights)


def _placed(values: Float[Tensor, "P K S S"]) -> Float[Tensor, "P K2 S S"]:
    """Append two channels, each position's row and column in [-1, 1]."""
    line = torch.linspace(-1, 1, values.shape[-1], dtype=values.dtype, device=values.device)
    places = torch.stack(torch.meshgrid(line, line, indexing="ij"))
    return torch.cat([values, places.expand(len(values), -1, -1, -1)], dim=1)


def _conv(channels_in: int, channels_out: int, width: int = 3, stride: int = 1) -> nn.Sequential:
    # Groups rather than a batch's statistics: a row must not depend on its neighbours, in training either.
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, width, stride, padding=width // 2, bias=False),
        nn.GroupNorm(4, channels_out),
        nn.ReLU(),
    )
