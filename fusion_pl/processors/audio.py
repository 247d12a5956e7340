"""Open audio, or the parts that a processor selects, as mono float32 at the sample rate of the file."""

from __future__ import annotations

import io
import os
import re
import struct
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import soundfile
import torch
from jaxtyping import Float32
from numpy.typing import NDArray
from torch import Tensor

from fusion_pl.files import check_regular_file
from fusion_pl.processors.base import OPEN_ERRORS, Processor, Source, Span, describe_source, describe_type, to_source
from fusion_pl.types import UserError, Waveform

# (number of audio samples, rate in Hz) -> index of the first audio sample to read, and index after the last one
Crop = Callable[[int, int], tuple[int, int]]

RATE_RANGE = (1_000, 384_000)  # Hz; other rates are header errors, and resampling could need much memory
BLOCK_SIZE = 2**20  # number of values read at once; reading the length in the header at once could exhaust the memory
UNKNOWN_LENGTH = 2**62  # libsndfile returns at least this number of audio samples if the header contains no length
UNKNOWN_SIZE = 0x7FFFF000  # programs that write audio to a pipe put at least this number of bytes into the header
# Log lines of libsndfile for a file that is shorter than its header says, or whose last pages are missing.
TRUNCATION_NOTE = re.compile(r"^ *(?:data|Data Size|SSND|riff) *: (\d+) \(should be (\d+)\)", re.MULTILINE)
OGG_TRUNCATION_NOTES = ("Junk after the last page", "lacks an end-of-stream bit")
# Xing header in the first frame of an MP3 file: flags, number of frames, number of bytes.
MP3_HEADER = re.compile(rb"(?:Xing|Info)(.{12})", re.DOTALL)
MAX_WINDOWS, MIN_WINDOW = 16, 0.05  # spans of a clip: their number, and their length in seconds
HINT = "replace it or leave this input out"
INT_BITS = {"int16": 16, "int32": 32}


class AudioProcessor(Processor):
    """Base class of the processors of audio, whose opened values are ``Waveform``."""

    reads_files = True
    spans_are_units = False

    def open(self, value: Any, training: bool = False) -> Waveform:
        """Open audio as one channel.

        Args:
            value: path, bytes or open binary file of an audio file, of which only the part that ``crop`` selects
                is read; a ``Waveform``; or (array or tensor (N,) or (channels, N), rate in Hz) with floats, int16 or
                int32.
            training: whether ``crop`` may select a random part.

        Raises:
            UserError: if the audio cannot be decoded, or the value has another type.
        """
        source = to_source(value)
        return _convert_audio(value) if source is None else read_audio(source, partial(self.crop, training=training))

    def open_whole(self, value: Any) -> Waveform:
        """Open audio without cropping it."""
        source = to_source(value)
        return _convert_audio(value) if source is None else read_audio(source)

    def crop(self, samples: int, rate: int, training: bool) -> tuple[int, int]:
        """Return the start and end of the part of a file to read, in audio samples at ``rate``; here all of it."""
        del rate, training
        return 0, samples

    def estimate_length(self, value: Any) -> float:
        """Return the seconds of a file that are opened, by its header; 0 if the header has no length."""
        if not isinstance(value, (str, os.PathLike, bytes)):
            return 0.0
        try:
            if not isinstance(value, bytes):
                check_regular_file(value)
            header = soundfile.info(io.BytesIO(value) if isinstance(value, bytes) else value)
        except (soundfile.SoundFileError, *OPEN_ERRORS, TypeError):  # the loader reports the file
            return 0.0
        if header.frames >= UNKNOWN_LENGTH or header.samplerate < 1:
            return 0.0
        start, end = self.crop(header.frames, header.samplerate, training=False)
        return float((end - start) / header.samplerate)

    def spans(self, value: Waveform, limit: int = 64) -> list[Span]:
        """Return the seconds of consecutive windows of equal length, at least 50 ms each, at most 16 windows."""
        seconds = len(value.samples) / value.rate
        count = max(1, min(limit, MAX_WINDOWS, round(seconds / MIN_WINDOW)))
        return [((seconds * i / count, seconds * (i + 1) / count),) for i in range(count)]

    def occlude(self, value: Waveform, spans: Sequence[Span]) -> Waveform:
        """Return the clip with silence in some windows."""
        samples = value.samples.clone()
        for ((start, end),) in spans:
            samples[round(start * value.rate) : round(end * value.rate)] = 0
        return Waveform(samples, value.rate)

    def placeholder(self) -> Waveform:
        """Return one second of silence, which is longer than the first window of any encoder."""
        return Waveform(torch.zeros(16_000), 16_000)


class _UnseekableFile(soundfile.SoundFile):  # type: ignore[misc]  # soundfile has no annotations
    """Sound file that does not seek after each read: seeking fails at the end of a file of unknown length."""

    def seekable(self) -> bool:
        return False


def read_audio(source: Source, crop: Crop | None = None) -> Waveform:
    """Read the part of a wav, flac, ogg or mp3 file that ``crop`` selects, as mono at the sample rate of the file.

    Raises:
        UserError: if the file is missing, empty, truncated or not audio, or contains NaN or infinity.
    """
    path = describe_source(source, "sound")
    if not isinstance(source, bytes):
        check_regular_file(source)
    try:
        with _UnseekableFile(io.BytesIO(source) if isinstance(source, bytes) else source) as file:
            rate, is_float = file.samplerate, file.subtype in ("FLOAT", "DOUBLE")
            check_sample_rate(rate, path)
            length = _count_audio_samples(file, source, path)
            first, end = (0, length) if crop is None else crop(length, rate)
            samples = _read_mono(file, first, end)
            end_exists = end == length or file.format == "MP3"  # the size of an MP3 file is already checked
            if len(samples) < end - first or not (end_exists or len(_read_mono(file, length - 1, length))):
                raise UserError(f"{path} is truncated: its header promises {length} samples, fewer exist: {HINT}")
    except (soundfile.SoundFileError, OSError, TypeError) as error:  # TypeError: raw audio without a header
        reason = getattr(error, "error_string", str(error)).strip().rstrip(".")
        raise UserError(f"{path} cannot be read as sound ({reason}): expected wav, flac, ogg or mp3; {HINT}") from error
    return to_waveform(samples, rate, path, is_float)


def _convert_audio(value: Any) -> Waveform:
    type_error = UserError(
        "an audio input takes a path, bytes, a Waveform, or a pair (array or tensor (N,) or (channels, N), rate in Hz) "
        f"with samples as floats, int16 or int32, got {describe_type(value)}"
    )
    if not (isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], (Tensor, np.ndarray))):
        raise type_error
    raw, rate = value
    if not (isinstance(rate, (int, float, np.integer)) and rate > 0 and rate % 1 == 0):
        raise UserError(f"the rate of an audio input must be a positive whole number of Hz, got {rate!r}")
    samples = np.atleast_2d(raw.detach().cpu().float().numpy() if isinstance(raw, Tensor) else raw)
    name = str(raw.dtype).removeprefix("torch.")
    if samples.ndim != 2 or not (name in INT_BITS or "float" in name):
        raise UserError(f"{type_error}; the first value of the pair is {describe_type(raw)}")
    if samples.shape[0] > samples.shape[1] > 0:
        got = f"{describe_type(raw)}, which has more channels than samples"
        raise UserError(f"an audio input takes (channels, N), got {got}: transpose the array")
    if name in INT_BITS:
        samples = samples / float(2 ** (INT_BITS[name] - 1))
    check_sample_rate(int(rate), "the audio input")
    mixed = samples[0] if len(samples) == 1 else samples.mean(axis=0)
    return to_waveform(mixed, int(rate), "the audio input")


def check_sample_rate(rate: int, name: str) -> None:
    """Check that a sample rate in Hz is supported; ``name`` is the file or input in the message."""
    low, high = RATE_RANGE
    if not low <= rate <= high:
        raise UserError(f"{name} has a rate of {rate} Hz, expected {low} to {high}: convert it, or {HINT}")


def _count_audio_samples(file: soundfile.SoundFile, source: Source, path: str) -> int:
    """Return the number of audio samples, counted if the header has no length; refuse a truncated file."""
    log = file.extra_info
    for promised, size in TRUNCATION_NOTE.findall(log) if "(should be" in log else ():
        if int(size) < int(promised) < UNKNOWN_SIZE:
            raise UserError(f"{path} is truncated: its header promises {promised} bytes, {size} exist: {HINT}")
    if any(note in log for note in OGG_TRUNCATION_NOTES):
        raise UserError(f"{path} is truncated: its last page is missing: {HINT}")
    length = int(file.frames)
    if length < UNKNOWN_LENGTH and (file.format != "MP3" or _mp3_header_has_length(source, path)):
        return length
    length = 0
    while (block := _read_block(file, BLOCK_SIZE)) is not None:
        length += len(block)
    file.seek(0)
    return length


def _mp3_header_has_length(source: Source, path: str) -> bool:
    """Return whether the header of an MP3 file contains its length; if not, libsndfile only estimates the length."""
    with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as file:
        tag = file.read(10)
        # The file may start with an ID3 tag, whose size is stored as 7 bits in each of four bytes.
        start = 10 + sum(byte << 7 * index for index, byte in enumerate(tag[:5:-1])) if tag[:3] == b"ID3" else 0
        file.seek(start)
        header = MP3_HEADER.search(file.read(512))
        size = file.seek(0, io.SEEK_END) - start
    if header is None:
        return False
    flags, _, promised = struct.unpack(">3I", header[1])
    if flags & 3 == 3 and size < promised:
        raise UserError(f"{path} is truncated: its header promises {promised} bytes, {size} exist: {HINT}")
    return bool(flags & 1)


def _read_mono(file: soundfile.SoundFile, first: int, end: int) -> Float32[NDArray[Any], " N"]:
    """Read the audio samples from ``first`` to ``end`` as one channel; return fewer if the file ends before ``end``."""
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
    """Read at most ``max_samples`` audio samples as one channel; return None at the end of the file."""
    block = file.read(min(max_samples, max(1, BLOCK_SIZE // file.channels)), dtype="float32", always_2d=True)
    if not len(block):
        return None
    mixed: NDArray[Any] = block[:, 0] if block.shape[1] == 1 else block.mean(axis=1)
    return mixed


def to_waveform(samples: NDArray[Any], rate: int, name: str, is_float: bool = True) -> Waveform:
    """Return one channel of audio samples as a ``Waveform``.

    Args:
        samples: N audio samples.
        rate: sampling rate, in Hz.
        name: name of the file or input, for messages.
        is_float: whether the audio samples may be NaN or infinite, as in files of floating-point samples.

    Raises:
        UserError: if there are no audio samples, or one of them is NaN or, in single precision, infinite.
    """
    if not samples.size:
        raise UserError(f"{name} has no samples: replace it or leave this input out")
    if samples.dtype != np.float32:
        with np.errstate(over="ignore"):  # in single precision, a sample may become infinite
            samples = samples.astype(np.float32)
    if is_float and not np.isfinite(samples).all():
        raise UserError(f"{name} contains NaN or infinite samples: replace it or leave this input out")
    return Waveform(torch.from_numpy(np.ascontiguousarray(samples)), rate)
