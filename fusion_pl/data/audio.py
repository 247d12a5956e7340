"""Read audio files as mono float32 at their own sample rate; a processor may select a part, and resamples it."""

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

from fusion_pl.files import check_regular_file
from fusion_pl.types import UserError, Waveform

Crop = Callable[[int, int], tuple[int, int]]  # (number of audio samples, rate in Hz) -> (first, end)

RATE_RANGE = (1_000, 384_000)  # Hz; other rates are header errors, and resampling them could need much memory
BLOCK_SIZE = 2**20  # values read at a time, because a header may contain any length
UNKNOWN_LENGTH = 2**62  # libsndfile returns at least this number of audio samples if the header has no length
UNKNOWN_SIZE = 0x7FFFF000  # programs that write to a pipe put at least this size into the header
# Log lines of libsndfile for a file that is shorter than its header says, or whose last pages are missing.
TRUNCATION_NOTE = re.compile(r"^ *(?:data|Data Size|SSND|riff) *: (\d+) \(should be (\d+)\)", re.MULTILINE)
OGG_TRUNCATION_NOTES = ("Junk after the last page", "lacks an end-of-stream bit")
# Xing header in the first frame of an MP3 file: flags, number of frames, number of bytes.
MP3_HEADER = re.compile(rb"(?:Xing|Info)(.{12})", re.DOTALL)
HINT = "replace it or empty its cell"


class _UnseekableFile(soundfile.SoundFile):  # type: ignore[misc]  # soundfile has no annotations
    """Sound file that does not seek after each read: seeking fails at the end of a file of unknown length."""

    def seekable(self) -> bool:
        return False


def read_audio(path: str | os.PathLike[str], crop: Crop | None = None) -> Waveform:
    """Read the part of a wav, flac, ogg or mp3 file that ``crop`` selects, as mono at the sample rate of the file.

    Raises:
        UserError: if the file is missing, empty, truncated or not audio, or contains NaN or infinity.
    """
    check_regular_file(path)
    try:
        with _UnseekableFile(path) as file:
            rate, is_float = file.samplerate, file.subtype in ("FLOAT", "DOUBLE")
            check_sample_rate(rate, str(path))
            length = _count_audio_samples(file, path)
            first, end = (0, length) if crop is None else crop(length, rate)
            samples = _read_mono(file, first, end)
            has_end = end == length or file.format == "MP3"  # the size of an MP3 file is already checked
            if len(samples) < end - first or not (has_end or len(_read_mono(file, length - 1, length))):
                raise UserError(f"{path} is truncated: its header promises {length} samples, fewer exist: {HINT}")
    except (soundfile.SoundFileError, OSError, TypeError) as error:  # TypeError: raw audio without a header
        reason = getattr(error, "error_string", str(error)).strip().rstrip(".")
        raise UserError(f"{path} cannot be read as sound ({reason}): expected wav, flac, ogg or mp3; {HINT}") from error
    return to_waveform(samples, rate, str(path), is_float)


def check_sample_rate(rate: int, name: str) -> None:
    """Check that a sample rate in Hz is supported; ``name`` is the file or input in the message."""
    low, high = RATE_RANGE
    if not low <= rate <= high:
        raise UserError(f"{name} has a rate of {rate} Hz, expected {low} to {high}: convert it, or {HINT}")


def _count_audio_samples(file: soundfile.SoundFile, path: str | os.PathLike[str]) -> int:
    """Return the number of audio samples, counted if the header has no length; refuse a truncated file."""
    log = file.extra_info
    for promised, size in TRUNCATION_NOTE.findall(log) if "(should be" in log else ():
        if int(size) < int(promised) < UNKNOWN_SIZE:
            raise UserError(f"{path} is truncated: its header promises {promised} bytes, {size} exist: {HINT}")
    if any(note in log for note in OGG_TRUNCATION_NOTES):
        raise UserError(f"{path} is truncated: its last page is missing: {HINT}")
    length = int(file.frames)
    if length < UNKNOWN_LENGTH and (file.format != "MP3" or _mp3_header_has_length(path)):
        return length
    length = 0
    while (block := _read_block(file, BLOCK_SIZE)) is not None:
        length += len(block)
    file.seek(0)
    return length


def _mp3_header_has_length(path: str | os.PathLike[str]) -> bool:
    """Return whether the header of an MP3 file contains its length; libsndfile only estimates it otherwise."""
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
        raise UserError(f"{path} is truncated: its header promises {promised} bytes, {size} exist: {HINT}")
    return bool(flags & 1)


def _read_mono(file: soundfile.SoundFile, first: int, end: int) -> Float32[NDArray[Any], " N"]:
    """Read the audio samples from ``first`` to ``end`` as one channel; fewer if the file ends earlier."""
    if first and file.format == "MP3":  # the MP3 decoder prints warnings after seeking
        while file.tell() < first and _read_block(file, first - file.tell()) is not None:
            pass
    elif first:
        file.seek(first)
    blocks: list[NDArray[Any]] = []
    remaining = end - first
    while remaining > 0 and (block := _read_block(file, remaining)) is not None:
        blocks.append(block)
        remaining -= len(block)
    return np.concatenate(blocks) if len(blocks) > 1 else blocks[0] if blocks else np.empty(0, np.float32)


def _read_block(file: soundfile.SoundFile, max_samples: int) -> Float32[NDArray[Any], " N"] | None:
    """Read the next audio samples as one channel; return None at the end of the file."""
    block = file.read(min(max_samples, max(1, BLOCK_SIZE // file.channels)), dtype="float32", always_2d=True)
    if not len(block):
        return None
    mixed: NDArray[Any] = block[:, 0] if block.shape[1] == 1 else block.mean(axis=1)
    return mixed


def to_waveform(mixed: NDArray[Any], rate: int, name: str, is_float: bool = True) -> Waveform:
    """Return one channel as a ``Waveform``; refuse empty audio and values that are not finite."""
    if not mixed.size:
        raise UserError(f"{name} has no samples: replace it or leave this input out")
    if is_float and not np.isfinite(mixed).all():
        raise UserError(f"{name} contains NaN or infinite samples: replace it or leave this input out")
    return Waveform(torch.from_numpy(np.ascontiguousarray(mixed, dtype=np.float32)), rate)
