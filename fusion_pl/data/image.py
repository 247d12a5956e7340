"""Open pictures: upright (EXIF), as 8-bit grey or RGB, transparent parts on white."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from fusion_pl.files import check_regular
from fusion_pl.types import UserError

# Only these are tried: of Pillow's other formats some start programs (EPS: Ghostscript).
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "PPM", "JPEG2000")
# What Pillow's decoders raise on damaged files, next to its own errors.
DAMAGED = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    RuntimeError,
    struct.error,
    Image.DecompressionBombError,
)
WHITE = (255, 255, 255, 255)
MOST_DECODED = 2**30  # pixels times scans of a progressive JPEG: some seconds. Programs write about ten scans
ROWS = 256  # of a picture that are converted at a time


def read_image(path: str | os.PathLike[str]) -> Image.Image:
    """Read a picture as 8-bit grey or RGB, turned as its EXIF orientation asks; the first frame of an animation.

    Raises:
        UserError: where the file is missing, not a picture, truncated or unreasonably large.
    """
    check_regular(path)
    try:
        with Image.open(path, formats=FORMATS) as image:
            # Between one and two times its limit Pillow only warns, and a warning in a worker is read by nobody.
            if Image.MAX_IMAGE_PIXELS and image.width * image.height > Image.MAX_IMAGE_PIXELS:
                raise ValueError(
                    f"{image.width} × {image.height} pixels exceed Pillow's limit of {Image.MAX_IMAGE_PIXELS}"
                )
            if image.info.get("progressive"):
                _check_scans(path, image.width * image.height)
            image.load()
            # Without metadata there is no orientation, and looking for it takes a tenth of a small picture.
            if image.info:
                ImageOps.exif_transpose(image, in_place=True)
            return eight_bit(image)
    except UnidentifiedImageError as error:
        known = ", ".join(FORMATS)
        raise UserError(
            f"{path} cannot be read as a picture (expected one of {known}): replace it or empty its cell"
        ) from error
    except (Image.DecompressionBombWarning, *DAMAGED) as error:
        raise UserError(f"{path} cannot be read as a picture ({error}): replace it or empty its cell") from error


def _check_scans(path: str | os.PathLike[str], pixels: int) -> None:
    """Refuse a JPEG that is decoded over and over: a file of 400 kB can take a quarter of a minute."""
    scans = Path(path).read_bytes().count(b"\xff\xda")  # within a scan's data 0xFF is never followed by 0xDA
    if scans * pixels > MOST_DECODED:
        raise ValueError(f"{pixels} pixels in {scans} scans would take too long to decode")


def eight_bit(image: Image.Image) -> Image.Image:
    """Return ``image`` as L or RGB; the same object where it is one already."""
    if image.mode in ("L", "RGB") and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):
        return _scaled(np.asarray(image), 65535)  # Pillow keeps 16-bit grey in I;16 or I, by format
    if image.mode == "F":
        return _scaled(np.asarray(image), 1)
    if image.has_transparency_data:
        return _on_white(image)
    return image.convert("L" if image.mode == "1" else "RGB")


def _on_white(image: Image.Image) -> Image.Image:
    result = Image.new("RGB", image.size)
    for top in range(0, image.height, ROWS):  # all at once would hold five copies of a large picture
        strip = image.crop((0, top, image.width, min(top + ROWS, image.height))).convert("RGBA")
        result.paste(Image.alpha_composite(Image.new("RGBA", strip.size, WHITE), strip).convert("RGB"), (0, top))
    return result


def _scaled(values: NDArray[Any], top: int) -> Image.Image:
    """Scale [0, top] to [0, 255]; other ranges have no agreed meaning, so guessing would fake contrast."""
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= top):  # also refuses NaN
        raise ValueError(f"its values run from {low} to {high}, expected 0 to {top}")
    scaled = np.empty(values.shape, dtype=np.uint8)
    for row in range(0, len(values), ROWS):  # all at once would take eight bytes per pixel, several times
        scaled[row : row + ROWS] = np.rint(values[row : row + ROWS] * (255 / top))
    return Image.fromarray(scaled)
