"""Corruptions of images: noise, blur, occlusion, JPEG compression and brightness.

Source: "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations", arXiv:1903.12261, which has
the levels of noise, blur and compression, for images of 224 x 224 pixels. Deviations: lengths are scaled to the size of
the image, because encoders resize it; there is one direction of occlusion and two of brightness.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image, ImageFilter, ImageStat
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.transforms.v2.functional import (
    adjust_brightness,
    jpeg,
    pil_to_tensor,
    to_dtype,
    to_pil_image,
)

from fusion_pl.evaluate.corruption import Corruption

REFERENCE_EDGE = 224  # pixels of the shorter edge of the images for which the levels are given


def add_noise(image: Image.Image, sigma: float) -> Image.Image:
    """Add Gaussian noise to each colour.

    Args:
        image: image of mode L or RGB.
        sigma: standard deviation, as a share of the range from black to white. A grain is one pixel, or of images with
            more than 224 pixels on their shorter edge, 1/224 of it: resizing would average smaller grains away.
    """
    pixels = to_dtype(pil_to_tensor(image), torch.float32, scale=True)
    scale = max(1.0, min(image.size) / REFERENCE_EDGE)
    grid = [max(1, round(edge / scale)) for edge in pixels.shape[1:]]
    noise = interpolate(torch.randn(1, len(pixels), *grid), size=pixels.shape[1:], mode="nearest-exact")[0]
    return _to_image((pixels + sigma * noise).clamp(0, 1))


def blur(image: Image.Image, sigma: float) -> Image.Image:
    """Blur an image by a Gaussian kernel.

    Args:
        image: image of mode L or RGB.
        sigma: standard deviation in pixels of an image whose shorter edge has 224 pixels.
    """
    return image.filter(ImageFilter.GaussianBlur(sigma * min(image.size) / REFERENCE_EDGE))


def occlude(image: Image.Image, share: float) -> Image.Image:
    """Cover a rectangle at a random place by the mean colour; rectangles of one image contain the smaller ones.

    Args:
        image: image of mode L or RGB.
        share: share of the area; the rectangle has the aspect ratio of the image.
    """
    height, width = (max(1, round(share**0.5 * edge)) for edge in (image.height, image.width))
    place_y, place_x = torch.rand(2).tolist()
    top, left = round(place_y * (image.height - height)), round(place_x * (image.width - width))
    mean = tuple(round(number) for number in ImageStat.Stat(image).mean)
    covered = image.copy()
    covered.paste(mean if len(mean) > 1 else mean[0], (left, top, left + width, top + height))
    return covered


def compress(image: Image.Image, quality: float) -> Image.Image:
    """Compress an image as JPEG and open it again.

    Args:
        image: image of mode L or RGB.
        quality: quality of libjpeg, 1 to 95.
    """
    compressed: Image.Image = jpeg(image, quality=round(quality))
    return compressed


def change_brightness(image: Image.Image, stops: float) -> Image.Image:
    """Multiply the pixels by 2 ** stops or 2 ** -stops, each with probability 1/2, as a wrong exposure does.

    Args:
        image: image of mode L or RGB.
        stops: photographic stops.
    """
    sign = 1 if torch.rand(()) < 0.5 else -1
    changed: Image.Image = adjust_brightness(image, 2 ** (sign * stops))
    return changed


def is_image(value: Any) -> bool:
    """Return whether a value is a PIL image of mode L or RGB, or a tensor (1|3, H, W) of type uint8."""
    if isinstance(value, Image.Image):
        return value.mode in ("L", "RGB")
    return isinstance(value, Tensor) and value.dtype == torch.uint8 and value.dim() == 3 and value.shape[0] in (1, 3)


def _to_image(pixels: Tensor) -> Image.Image:
    image: Image.Image = to_pil_image(to_dtype(pixels, torch.uint8, scale=True))
    return image


@dataclass(frozen=True)
class _ImageChange:
    """A change of PIL images, which also takes tensors, see ``is_image``."""

    change: Callable[[Image.Image, float], Image.Image]

    def __call__(self, value: Any, level: float) -> Any:
        if isinstance(value, Tensor):
            return pil_to_tensor(self.change(to_pil_image(value), level))
        return self.change(value, level)


IMAGE_CORRUPTIONS = (
    Corruption("noise", "sigma, if white is 1", (0.08, 0.12, 0.18, 0.26, 0.38), _ImageChange(add_noise)),
    Corruption("blur", "sigma in px of an edge of 224 px", (1.0, 2.0, 3.0, 4.0, 6.0), _ImageChange(blur)),
    Corruption("occlusion", "share of the area", (0.1, 0.2, 0.3, 0.4, 0.5), _ImageChange(occlude)),
    Corruption("compression", "JPEG quality", (25.0, 18.0, 15.0, 10.0, 7.0), _ImageChange(compress)),
    Corruption("brightness", "stops, darker or brighter", (0.5, 1.0, 1.5, 2.0, 2.5), _ImageChange(change_brightness)),
)
