"""Open sound: mono float32 at the rate of the file. Only what is used is read, so that a long file costs little."""

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

Crop = Callable[[int, int], tuple[int, int]]  # (samples of a file, its rate in Hz) -> (first, last + 1) to be read

RATES = (1_000, 384_000)  # Hz; outside of it a header is wrong, and resampling could take any time and memory
BLOCK = 2**20  # numbers read at a time: a header may claim any length, but memory is taken for what is there
UNKNOWN = 2**62  # from here on a length is libsndfile's way to say that the file does not name one
STREAMED = 0x7FFFF000  # from here on a size is what programs write into a pipe, where they do not know it yet
# What libsndfile notes of a file that is shorter than its header says, or whose last pages are missing.
SHORTENED = re.compile(r"^ *(?:data|Data Size|SSND|riff) *: (\d+) \(should be (\d+)\)", re.MULTILINE)
OGG_CUT = ("Junk after the last page", "lacks an end-of-stream bit")
# In the first frame of an MP3 that says how long it is: which numbers follow, frames, bytes.
MP3_LENGTH = re.compile(rb"(?:Xing|Info)(.{12})", re.DOTALL)
REPLACE = "replace it or empty its cell"


class _Stream(soundfile.SoundFile):  # type: ignore[misc]  # soundfile has no annotations
    """A file that is read in order: soundfile seeks after each read, which fails at the end of an unknown length."""

    def seekable(self) -> bool:
        return False


def read_audio(path: str | os.PathLike[str], crop: Crop | None = None) -> Waveform:
    """Read wav, flac, ogg or mp3 as mono, at the file's own rate.

    Args:
        path: of the file.
        crop: which part is wanted; None = all of it.

    Raises:
        UserError: where the file is missing, not sound, empty, cut off, or holds NaN or infinity.
    """
    check_regular(path)
    try:
        with _Stream(path) as file:
            rate, floats = file.samplerate, file.subtype in ("FLOAT", "DOUBLE")
            check_rate(rate, str(path))
            length = _length(file, path)
            first, end = (0, length) if crop is None else crop(length, rate)
            samples = _read(file, first, end)
            if len(samples) < end - first or not (end == length or _has_last(file, length)):
                raise UserError(f"{path} is cut off: its header promises {length} samples, fewer are there: {REPLACE}")
    except (soundfile.SoundFileError, OSError, TypeError) as error:  # TypeError: a suffix that means headerless samples
        reason = getattr(error, "error_string", str(error)).strip().rstrip(".")
        raise UserError(
            f"{path} cannot be read as sound ({reason}): expected wav, flac, ogg or mp3; {REPLACE}"
        ) from error
    return waveform(samples, rate, str(path), floats)


def check_rate(rate: int, where: str) -> None:
    """Refuse a rate in Hz that no recording has."""
    low, high = RATES
    if not low <= rate <= high:
        raise UserError(f"{where} has a rate of {rate} Hz, expected {low} to {high}: convert it, or {REPLACE}")


def _length(file: soundfile.SoundFile, path: str | os.PathLike[str]) -> int:
    """Return how many samples a file holds; by counting, where it does not say.

    Raises:
        UserError: where its header promises more than is there.
    """
    log = file.extra_info
    for promised, there in SHORTENED.findall(log) if "(should be" in log else ():
        if int(there) < int(promised) < STREAMED:
            raise UserError(f"{path} is cut off: its header promises {promised} bytes, {there} are there: {REPLACE}")
    if any(said in log for said in OGG_CUT):
        raise UserError(f"{path} is cut off: its last page is missing: {REPLACE}")
    length = int(file.frames)
    if length < UNKNOWN and (file.format != "MP3" or _mp3_names_length(path)):
        return length
    length = 0
    while (block := _block(file, BLOCK)) is not None:
        length += len(block)
    file.seek(0)
    return length


def _mp3_names_length(path: str | os.PathLike[str]) -> bool:
    """Say whether an MP3 tells its length; without, libsndfile estimates it from the first frames.

    Raises:
        UserError: where it is shorter than it says.
    """
    with open(path, "rb") as file:
        tag = file.read(10)
        # A tag may come first, its size in four times 7 bits.
        start = 10 + sum(byte << 7 * place for place, byte in enumerate(tag[:5:-1])) if tag[:3] == b"ID3" else 0
        file.seek(start)
        found = MP3_LENGTH.search(file.read(512))
        there = os.fstat(file.fileno()).st_size - start
    if found is None:
        return False
    flags, _, promised = struct.unpack(">3I", found[1])
    if flags & 3 == 3 and there < promised:
        raise UserError(f"{path} is cut off: its header promises {promised} bytes, {there} are there: {REPLACE}")
    return bool(flags & 1)


def _read(file: soundfile.SoundFile, first: int, end: int) -> Float32[NDArray[Any], " N"]:
    """Read samples ``first`` to ``end``, mixed to one channel; fewer, where the file ends before."""
    if first and file.format == "MP3":  # its decoder complains on the terminal wherever it is set down
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


def _has_last(file: soundfile.SoundFile, length: int) -> bool:
    """Say whether the last sample is there; of an MP3 the bytes were counted."""
    return file.format == "MP3" or len(_read(file, length - 1, length)) > 0


def _block(file: soundfile.SoundFile, most: int) -> Float32[NDArray[Any], " N"] | None:
    """Read on, at most ``most`` samples; None at the end."""
    block = file.read(min(most, max(1, BLOCK // file.channels)), dtype="float32", always_2d=True)
    if not len(block):
        return None
    mixed: NDArray[Any] = block[:, 0] if block.shape[1] == 1 else block.mean(axis=1)
    return mixed


def waveform(mixed: NDArray[Any], rate: int, where: str, floats: bool = True) -> Waveform:
    """Return one channel as a ``Waveform``, and refuse what would poison a network; only ``floats`` can hold NaN."""
    if not mixed.size:
        raise UserError(f"{where} holds no samples: replace it or leave this input out")
    if floats and not np.isfinite(mixed).all():
        raise UserError(f"{where} holds NaN or infinite samples: replace it or leave this input out")
    return Waveform(torch.from_numpy(np.ascontiguousarray(mixed, dtype=np.float32)), rate)
