"""Read sound as mono float32 at the rate of the file, which processors resample; of long files only a part."""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import soundfile
import torch
from jaxtyping import Float32
from numpy.typing import NDArray

from fusion_pl.files import check_regular
from fusion_pl.types import UserError, Waveform

Crop = Callable[[int, int], tuple[int, int]]  # (number of samples, rate in Hz) -> (first, end)

RATES = (1_000, 384_000)  # Hz; other rates are errors of the header, and resampling could take much memory
BLOCK = 2**20  # values read at a time: a header may claim any length
UNKNOWN_LENGTH = 2**62  # libsndfile returns at least this number of samples if the header has no length
UNKNOWN_SIZE = 0x7FFFF000  # programs that write to a pipe put at least this size into the header
# Notes of libsndfile about a file that is shorter than its header says, or whose last pages are missing.
TRUNCATED = re.compile(r"^ *(?:data|Data Size|SSND|riff) *: (\d+) \(should be (\d+)\)", re.MULTILINE)
OGG_TRUNCATED = ("Junk after the last page", "lacks an end-of-stream bit")
# Header in the first frame of an MP3: flags, number of frames, number of bytes.
MP3_HEADER = re.compile(rb"(?:Xing|Info)(.{12})", re.DOTALL)
FIX = "replace it or empty its cell"


class _UnseekableFile(soundfile.SoundFile):  # type: ignore[misc]  # soundfile has no annotations
    """A file without seeking after each read, which fails at the end of a file of unknown length."""

    def seekable(self) -> bool:
        return False


def read_audio(path: str | os.PathLike[str], crop: Crop | None = None) -> Waveform:
    """Read the part that ``crop`` selects of a wav, flac, ogg or mp3 as mono, at the file's own rate.

    Raises:
        UserError: if the file is missing, not sound, empty or truncated, or contains NaN or infinity.
    """
    check_regular(path)
    try:
        with _UnseekableFile(path) as file:
            rate, is_float = file.samplerate, file.subtype in ("FLOAT", "DOUBLE")
            check_rate(rate, str(path))
            length = _length(file, path)
            first, end = (0, length) if crop is None else crop(length, rate)
            samples = _read(file, first, end)
            has_end = end == length or file.format == "MP3"  # the size of an MP3 was checked
            if len(samples) < end - first or not (has_end or len(_read(file, length - 1, length))):
                raise UserError(f"{path} is truncated: its header promises {length} samples, fewer exist: {FIX}")
    except (soundfile.SoundFileError, OSError, TypeError) as error:  # TypeError: the suffix of a file without a header
        reason = getattr(error, "error_string", str(error)).strip().rstrip(".")
        raise UserError(f"{path} cannot be read as sound ({reason}): expected wav, flac, ogg or mp3; {FIX}") from error
    return waveform(samples, rate, str(path), is_float)


def check_rate(rate: int, name: str) -> None:
    """Check a rate in Hz."""
    low, high = RATES
    if not low <= rate <= high:
        raise UserError(f"{name} has a rate of {rate} Hz, expected {low} to {high}: convert it, or {FIX}")


def _length(file: soundfile.SoundFile, path: str | os.PathLike[str]) -> int:
    """Return the number of samples; count them if the header has none, and refuse a truncated file."""
    log = file.extra_info
    for promised, size in TRUNCATED.findall(log) if "(should be" in log else ():
        if int(size) < int(promised) < UNKNOWN_SIZE:
            raise UserError(f"{path} is truncated: its header promises {promised} bytes, {size} exist: {FIX}")
    if any(note in log for note in OGG_TRUNCATED):
        raise UserError(f"{path} is truncated: its last page is missing: {FIX}")
    length = int(file.frames)
    if length < UNKNOWN_LENGTH and (file.format != "MP3" or _has_mp3_length(path)):
        return length
    length = 0
    while (block := _block(file, BLOCK)) is not None:
        length += len(block)
    file.seek(0)
    return length


def _has_mp3_length(path: str | os.PathLike[str]) -> bool:
    """Return whether the header of an MP3 has its length; otherwise libsndfile estimates it from the first frames."""
    with open(path, "rb") as file:
        tag = file.read(10)
        # An ID3 tag may come first; its size is four times 7 bits.
        start = 10 + sum(byte << 7 * index for index, byte in enumerate(tag[:5:-1])) if tag[:3] == b"ID3" else 0
        file.seek(start)
        header = MP3_HEADER.search(file.read(512))
        size = os.fstat(file.fileno()).st_size - start
    if header is None:
        return False
    flags, _, promised = struct.unpack(">3I", header[1])
    if flags & 3 == 3 and size < promised:
        raise UserError(f"{path} is truncated: its header promises {promised} bytes, {size} exist: {FIX}")
    return bool(flags & 1)


def _read(file: soundfile.SoundFile, first: int, end: int) -> Float32[NDArray[Any], " N"]:
    """Read samples ``first`` to ``end`` as one channel; fewer if the file ends before."""
    if first and file.format == "MP3":  # its decoder prints warnings after seeking
        while file.tell() < first and _block(file, first - file.tell()) is not None:
            pass
    elif first:
        file.seek(first)
    blocks: list[NDArray[Any]] = []
    left = end - first
    while left > 0 and (block := _block(file, left)) is not None:
        blocks.append(block)
        left -= len(block)
    return np.concatenate(blocks) if len(blocks) > 1 else blocks[0] if blocks else np.empty(0, np.float32)


def _block(file: soundfile.SoundFile, max_samples: int) -> Float32[NDArray[Any], " N"] | None:
    """Read the next samples; None at the end."""
    block = file.read(min(max_samples, max(1, BLOCK // file.channels)), dtype="float32", always_2d=True)
    if not len(block):
        return None
    mixed: NDArray[Any] = block[:, 0] if block.shape[1] == 1 else block.mean(axis=1)
    return mixed


def waveform(mixed: NDArray[Any], rate: int, name: str, is_float: bool = True) -> Waveform:
    """Return one channel as a ``Waveform``; refuse empty sound and values that are not finite."""
    if not mixed.size:
        raise UserError(f"{name} has no samples: replace it or leave this input out")
    if is_float and not np.isfinite(mixed).all():
        raise UserError(f"{name} contains NaN or infinite samples: replace it or leave this input out")
    return Waveform(torch.from_numpy(np.ascontiguousarray(mixed, dtype=np.float32)), rate)
