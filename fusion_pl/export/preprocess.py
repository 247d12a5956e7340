"""Open and process the inputs of an exported model, as ``preprocess.json`` says.

The classes return the tensors of the model's processors, without torch and without fusion-pl.
"""

import io
import json
import math
import os
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import repeat, takewhile
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass
class ByteText:
    """Texts as UTF-8 bytes after a begin token."""

    max_tokens: int
    begin: int
    placeholder = ""

    def open(self, value: Any) -> str:
        """Return a text; a number or a boolean becomes the text that a table has."""
        value = str(value).lower() if isinstance(value, (bool, np.bool_)) else value
        if not isinstance(value, (str, Real)):
            raise ValueError(f"a text input takes a str or a number, got {type(value).__name__}")
        return str(value).encode().decode()  # refuses half surrogate pairs

    def __call__(self, values: Sequence[str]) -> dict[str, Array]:
        """Return ``ids`` and ``mask``."""
        ids = [[self.begin, *text.encode()[: self.max_tokens - 1]] for text in values]
        return dict(zip(("ids", "mask"), _pad(ids), strict=True))


class SubwordText(ByteText):
    """Texts as subwords of a tokenizer."""

    def __init__(self, tokenizer: dict[str, Any], max_tokens: int, pad: int, truncation_side: str) -> None:
        from tokenizers import Tokenizer

        self.tokenizer = Tokenizer.from_str(json.dumps(tokenizer))
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(max_tokens, direction=truncation_side)
        self.pad = pad

    def __call__(self, values: Sequence[str]) -> dict[str, Array]:
        """Return ``input_ids`` and ``attention_mask``."""
        ids, mask = _pad([encoding.ids or [self.pad] for encoding in self.tokenizer.encode_batch(values)], self.pad)
        return {"input_ids": ids, "attention_mask": mask}


@dataclass
class Pixels:
    """Images of one size: resized, or resized by the shorter edge and cropped to the centre."""

    tensor: str
    size: int
    mode: str
    resample: int
    edge: int | None
    max_ratio: int
    placeholder = np.zeros((32, 32, 3), np.uint8)

    def open(self, value: Any) -> Any:
        """Return an image of mode L or RGB, upright, transparent pixels on white, from a path, bytes, file or array."""
        from PIL import Image, ImageOps

        if isinstance(value, np.ndarray):
            value = Image.fromarray(_eight_bit_pixels(value))
        elif not isinstance(value, Image.Image):
            content = _content(value, "an image", "a PIL image or an array")
            formats = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "PPM", "JPEG2000")  # others start programs
            value = Image.open(io.BytesIO(content), formats=formats)
            pixels = value.width * value.height
            scans = content.count(b"\xff\xda") if value.info.get("progressive") else 1  # many take minutes to decode
            if pixels > (Image.MAX_IMAGE_PIXELS or math.inf) or pixels * scans > 2**30:
                raise ValueError(f"{pixels} pixels in {scans} scans are too many")
        image = ImageOps.exif_transpose(value)
        if not image.width or not image.height:
            raise ValueError("it has no pixels")
        if image.mode in ("L", "RGB") and "transparency" not in image.info:
            return image
        if image.mode == "F" or image.mode.startswith("I"):
            return Image.fromarray(_scale_to_eight_bit(np.asarray(image), 1 if image.mode == "F" else 65535))
        if image.has_transparency_data:
            image = image.convert("RGBA")
            return Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image).convert("RGB")
        return image.convert("L" if image.mode == "1" else "RGB")

    def __call__(self, values: Sequence[Any]) -> dict[str, Array]:
        """Return the pixels, (P, channels, height, width)."""
        pixels = np.stack([np.asarray(self._resize(image)) for image in values])
        return {self.tensor: pixels[:, None] if self.mode == "L" else np.moveaxis(pixels, -1, 1)}

    def _resize(self, image: Any) -> Any:
        image = image if image.mode == self.mode else image.convert(self.mode)
        width = height = self.size
        if self.edge is not None:
            image = _centre_crop(image, image.height * self.max_ratio, image.width * self.max_ratio)
            width, height = (int(self.edge * side / min(image.size)) for side in image.size)
        return _centre_crop(image.resize((width, height), self.resample), self.size, self.size)


def _content(value: Any, name: str, others: str) -> bytes:
    """Return the content of a file, given by its path, as bytes or as an open binary file."""
    if isinstance(value, (str, os.PathLike)):
        if not Path(value).is_file():
            raise FileNotFoundError(f"there is no file {str(value)!r}")
        return Path(value).read_bytes()
    content = value.read() if hasattr(value, "read") else value
    if not isinstance(content, bytes):
        raise TypeError(f"{name} is a path, bytes, {others}, got {type(value).__name__}")
    return content


def _eight_bit_pixels(array: Array) -> Array:
    has_shape = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3, 4))
    if not (has_shape and array.size and (array.dtype == np.uint8 or array.dtype.kind == "f")):
        raise ValueError(f"expected (H, W) or (H, W, 1|3|4) of uint8 or floats, got {array.shape} of {array.dtype}")
    array = array[..., 0] if array.shape[2:] == (1,) else array
    return np.ascontiguousarray(array if array.dtype == np.uint8 else _scale_to_eight_bit(array, 1))


def _scale_to_eight_bit(values: Array, limit: int) -> Array:
    if not (values.min() >= 0 and values.max() <= limit):  # also refuses NaN
        raise ValueError(f"its values are not in 0 to {limit}")
    return np.rint(values * (255 / limit)).astype(np.uint8)


def _centre_crop(image: Any, width: int, height: int) -> Any:
    left, top = max(0, image.width - width) // 2, max(0, image.height - height) // 2
    return image.crop((left, top, left + min(width, image.width), top + min(height, image.height)))


@dataclass
class Clip:
    """Sounds of one channel, cropped to the centre and resampled."""

    rate: int
    max_samples: int
    tensors: list[str]
    max_filter: int
    min_samples: int = 0
    normalise: bool = False
    placeholder = np.zeros(16_000, np.float32), 16_000

    def open(self, value: Any) -> tuple[Array, int]:
        """Return N samples and their rate from a path, bytes, an open file or (array (N,) or (channels, N), rate)."""
        if isinstance(value, tuple):
            raw, rate = value
            samples = np.atleast_2d(raw)
            bits = {"int16": 16, "int32": 32}.get(samples.dtype.name)
            if not isinstance(raw, np.ndarray) or samples.ndim != 2 or not (bits or samples.dtype.kind == "f"):
                raise ValueError("expected an array (N,) or (channels, N) of floats, int16 or int32, and a rate")
            if len(samples) > samples.shape[1] > 0:
                raise ValueError(f"it has more channels than samples ({samples.shape}): transpose the array")
            samples = samples / 2 ** (bits - 1) if bits else samples
            samples = samples.mean(0) if len(samples) > 1 else samples[0]
        else:
            samples, rate = self._read(_content(value, "a sound", "or a pair (array, rate)"))
        if not 1_000 <= rate <= 384_000 or rate != int(rate):
            raise ValueError(f"its rate is {rate} Hz, expected a whole number between 1000 and 384000")
        samples = samples.astype(np.float32)
        if not samples.size or not np.isfinite(samples).all():
            raise ValueError("it has no samples, or NaN or infinite ones")
        return samples, int(rate)

    def _read(self, content: bytes) -> tuple[Array, int]:
        import soundfile

        with soundfile.SoundFile(io.BytesIO(content)) as file:
            rate, frames, is_mp3, log = file.samplerate, file.frames, file.format == "MP3", file.extra_info
            file.seekable = lambda: False  # the length in the header may be unknown, or too large for the memory
            blocks = list(takewhile(len, (file.read(2**20, "float32", always_2d=True) for _ in repeat(None))))
        samples = np.concatenate(blocks or [np.empty((0, 1), np.float32)])
        is_short = _is_truncated_mp3(content) if is_mp3 else len(samples) < frames < 2**62  # larger = unknown
        sizes = re.findall(r"(?m)^ *(?:data|Data Size|SSND|riff) *: (\d+) \(should be (\d+)\)", log)
        is_short |= any(int(size) < int(promised) < 0x7FFFF000 for promised, size in sizes)  # larger = unknown
        if is_short or "Junk after the last page" in log or "lacks an end-of-stream bit" in log:
            raise ValueError("it is truncated")
        samples = samples[self._centre(len(samples), rate)]
        return samples.mean(1) if samples.shape[1] > 1 else samples[:, 0], rate

    def _centre(self, count: int, rate: int) -> slice:
        length = math.ceil(self.max_samples * rate / self.rate)
        return slice(first := max(0, count - length) // 2, first + length)

    def __call__(self, values: Sequence[tuple[Array, int]]) -> dict[str, Array]:
        """Return padded audio samples, and their number or their mask."""
        padded, mask = _pad([self._crop_and_resample(*value) for value in values])
        return dict(zip(self.tensors, (padded, mask if "mask" in self.tensors else mask.sum(1)), strict=True))

    def _crop_and_resample(self, samples: Array, rate: int) -> Array:
        samples = samples[self._centre(len(samples), rate)]
        if rate != self.rate:
            near = Fraction(rate, self.rate).limit_denominator(max(1, math.isqrt(self.max_filter * self.rate // rate)))
            samples = resample(samples, near.numerator, near.denominator)[: self.max_samples]
        samples = np.pad(samples, (0, max(0, self.min_samples - len(samples))))
        return (samples - samples.mean()) / np.sqrt(samples.var() + 1e-7) if self.normalise else samples


def _is_truncated_mp3(content: bytes) -> bool:
    """Return whether a file is shorter than its Xing header says; without one, its length is unknown."""
    # An ID3 tag may be before it, whose size is stored as 7 bits in each of four bytes.
    start = 10 + sum(byte << 7 * i for i, byte in enumerate(content[9:5:-1])) if content.startswith(b"ID3") else 0
    header = re.search(rb"(?s)(?:Xing|Info)(.{12})", content[start : start + 512])
    flags, _, promised = struct.unpack(">3I", header[1]) if header else (0, 0, 0)
    return bool(flags & 3 == 3 and len(content) - start < promised)


def resample(samples: Array, rate: int, target: int) -> Array:
    """Resample audio by a windowed sinc filter, as ``torchaudio.functional.resample`` does with its defaults."""
    zeros, cutoff = 6, min(rate, target) * 0.99
    width = math.ceil(zeros * rate / cutoff)
    phases = (np.arange(0, -target, -1) / target).astype(np.float32)  # rounded, as in torchaudio
    times = phases[:, None] + np.arange(-width, width + rate) / rate
    times = np.clip(times * cutoff, -zeros, zeros)
    filters = (np.sinc(times) * np.cos(times * np.pi / zeros / 2) ** 2 * (cutoff / rate)).astype(np.float32)
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(samples, (width, width + rate)), filters.shape[1])
    resampled: Array = windows[::rate] @ filters.T
    return resampled.reshape(-1)[: math.ceil(target * len(samples) / rate)]


class Vectors:
    """Vectors or sequences of vectors, standardised."""

    def __init__(self, mean: list[float], std: list[float], max_tokens: int, key: str | None, flags: bool) -> None:
        self.mean, self.std, self.max_tokens = np.array(mean), np.array(std), max_tokens
        self.key, self.flags = key, flags
        self.placeholder = self.mean[None]

    def open(self, value: Any) -> Array | None:
        """Return T vectors of an .npy or .npz file (path, bytes or open), an array or a list; None if missing."""
        count = 0  # of missing numbers
        if isinstance(value, (list, tuple, int, float)):
            value = value if isinstance(value, (list, tuple)) else [value]
            missing = [is_missing(one) for row in value for one in (row if isinstance(row, (list, tuple)) else [row])]
            if any(missing) and (all(missing) or not self.flags):
                return None
            numbers = np.array(value, np.float64)
            count = sum(is_missing(number) for number in np.array(value, object).flat) if self.flags else 0
            value = numbers
        elif not isinstance(value, np.ndarray):
            value = self._read(_content(value, "a vector", "an array or a list"))
        has_shape = value.ndim in (1, 2) and value.shape[-1] == len(self.mean) and len(value)
        if not has_shape or value.dtype.kind not in "biuf":
            raise ValueError(f"expected vectors of {len(self.mean)} numbers, got {value.shape} of {value.dtype}")
        vectors = np.atleast_2d(value.astype(np.float64))
        if np.sum(~(np.abs(vectors) <= np.finfo(np.float32).max)) != count:  # also NaN
            raise ValueError("a number is missing, infinite, or too large for single precision")
        return vectors[: self.max_tokens]

    def _read(self, content: bytes) -> Array:
        arrays = np.load(io.BytesIO(content), allow_pickle=False)
        if isinstance(arrays, np.ndarray):
            return arrays[: self.max_tokens] if arrays.ndim == 2 else arrays
        if self.key is None and len(arrays.files) != 1:
            raise ValueError(f"it has the arrays {', '.join(arrays.files)}: pass one of them as an array")
        array: Array = arrays[self.key or arrays.files[0]]
        return array

    def __call__(self, values: Sequence[Array]) -> dict[str, Array]:
        """Return standardised ``vectors``, with a flag per missing number if the model has them, and ``mask``."""
        vectors, mask = _pad([(value - self.mean) / self.std for value in values])
        if self.flags:
            missing = np.isnan(vectors)
            vectors = np.concatenate([np.where(missing, 0, vectors), missing], -1)
        return {"vectors": vectors.astype(np.float32), "mask": mask}


def is_missing(value: Any) -> bool:
    """Return whether a value is None or NaN."""
    return value is None or (isinstance(value, (float, np.floating)) and math.isnan(value))


def _pad(rows: Sequence[Any], value: int = 0) -> tuple[Array, Array]:
    """Return rows padded to the longest one, and the mask of real elements."""
    arrays = [np.asarray(row) for row in rows]
    mask = np.arange(max(map(len, arrays))) < np.array([[len(row)] for row in arrays])
    padded = np.full((*mask.shape, *arrays[0].shape[1:]), value, arrays[0].dtype)
    padded[mask] = np.concatenate(arrays)
    return padded, mask


KINDS: dict[str, type[Any]] = {cls.__name__: cls for cls in (ByteText, SubwordText, Pixels, Clip, Vectors)}
