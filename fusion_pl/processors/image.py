"""Open images as 8-bit grey or RGB, rotated as the EXIF orientation says, with transparent pixels on white."""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, ImageStat, UnidentifiedImageError
from torch import Tensor

from fusion_pl.files import check_regular_file
from fusion_pl.processors.base import (
    Processor,
    Source,
    Span,
    describe_source,
    describe_type,
    read_bytes,
    to_source,
)
from fusion_pl.types import UserError

# Supported formats. To read other formats, Pillow may start programs, such as Ghostscript for EPS.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "PPM", "JPEG2000")
# Errors of Pillow's decoders on damaged files.
DECODE_ERRORS: tuple[type[Exception], ...] = (OSError, SyntaxError, ValueError, EOFError, IndexError, RuntimeError)
DECODE_ERRORS += (struct.error, Image.DecompressionBombError, Image.DecompressionBombWarning)
WHITE = (255, 255, 255, 255)
# Limit on the pixels of a progressive JPEG times its number of scans, usually ten; decoding takes seconds at the limit.
MAX_DECODED_PIXELS = 2**30
STRIP_HEIGHT = 256  # number of pixel rows that are converted at once


class ImageProcessor(Processor):
    """Base class of the processors of images, whose opened values are ``PIL.Image.Image`` of mode L or RGB."""

    reads_files = True
    spans_are_units = False

    def open(self, value: Any, training: bool = False) -> Image.Image:
        """Open an image.

        Args:
            value: path, bytes or open binary file of an image file; a PIL image; an array (H, W) or (H, W, 1|3|4) or a
                tensor (H, W) or (1|3|4, H, W), each uint8 or float in [0, 1].
            training: unused.

        Raises:
            UserError: if the image cannot be decoded, or the value has another type.
        """
        del training
        source = None if isinstance(value, Image.Image) else to_source(value)
        return _convert_image(value) if source is None else read_image(source)

    def spans(self, value: Image.Image, limit: int = 64) -> list[Span]:
        """Return the rows and columns of pixels of each cell of a grid, of 8 x 8 cells or fewer."""
        cells = max(1, min(math.isqrt(limit), value.height, value.width))
        rows, columns = ([round(i * size / cells) for i in range(cells + 1)] for size in (value.height, value.width))
        return [(row, column) for row in pairwise(rows) for column in pairwise(columns)]

    def occlude(self, value: Image.Image, spans: Sequence[Span]) -> Image.Image:
        """Return the image with its mean colour in some cells."""
        occluded = value.copy()
        mean: Any = tuple(round(number) for number in ImageStat.Stat(value).mean)
        for (top, bottom), (left, right) in spans:
            colour = mean if len(mean) > 1 else mean[0]
            occluded.paste(colour, (int(left), int(top), int(right), int(bottom)))
        return occluded

    def placeholder(self) -> Image.Image:
        """Return a black image."""
        return Image.new("RGB", (32, 32))


def read_image(source: Source) -> Image.Image:
    """Read an image file as 8-bit grey or RGB, rotated by its EXIF orientation; of an animation, the first frame.

    Raises:
        UserError: if the file is missing, not an image, truncated or too large.
    """
    if not isinstance(source, bytes):
        check_regular_file(source)
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as image:
            # Pillow raises an error only above twice its limit; below, it warns, but warnings in workers are not shown.
            pixels = image.width * image.height
            if Image.MAX_IMAGE_PIXELS and pixels > Image.MAX_IMAGE_PIXELS:
                size = f"{image.width} × {image.height} pixels"
                raise ValueError(f"{size} are more than Pillow's limit of {Image.MAX_IMAGE_PIXELS} pixels")
            if image.info.get("progressive"):  # with many scans, a file of 400 kB can take 15 seconds
                scans = read_bytes(source).count(b"\xff\xda")  # marker of a scan; cannot occur within its data
                if scans * pixels > MAX_DECODED_PIXELS:
                    raise ValueError(f"{pixels} pixels in {scans} scans would take too long to decode")
            image.load()
            # Without metadata there is no orientation, and exif_transpose takes 10 % of the time of a small image.
            if image.info:
                ImageOps.exif_transpose(image, in_place=True)
            return to_eight_bit(image)
    except DECODE_ERRORS as error:
        is_unknown = isinstance(error, UnidentifiedImageError)
        reason = f"expected one of {', '.join(FORMATS)}" if is_unknown else error
        name = describe_source(source, "image")
        raise UserError(f"{name} cannot be read as an image ({reason}): replace it or leave this input out") from error


def _convert_image(value: Any) -> Image.Image:
    type_error = UserError(
        "an image input takes a path, bytes, a PIL image, an array (H, W) or (H, W, 1|3|4), or a tensor (H, W) or "
        f"(1|3|4, H, W), each uint8 or float in [0, 1], got {describe_type(value)}"
    )
    if isinstance(value, Image.Image):
        try:
            return to_eight_bit(ImageOps.exif_transpose(value))
        except DECODE_ERRORS as error:
            raise UserError(f"the PIL image cannot be used: {error}") from error
    if isinstance(value, Tensor):
        tensor = (value.movedim(0, -1) if value.dim() == 3 else value).detach().cpu()
        value = (tensor.float() if tensor.is_floating_point() else tensor).numpy()  # NumPy has no bfloat16
    if not isinstance(value, np.ndarray) or not value.size:
        raise type_error
    has_image_shape = value.ndim == 2 or (value.ndim == 3 and value.shape[-1] in (1, 3, 4))
    is_float = np.issubdtype(value.dtype, np.floating)
    if not has_image_shape or not (is_float or value.dtype == np.uint8):
        raise type_error
    pixels = value[..., 0] if value.shape[2:] == (1,) else value
    if is_float:
        if not (pixels.min() >= 0 and pixels.max() <= 1):  # also refuses NaN
            values = f"{pixels.min():.4g} to {pixels.max():.4g}"
            raise UserError(
                f"an image of floats must lie in [0, 1], got {values}: divide by 255, or undo the normalisation"
            )
        pixels = np.rint(pixels * 255).astype(np.uint8)
    return to_eight_bit(Image.fromarray(np.ascontiguousarray(pixels)))


def to_eight_bit(image: Image.Image) -> Image.Image:
    """Convert an image to mode L or RGB, or return the same object if it has this mode; refuse one without pixels."""
    if not image.width or not image.height:
        raise ValueError(f"it has {image.width} × {image.height} pixels")
    if image.mode in ("L", "RGB") and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):
        return _scale_to_eight_bit(np.asarray(image), 65535)  # 16-bit grey is I;16 or I, depending on the format
    if image.mode == "F":
        return _scale_to_eight_bit(np.asarray(image), 1)
    if image.has_transparency_data:
        return _composite_on_white(image)
    return image.convert("L" if image.mode == "1" else "RGB")


def _composite_on_white(image: Image.Image) -> Image.Image:
    result = Image.new("RGB", image.size)
    for top in range(0, image.height, STRIP_HEIGHT):  # in strips, because the whole image would need five copies
        strip = image.crop((0, top, image.width, min(top + STRIP_HEIGHT, image.height))).convert("RGBA")
        result.paste(Image.alpha_composite(Image.new("RGBA", strip.size, WHITE), strip).convert("RGB"), (0, top))
    return result


def _scale_to_eight_bit(values: NDArray[Any], max_value: int) -> Image.Image:
    """Scale [0, max_value] to [0, 255]; refuse values outside [0, max_value], because their range is unknown."""
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= max_value):  # also refuses NaN
        raise ValueError(f"its values are in {low} to {high}, expected 0 to {max_value}")
    scaled = np.empty(values.shape, dtype=np.uint8)
    for row in range(0, len(values), STRIP_HEIGHT):  # in strips: intermediate values take eight bytes per pixel
        scaled[row : row + STRIP_HEIGHT] = np.rint(values[row : row + STRIP_HEIGHT] * (255 / max_value))
    return Image.fromarray(scaled)
