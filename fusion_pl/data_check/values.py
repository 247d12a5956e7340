"""Inspect the value of a cell: whether it can be opened, and whether its content is suspicious."""

from __future__ import annotations

import os
import unicodedata
import warnings
from collections.abc import Iterator
from functools import partial, singledispatch
from hashlib import blake2b
from typing import Any, NamedTuple

import soundfile
from PIL import Image

from fusion_pl.data.rows import InputColumn
from fusion_pl.data_check.findings import Kind
from fusion_pl.files import check_regular_file
from fusion_pl.processors.audio import AudioProcessor
from fusion_pl.processors.base import OPEN_ERRORS, Length, Processor
from fusion_pl.processors.image import FORMATS
from fusion_pl.training.content_hash import hash_content
from fusion_pl.types import UserError, Waveform

# Words of a message -> kind of the error: decoders have no other way to tell errors apart.
ERROR_KINDS = {
    "has 0 bytes": Kind.EMPTY_FILE,
    "truncated": Kind.TRUNCATED,
    "end of file": Kind.TRUNCATED,
    "Pillow's limit": Kind.ABSURD,
    "decompression bomb": Kind.ABSURD,
    "too long to decode": Kind.ABSURD,
    "has a rate of": Kind.ABSURD,
}
MAX_WHOLE_SAMPLES = 2**27  # of a longer recording, only what the encoder reads is opened; 512 MiB
MID_GREY, STRIP = 128, 8  # value and smallest size, in pixels, of the blocks that a JPEG decoder fills in
COLOUR_TOLERANCE = 3  # of the channels of an image of one colour, which may have been compressed
MAX_PIXELS, MIN_SIDE, MAX_ASPECT = 50_000_000, 8, 20
MIN_SECONDS, MAX_SECONDS, MIN_RATE = 0.05, 3600, 4000
SILENCE = 1e-4  # largest deviation from the mean of a silent sound; -80 dBFS
GREY_SIZE = (9, 8)  # width and height in pixels
# Variant of a format, with the same endings -> the format; MPO is a JPEG with further pictures, as phones write it.
BASE_FORMATS = {"MPO": "JPEG", "RF64": "WAV", "WAVEX": "WAV"}


class Flaw(NamedTuple):
    """Kind and description of something that is wrong with a value."""

    kind: Kind
    text: str


class Inspection(NamedTuple):
    """What the check keeps of an opened value.

    Attributes:
        error: why the value cannot be used; None if it can.
        warnings: what may be wrong with the value.
        content: 64-bit hash of the content: of the decoded pixels or audio samples, or of the words of a text.
        grey: 8 rows of 9 grey pixels of an image that has more than one colour; else empty.
        length: length of the value, if its encoder may cut it off.
        is_text: whether the value is a text.
    """

    error: Flaw | None = None
    warnings: tuple[Flaw, ...] = ()
    content: int = 0
    grey: bytes = b""
    length: Length | None = None
    is_text: bool = False


def inspect_cell(column: InputColumn, cell: Any) -> Inspection:
    """Open a cell completely and inspect its value.

    Args:
        column: column of the cell, with the processor that opens it.
        cell: path, bytes, text or another value.
    """
    try:
        with warnings.catch_warnings():  # decoders warn about odd metadata, which changes no value
            warnings.simplefilter("ignore")
            return column.open_local(cell, partial(_inspect, column.processor))
    except OPEN_ERRORS as error:
        text = " ".join(str(error).split())
        return Inspection(
            Flaw(next((ERROR_KINDS[words] for words in ERROR_KINDS if words in text), Kind.UNREADABLE), text)
        )
    except MemoryError:
        name = cell if isinstance(cell, str) and column.processor.reads_files else "the value"
        return Inspection(Flaw(Kind.ABSURD, f"{name} does not fit into the memory: replace it or empty its cell"))


def _inspect(processor: Processor, cell: Any) -> Inspection:
    path = cell if processor.reads_files and isinstance(cell, str) else None
    if path is not None:
        check_regular_file(path)
    if (path is not None and not os.path.getsize(path)) or (processor.reads_files and cell == b""):
        raise UserError(f"{path or 'the file'} has 0 bytes: replace it or empty its cell")
    size = _num_audio_samples(path) if path is not None and isinstance(processor, AudioProcessor) else 0
    is_long = size > MAX_WHOLE_SAMPLES
    value = processor.open(cell) if is_long else processor.open_whole(cell)
    flaws = list(find_flaws(value, path))
    if is_long:
        text = f"the sound has {size} audio samples, of which only the part that the encoder reads was checked"
        flaws.append(Flaw(Kind.UNUSUAL, f"{text}: divide it"))
    has_colours = isinstance(value, Image.Image) and Kind.CONSTANT not in {flaw.kind for flaw in flaws}
    return Inspection(
        warnings=tuple(flaws),
        content=int.from_bytes(blake2b(content_bytes(value), digest_size=8).digest(), "little"),
        grey=value.convert("L").resize(GREY_SIZE, Image.Resampling.BOX).tobytes() if has_colours else b"",
        length=processor.length(value),
        is_text=isinstance(value, str),
    )


@singledispatch
def content_bytes(value: Any) -> bytes:
    """Return what makes the content of a value: equal for equal images in different files, for example."""
    return hash_content(value)


@content_bytes.register
def _(value: str) -> bytes:
    words = " ".join(unicodedata.normalize("NFKC", value).casefold().split())
    return words.encode("utf-8", "surrogatepass")


@content_bytes.register
def _(value: Image.Image) -> bytes:
    return f"{value.mode} {value.size}".encode() + value.tobytes()


@content_bytes.register
def _(value: Waveform) -> bytes:
    return str(value.rate).encode() + value.samples.numpy().tobytes()


@singledispatch
def find_flaws(value: Any, path: str | None) -> Iterator[Flaw]:
    """Yield what may be wrong with a value that was opened; ``path`` is its file, if it has one."""
    del value, path
    return iter(())


@find_flaws.register
def _(value: str, path: str | None) -> Iterator[Flaw]:
    del path
    if not value.strip():
        yield Flaw(Kind.BLANK, "the text has no words: write one, or empty the cell so that the input is missing")
    if count := value.count("\N{REPLACEMENT CHARACTER}"):
        text = f"the text contains {count} × U+FFFD, which replaces characters that an earlier conversion lost"
        yield Flaw(Kind.LOST_CHARACTERS, f"{text}: copy it again from its source")


@find_flaws.register
def _(value: Image.Image, path: str | None) -> Iterator[Flaw]:
    ranges = _channel_ranges(value)
    if all(high - low <= COLOUR_TOLERANCE for low, high in ranges):
        colour = "black" if max(high for _, high in ranges) <= COLOUR_TOLERANCE else "of the same colour"
        yield Flaw(Kind.CONSTANT, f"all pixels are {colour}: replace the image or empty its cell")
    width, height = value.size
    size = f"the image has {width} × {height} pixels"
    if width * height > MAX_PIXELS:
        yield Flaw(Kind.UNUSUAL, f"{size}: make it smaller, since it is decoded in every epoch")
    elif min(width, height) < MIN_SIDE or max(width, height) > MAX_ASPECT * min(width, height):
        yield Flaw(Kind.UNUSUAL, f"{size}: look at it")
    if path is None:
        return
    with Image.open(path, formats=FORMATS) as file:
        content = str(file.format)
    yield from _compare_ending(path, content, Image.registered_extensions().get(_ending(path)))
    if content in {"JPEG", "MPO"} and (side := _grey_side(value)):
        text = f"its {side} pixels are all mid-grey, which decoders fill in for the missing part of a JPEG"
        yield Flaw(Kind.PARTLY_GREY, f"{text}: look at it, and replace it if it was cut off")


@find_flaws.register
def _(value: Waveform, path: str | None) -> Iterator[Flaw]:
    samples = value.samples
    if float((samples - samples.mean()).abs().max()) < SILENCE:
        yield Flaw(Kind.SILENT, "the sound is silent: replace it or empty its cell")
    seconds = len(samples) / value.rate
    if not MIN_SECONDS <= seconds <= MAX_SECONDS:
        yield Flaw(Kind.UNUSUAL, f"the sound takes {seconds:.3g} seconds: listen to it")
    if value.rate < MIN_RATE:
        yield Flaw(Kind.UNUSUAL, f"the sound has {value.rate} audio samples per second, telephones 8000: listen to it")
    if path is not None:
        content = soundfile.info(path).format
        ending = _ending(path)[1:].upper()
        yield from _compare_ending(path, content, ending if ending in soundfile.available_formats() else None)


def _num_audio_samples(path: str) -> int:
    """Return the number of audio samples that the header of a sound file promises; 0 if it cannot be read."""
    try:
        return int(soundfile.info(path).frames)
    except (soundfile.SoundFileError, OSError, TypeError):
        return 0


def _ending(path: str) -> str:
    return os.path.splitext(path)[1].lower()


def _compare_ending(path: str, content: str, expected: str | None) -> Iterator[Flaw]:
    """Yield a flaw if the ending of a file name belongs to another format than the content of the file."""
    if expected is not None and BASE_FORMATS.get(content, content) != BASE_FORMATS.get(expected, expected):
        text = f"the name of the file ends in {_ending(path)}, but its content is {content}: rename it"
        yield Flaw(Kind.WRONG_ENDING, text)


def _channel_ranges(image: Image.Image) -> list[tuple[int, int]]:
    """Return the smallest and the largest value of each channel."""
    extrema: Any = image.getextrema()
    return list(extrema) if isinstance(extrema[0], tuple) else [extrema]


def _grey_side(image: Image.Image) -> str | None:
    """Return the side, such as ``bottom``, whose outermost pixels are all mid-grey; None unless it is a single one."""
    width, height = image.size
    boxes = {
        "bottom": (0, height - STRIP, width, height),
        "top": (0, 0, width, STRIP),  # the sides may be exchanged by the EXIF orientation
        "left": (0, 0, STRIP, height),
        "right": (width - STRIP, 0, width, height),
    }
    if min(width, height) < 2 * STRIP:
        return None
    sides = [
        side for side, box in boxes.items() if all(r == (MID_GREY, MID_GREY) for r in _channel_ranges(image.crop(box)))
    ]
    return sides[0] if len(sides) == 1 else None
