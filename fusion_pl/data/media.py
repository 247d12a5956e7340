"""Load text, images and waveforms from cells of a manifest or from values in memory."""

from __future__ import annotations

import os
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from fusion_pl.data.audio import Crop, check_sample_rate, read_audio, to_waveform
from fusion_pl.data.image import DECODE_ERRORS, read_image, to_eight_bit
from fusion_pl.types import Kind, Processor, UserError, Waveform

INT_BITS = {"int16": 16, "int32": 32}


def crop_function(processor: Processor, training: bool = False) -> Crop | None:
    """Return the processor's function that selects the part of an audio file to read; None = the complete file."""
    crop = getattr(processor, "crop", None)
    return None if crop is None else partial(crop, training=training)


def placeholder(kind: Kind) -> Any:
    """Return a value to encode if no sample of a batch has the input; the encoder's output for it is not used."""
    if kind == "text":
        return ""
    if kind == "image":
        return Image.new("RGB", (32, 32))
    return Waveform(torch.zeros(16_000), 16_000)  # one second: longer than the first window of any encoder


def load_input(kind: Kind, value: Any, crop: Crop | None = None) -> Any:
    """Convert a cell of a manifest or a value in memory to the input type of processors.

    Args:
        kind: kind of the input.
        value: value to load. text: ``str``. image: a path, a PIL image, an array (H, W) or (H, W, 1|3|4), a tensor
            (H, W) or (1|3|4, H, W), each uint8 or float in [0, 1]. audio: a path, a ``Waveform``, or (array or tensor
            (N,) or (channels, N), rate in Hz) with floats, int16 or int32.
        crop: function that selects the part of an audio file to read; None = the complete file.

    Returns:
        ``str``, ``PIL.Image.Image`` or ``Waveform``.

    Raises:
        UserError: if the value cannot be read, or has another type.

    Example:
        >>> load_input("image", np.zeros((4, 6), dtype=np.uint8)).size
        (6, 4)
    """
    if kind == "text":
        return _check_text(value)
    if isinstance(value, (str, os.PathLike)):
        return read_image(value) if kind == "image" else read_audio(value, crop)
    return _convert_image(value) if kind == "image" else _convert_audio(value)


def _check_text(value: Any) -> str:
    r"""Check that a value is a ``str`` without half surrogate pairs (``\ud800``), which UTF-8 cannot encode."""
    if not isinstance(value, str):
        raise UserError(f"a text input takes a str, got {_describe_type(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"the text contains {value[error.start]!a}, which is not a character: remove it") from error
    return value


def _describe_type(value: Any) -> str:
    shape = getattr(value, "shape", None)
    return type(value).__name__ + ("" if shape is None else f" of shape {tuple(shape)} and type {value.dtype}")


def _convert_image(value: Any) -> Image.Image:
    type_error = UserError(
        "an image input takes a path, a PIL image, an array (H, W) or (H, W, 1|3|4), or a tensor (H, W) or "
        f"(1|3|4, H, W), each uint8 or float in [0, 1], got {_describe_type(value)}"
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


def _convert_audio(value: Any) -> Waveform:
    type_error = UserError(
        "an audio input takes a path, a Waveform, or a pair (array or tensor (N,) or (channels, N), rate in Hz) with "
        f"samples as floats, int16 or int32, got {_describe_type(value)}"
    )
    if not (isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], (Tensor, np.ndarray))):
        raise type_error
    raw, rate = value
    if not (isinstance(rate, (int, float, np.integer)) and rate > 0 and int(rate) == rate):
        raise UserError(f"the rate of an audio input must be a positive whole number of Hz, got {rate!r}")
    samples = np.atleast_2d(raw.detach().cpu().float().numpy() if isinstance(raw, Tensor) else raw)
    name = str(raw.dtype).removeprefix("torch.")
    if samples.ndim != 2 or not (name in INT_BITS or "float" in name):
        raise UserError(f"{type_error}; the first value of the pair is {_describe_type(raw)}")
    if samples.shape[0] > samples.shape[1] > 0:
        got = f"{_describe_type(raw)}, which has more channels than samples"
        raise UserError(f"an audio input takes (channels, N), got {got}: transpose the array")
    if name in INT_BITS:
        samples = samples / float(2 ** (INT_BITS[name] - 1))
    check_sample_rate(int(rate), "the audio input")
    mixed = samples[0] if len(samples) == 1 else samples.mean(axis=0)
    return to_waveform(mixed, int(rate), "the audio input")
