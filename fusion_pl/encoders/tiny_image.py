"""A small image encoder, trained from scratch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Real
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from fusion_pl.encoders.convolution import SmallEncoder
from fusion_pl.encoders.layer_mixing import Combine, as_tokens
from fusion_pl.processors import ImageProcessor
from fusion_pl.types import Encoded, UserError


class PixelProcessor(ImageProcessor):
    """Resize images and return uint8 tensors, a quarter of the size of floats; the model converts them.

    Args:
        image_size: height and width, in pixels; the aspect ratio changes.
        channels: 1 (grey) or 3 (RGB).
    """

    def __init__(self, image_size: int, channels: int) -> None:
        if channels not in {1, 3}:
            raise UserError(f"TinyImage(channels={channels}): expected 1 (grey) or 3 (RGB)")
        if image_size < 8:
            raise UserError(f"TinyImage(image_size={image_size}): expected at least 8 pixels")
        self.image_size = image_size
        self.mode = "L" if channels == 1 else "RGB"

    def positions(self, value: Any) -> list[NDArray[np.float64]]:
        """Return the rows and columns of the original image that each pixel covers."""
        edges = np.arange(self.image_size + 1) / self.image_size
        return [np.stack([edges[:-1], edges[1:]], 1) * size for size in (value.height, value.width)]

    def runner_settings(self) -> dict[str, Any]:
        """Return the settings of the runner."""
        settings = {"size": self.image_size, "mode": self.mode, "resample": Image.Resampling.BICUBIC.value}
        return {"kind": "Pixels", "tensor": "pixels", "edge": None, "max_ratio": 0} | settings

    def __call__(self, values: Sequence[Any], training: bool = False) -> dict[str, Tensor]:
        """Return ``pixels``, (P, channels, image_size, image_size)."""
        del training
        size = (self.image_size, self.image_size)
        images = (image if image.mode == self.mode else image.convert(self.mode) for image in values)
        resized = [image if image.size == size else image.resize(size) for image in images]
        pixels = torch.from_numpy(np.stack([np.asarray(image) for image in resized]))
        return {"pixels": pixels.unsqueeze(1) if self.mode == "L" else pixels.movedim(-1, 1)}


class TinyImage(SmallEncoder):
    """Encode images by a small convolutional network, with one token per patch of eight by eight pixels.

    The embedding is pooled from a feature map with twice the resolution of the tokens. Each token is the mean of two by
    two positions of this feature map; fewer tokens reduce the cost of attention.

    Args:
        image_size: height and width to which images are resized, in pixels.
        channels: 1 (grey) or 3 (RGB).
        coordinates: whether every convolution has two additional input channels, the row and column of each position,
            so that the pooled embedding can represent the position of an object. Source: CoordConv, arXiv:1807.03247.
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
        super().__init__(dim)
        self.processor = PixelProcessor(image_size, channels)
        self.coordinates = coordinates
        extra = 2 * coordinates  # number of coordinate channels
        first = _build_conv_block(channels + extra, dim // 2, width=5, stride=2)
        self.layers = nn.ModuleList(
            [first, _build_conv_block(dim // 2 + extra, dim, stride=2), _build_conv_block(dim + extra, dim)]
        )
        self._add_pooling([dim // 2, dim, dim], combine, dropout, has_feature_maps=True)

    def differentiable_input(self) -> str:
        """Return the name of the pixels."""
        return "pixels"

    def forward(self, pixels: Real[Tensor, "P K S S"]) -> Encoded:  # type: ignore[override]
        """Encode P images as one token per patch, row by row."""
        dtype = self.pool.projection.weight.dtype
        values = pixels.to(dtype, memory_format=torch.contiguous_format).div(127.5).sub_(1)
        states = []
        for layer in self.layers:
            values = layer(_add_coordinates(values) if self.coordinates else values)
            states.append(values)
        positions, weights = as_tokens(values), None
        if self.layer_mixing is not None:
            positions, weights = self.layer_mixing(states)
        embedding = self.pool(positions, positions.new_ones(positions.shape[:2], dtype=torch.bool))
        feature_map = positions.transpose(1, 2).reshape(positions.shape[0], -1, *values.shape[-2:])
        tokens = as_tokens(nn.functional.avg_pool2d(feature_map, 2, ceil_mode=True))
        return Encoded(tokens, tokens.new_ones(tokens.shape[:2], dtype=torch.bool), embedding, weights)


def _add_coordinates(values: Float[Tensor, "P K S S"]) -> Float[Tensor, "P K2 S S"]:
    """Append two channels, the row and column of each position in [-1, 1]."""
    line = torch.linspace(-1, 1, values.shape[-1], dtype=values.dtype, device=values.device)
    coordinates = torch.stack(torch.meshgrid(line, line, indexing="ij"))
    return torch.cat([values, coordinates.expand(values.shape[0], -1, -1, -1)], dim=1)


def _build_conv_block(channels_in: int, channels_out: int, width: int = 3, stride: int = 1) -> nn.Sequential:
    # No batch norm: the output for a sample must not depend on the other samples of the batch, even in training.
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, width, stride, padding=width // 2, bias=False),
        nn.GroupNorm(4, channels_out),
        nn.ReLU(),
    )
