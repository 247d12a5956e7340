"""Open one cell of a manifest, or one value from memory, as what processors take: text, a picture, a waveform.

Pictures come out upright (EXIF), as 8-bit grey or RGB, transparent parts on white. Sound comes out as mono float32 at
the rate of the file; resampling is the processor's work, because only it knows the rate it wants.
"""

from __future__ import annotations

import os
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from fusion_pl.data.audio import Crop, check_rate, read_audio, waveform
from fusion_pl.data.image import DAMAGED, eight_bit, read_image
from fusion_pl.types import Kind, Processor, UserError, Waveform

INT_BITS = {"int16": 16, "int32": 32}


def crop_of(processor: Processor, training: bool = False) -> Crop | None:
    """Return what says which part of a sound a processor uses; None where it uses all, or does not say."""
    crop = getattr(processor, "crop", None)
    return None if crop is None else partial(crop, training=training)


def open_value(kind: Kind, cell: str, crop: Crop | None = None) -> Any:
    """Open one cell: text is itself, picture and sound are read from their file.

    Args:
        kind: of the input.
        cell: the text, or a path.
        crop: of a sound, which part is wanted; None = all of it.

    Raises:
        UserError: where it cannot be read.
    """
    if kind == "text":
        return _unicode(cell)
    return read_image(cell) if kind == "image" else read_audio(cell, crop)


def _unicode(text: str) -> str:
    r"""Refuse half of a surrogate pair (``\ud800``), which JSON can hold, but no encoding of text."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"the text holds {text[error.start]!a}, which is no character: remove it") from error
    return text


def blank(kind: Kind) -> Any:
    """Return a value to keep shapes when no sample of a batch has an input; encoders' results for it are never used."""
    if kind == "text":
        return ""
    if kind == "image":
        return Image.new("RGB", (32, 32))
    return Waveform(torch.zeros(16_000), 16_000)  # one second: longer than any encoder's first window


def as_value(kind: Kind, value: Any, crop: Crop | None = None) -> Any:
    """Turn what a caller holds in memory into what the processors take.

    Args:
        kind: of the input.
        value: text: ``str``. image: a path, a PIL image, an array (H, W) or (H, W, 1|3|4), a tensor (H, W) or
            (1|3|4, H, W), each uint8 or float in [0, 1]. audio: a path, a ``Waveform``, or (array or tensor (N,) or
            (channels, N), rate in Hz) with floats, int16 or int32.
        crop: of a sound's file, which part is wanted; None = all of it.

    Raises:
        UserError: where it is something else; says what is accepted.

    Example:
        >>> as_value("image", np.zeros((4, 6), dtype=np.uint8)).size
        (6, 4)
    """
    if kind == "text":
        if isinstance(value, str):
            return _unicode(value)
        raise UserError(f"a text input takes a str, got {_what(value)}")
    if isinstance(value, (str, os.PathLike)):
        return open_value(kind, os.fspath(value), crop)
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
            return eight_bit(ImageOps.exif_transpose(value))
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
    return eight_bit(Image.fromarray(np.ascontiguousarray(pixels)))


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
    check_rate(int(rate), "the audio input")
    mixed = samples[0] if len(samples) == 1 else samples.mean(axis=0)
    return waveform(mixed, int(rate), "the audio input")
