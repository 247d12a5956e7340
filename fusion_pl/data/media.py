"""Open one cell of a manifest, or one value from memory, as what processors take: text, a picture, a waveform.

Pictures come out upright (EXIF), as 8-bit grey or RGB, transparent parts on white. Sound comes out as mono float32 at
the rate of the file; resampling is the processor's work, because only it knows the rate it wants.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from fusion_pl.types import Kind, MissingFileError, UserError, Waveform

# What Pillow's decoders raise on damaged files, next to its own errors.
DAMAGED = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, Image.DecompressionBombError)
INT_BITS = {"int16": 16, "int32": 32}
WHITE = (255, 255, 255, 255)


def read_image(path: str | os.PathLike[str]) -> Image.Image:
    """Read a picture as 8-bit grey or RGB, turned as its EXIF orientation asks; the first frame of an animation.

    Raises:
        UserError: where the file is missing, not a picture, truncated or unreasonably large.
    """
    try:
        with Image.open(path) as image:
            # Between one and two times its limit Pillow only warns, and a warning in a worker is read by nobody.
            if Image.MAX_IMAGE_PIXELS and image.width * image.height > Image.MAX_IMAGE_PIXELS:
                raise ValueError(
                    f"{image.width} × {image.height} pixels exceed Pillow's limit of {Image.MAX_IMAGE_PIXELS}"
                )
            image.load()
            if (
                image.info
            ):  # without metadata there is no orientation, and looking for it takes a tenth of a small picture
                ImageOps.exif_transpose(image, in_place=True)
            return _eight_bit(image)
    except FileNotFoundError as error:
        raise MissingFileError(f"{path} does not exist") from error
    except UnidentifiedImageError as error:
        raise UserError(
            f"{path} cannot be read as a picture (no known format): replace it or empty its cell"
        ) from error
    except (Image.DecompressionBombWarning, *DAMAGED) as error:
        raise UserError(f"{path} cannot be read as a picture ({error}): replace it or empty its cell") from error


def _eight_bit(image: Image.Image) -> Image.Image:
    """Return ``image`` as L or RGB; the same object where it is one already."""
    if image.mode in ("L", "RGB") and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):
        return _scaled(np.asarray(image).astype(np.int64), 65535)  # Pillow keeps 16-bit grey in I;16 or I, by format
    if image.mode == "F":
        return _scaled(np.asarray(image), 1)
    if image.has_transparency_data:
        shown = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", shown.size, WHITE), shown).convert("RGB")
    return image.convert("L" if image.mode == "1" else "RGB")


def _scaled(values: NDArray[Any], top: int) -> Image.Image:
    """Scale [0, top] to [0, 255]; other ranges have no agreed meaning, so guessing would fake contrast."""
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= top):  # also refuses NaN
        raise ValueError(f"its values run from {low} to {high}, expected 0 to {top}")
    return Image.fromarray(np.rint(values * (255 / top)).astype(np.uint8))


def read_audio(path: str | os.PathLike[str]) -> Waveform:
    """Read wav, flac, ogg or mp3 as mono, at the file's own rate.

    Raises:
        UserError: where the file is missing, not sound, empty, or holds NaN or infinity.
    """
    try:
        with soundfile.SoundFile(path) as file:
            samples = file.read(dtype="float32", always_2d=True).T
            rate, floats = file.samplerate, file.subtype in ("FLOAT", "DOUBLE")
    except (soundfile.SoundFileError, OSError, TypeError) as error:  # TypeError: a suffix that means headerless samples
        if not os.path.exists(path):
            raise MissingFileError(f"{path} does not exist") from error
        reason = getattr(error, "error_string", str(error)).strip().rstrip(".")
        raise UserError(f"{path} cannot be read as sound ({reason}): expected wav, flac, ogg or mp3") from error
    return _mono(samples, rate, str(path), floats)


def _mono(samples: NDArray[Any], rate: int, where: str, floats: bool = True) -> Waveform:
    """Mix (channels, N) to one channel and refuse what would poison a network; only ``floats`` can hold that."""
    mixed = samples[0] if len(samples) == 1 else samples.mean(axis=0)
    if not mixed.size:
        raise UserError(f"{where} holds no samples: replace it or leave this input out")
    if floats and not np.isfinite(mixed).all():
        raise UserError(f"{where} holds NaN or infinite samples: replace it or leave this input out")
    return Waveform(torch.from_numpy(np.ascontiguousarray(mixed, dtype=np.float32)), int(rate))


OPENERS: dict[Kind, Callable[[str], Any]] = {"text": str, "image": read_image, "audio": read_audio}


def open_value(kind: Kind, value: str, root: str = "") -> Any:
    """Open one cell: text is itself, picture and sound are read from their file.

    Args:
        kind: of the input.
        value: the text, or a path.
        root: folder against which a relative path resolves.
    """
    return value if kind == "text" else OPENERS[kind](os.path.join(root, value))


def blank(kind: Kind) -> Any:
    """Return a value to keep shapes when no sample of a batch has an input; encoders' results for it are never used."""
    if kind == "text":
        return ""
    if kind == "image":
        return Image.new("RGB", (32, 32))
    return Waveform(torch.zeros(16_000), 16_000)  # one second: longer than any encoder's first window


def as_value(kind: Kind, value: Any) -> Any:
    """Turn what a caller holds in memory into what the processors take.

    Args:
        kind: of the input.
        value: text: ``str``. image: a path, a PIL image, an array (H, W) or (H, W, 1|3|4), a tensor (H, W) or
            (1|3|4, H, W), each uint8 or float in [0, 1]. audio: a path, a ``Waveform``, or (array or tensor (N,) or
            (channels, N), rate in Hz) with floats, int16 or int32.

    Raises:
        UserError: where it is something else; says what is accepted.

    Example:
        >>> as_value("image", np.zeros((4, 6), dtype=np.uint8)).size
        (6, 4)
    """
    if kind == "text":
        if isinstance(value, str):
            return value
        raise UserError(f"a text input takes a str, got {_what(value)}")
    if isinstance(value, (str, os.PathLike)):
        return OPENERS[kind](os.fspath(value))
    return _as_image(value) if kind == "image" else _as_audio(value)


def _what(value: Any) -> str:
    shape = getattr(value, "shape", None)
    return type(value).__name__ + ("" if shape is None else f" of shape {tuple(shape)} and type {value.dtype}")


def _as_image(value: Any) -> Image.Image:
    wrong = UserError(
        "an image input takes a path, a PIL image, an array (H, W) or (H, W, 1|3|4), or a tensor (H, W) or "
        f"(1|3|4, H, W), each uint8 or float in [0, 1], got {_what(value)}"
    )
    if isinstance(value, Image.Image):
        try:
            return _eight_bit(ImageOps.exif_transpose(value))
        except DAMAGED as error:
            raise UserError(f"the PIL image cannot be used: {error}") from error
    if isinstance(value, Tensor):
        pixels = (value.movedim(0, -1) if value.dim() == 3 else value).detach().cpu().float().numpy()
        pixels = pixels.astype(np.uint8) if value.dtype == torch.uint8 else pixels
        floating = value.is_floating_point()
    elif isinstance(value, np.ndarray):
        pixels, floating = value, np.issubdtype(value.dtype, np.floating)
    else:
        raise wrong
    known = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[-1] in (1, 3, 4))
    if not known or not pixels.size or not (floating or pixels.dtype == np.uint8):
        raise wrong
    if floating:
        if not (pixels.min() >= 0 and pixels.max() <= 1):  # also refuses NaN
            raise UserError(
                f"an image of floats must lie in [0, 1], got {pixels.min():.4g} to {pixels.max():.4g}: "
                "divide by 255, or undo a normalisation"
            )
        pixels = np.rint(pixels * 255).astype(np.uint8)
    pixels = pixels[..., 0] if pixels.ndim == 3 and pixels.shape[-1] == 1 else pixels
    return _eight_bit(Image.fromarray(np.ascontiguousarray(pixels)))


def _as_audio(value: Any) -> Waveform:
    wrong = UserError(
        "an audio input takes a path, a Waveform, or a pair (array or tensor (N,) or (channels, N), rate in Hz) with "
        f"samples as floats, int16 or int32, got {_what(value)}"
    )
    if not (isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], (Tensor, np.ndarray))):
        raise wrong
    raw, rate = value
    if not (isinstance(rate, (int, float, np.integer)) and rate > 0 and int(rate) == rate):
        raise UserError(f"the rate of an audio input must be a positive whole number of Hz, got {rate!r}")
    samples = np.atleast_2d(raw.detach().cpu().float().numpy() if isinstance(raw, Tensor) else raw)
    name = str(raw.dtype).removeprefix("torch.")
    if samples.ndim != 2 or not (name in INT_BITS or "float" in name):
        raise UserError(f"{wrong}; its first part is {_what(raw)}")
    if samples.shape[0] > samples.shape[1] > 0:
        raise UserError(
            f"an audio input takes (channels, N), got {_what(raw)}, more channels than samples: transpose it"
        )
    if name in INT_BITS:
        samples = samples / float(2 ** (INT_BITS[name] - 1))
    return _mono(samples, int(rate), "the audio input")
