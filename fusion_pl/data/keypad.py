"""The demo data: keys of a telephone that are seen, heard and read, none of them reliably."""

from __future__ import annotations

import csv
import functools
import json
import os
import re
import wave
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from filelock import FileLock
from jaxtyping import Float, Int16
from numpy.random import Generator
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from rich.progress import track

from fusion_pl.types import UserError

VERSION = 1  # of the drawing; raise it with every change that alters a byte, so that older folders are written anew
CLASSES = tuple("0123456789")
SIZES: Mapping[str, int] = {"train": 2000, "val": 500, "test": 500}
COLUMNS = ("id", "text", "image", "audio", "label", "split")
MARKER, MANIFEST, LOCK = ".keypad.json", "manifest.csv", ".keypad.lock"

# Drawn for each input by itself, so that what one hides another mostly shows.
MISSING = 0.125
UNREADABLE = 0.1

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
LETTERS = list("abcdefghijklmnopqrstuvwxyz")
FILLERS = [*LETTERS, *"-.*_~" * 4]
FONTS = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSansMono", "DejaVuSerif", "DejaVuSerif-Italic")
SIDE = 32  # pixels
RATE = 8000  # Hz, as on the telephone line
# Rows and columns of the keypad in Hz. Source: ITU-T Recommendation Q.23.
LOW = (697.0, 770.0, 852.0, 941.0)
HIGH = (1209.0, 1336.0, 1477.0)


class Press(NamedTuple):
    """One pressed key; an input that is missing is None.

    Attributes:
        text: the number word inside other characters.
        image: 32 × 32 pixels, grey.
        audio: 0.25 to 0.5 s at 8 kHz.
    """

    text: str | None
    image: Image.Image | None
    audio: Int16[np.ndarray, " N"] | None


def press(digit: int, rng: Generator) -> Press:
    """Draw one sample of a digit.

    Each input is missing with probability 0.125 and, where it is there, unreadable with 0.1, whatever the others are;
    samples without any readable input are drawn again, so that no label is a guess.

    Args:
        digit: 0 to 9.
        rng: everything random comes from here.
    """
    while True:
        there = rng.random(3) >= MISSING
        clear = rng.random(3) >= UNREADABLE
        if (there & clear).any():
            break
    text, image, audio = _write(digit, clear[0], rng), _render(digit, clear[1], rng), _dial(digit, clear[2], rng)
    return Press(text if there[0] else None, image if there[1] else None, audio if there[2] else None)


def _write(digit: int, readable: np.bool, rng: Generator) -> str:
    """Hide the number word, with up to two typos, in other characters; scramble it where it is not readable."""
    word = list(WORDS[digit]) if readable else list(rng.choice(FILLERS, len(WORDS[digit])))
    for _ in range(rng.choice(3, p=(0.65, 0.3, 0.05)) if len(word) > 3 else int(rng.random() < 0.2)):
        place = rng.integers(len(word))
        word[place] = "" if rng.random() < 0.4 else rng.choice(LETTERS)
    before, after = (rng.choice(FILLERS, rng.integers(2, 8)) for _ in range(2))
    return "".join([*before, *word, *after])


@functools.lru_cache
def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    import matplotlib as mpl

    return ImageFont.truetype(Path(mpl.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf", size)


def _render(digit: int, readable: np.bool, rng: Generator) -> Image.Image:
    """Render the digit in some font, place and angle behind a bar and noise; wash it out where it is not readable."""
    ink = Image.new("L", (SIDE, SIDE))
    place = SIDE / 2 + rng.uniform(-3, 3, 2)
    font = _font(FONTS[rng.integers(len(FONTS))], int(rng.integers(19, 27)))
    ImageDraw.Draw(ink).text((place[0], place[1]), str(digit), fill=255, font=font, anchor="mm")
    ink = ink.rotate(rng.uniform(-12, 12), Image.Resampling.BICUBIC)
    contrast = rng.uniform(0.55, 0.8) if readable else rng.uniform(0.0, 0.04)
    light = np.asarray(ink) / 255 * contrast + rng.uniform(0.1, 0.25)
    top, left = rng.integers(0, SIDE - 8, 2)
    height, width = rng.permutation([rng.integers(2, 5), rng.integers(6, 16)])
    light[top : top + height, left : left + width] = rng.uniform(0.0, 0.9)
    light += rng.normal(0.0, rng.uniform(0.05, 0.14), light.shape)
    return Image.fromarray((light.clip(0, 1) * 255).astype(np.uint8))


def _dial(digit: int, readable: np.bool, rng: Generator) -> Int16[np.ndarray, " N"]:
    """Sound the key's two tones somewhere in noise; mask one or both of them where it is not readable.

    Formula: x(t) = a (g₁ sin(2π f₁ t + φ₁) + g₂ sin(2π f₂ t + φ₂)) + n(t), f₁ by row and f₂ by column of the keypad.
    """
    row, column = (3, 1) if digit == 0 else divmod(digit - 1, 3)
    time = np.arange(rng.integers(int(0.25 * RATE), int(0.5 * RATE) + 1)) / RATE
    gains = rng.uniform(0.8, 1.2, 2)
    if not readable:
        gains *= [(0.0, 0.0), (0.0, 1.0), (1.0, 0.0)][rng.choice(3, p=(0.8, 0.1, 0.1))]
    phases = rng.uniform(0, 2 * np.pi, (2, 1))
    tones = np.sin(2 * np.pi * np.outer((LOW[row], HIGH[column]), time) + phases)
    seconds = rng.uniform(0.1, 0.2)
    start = rng.uniform(0, time[-1] - seconds)
    heard = (time >= start) & (time < start + seconds)
    decibels = rng.uniform(-4, 8)  # power of both tones over that of the noise, while they sound
    signal: Float[np.ndarray, " N"] = gains @ tones * heard + rng.normal(0.0, 10 ** (-decibels / 20), len(time))
    level = rng.uniform(0.1, 0.6)
    samples: Int16[np.ndarray, " N"] = (signal / np.abs(signal).max() * level * 32767).astype(np.int16)
    return samples


def write_keypad(folder: str | Path, seed: int = 0, sizes: Mapping[str, int] = SIZES) -> Path:
    """Write the demo data, unless it is there already, and return its manifest.

    The same seed gives the same bytes. A set that a killed run left unfinished is written again; several processes may
    call this at once, and the first one writes.

    Args:
        folder: where to; made where it does not exist.
        seed: 0 or more.
        sizes: split -> samples.

    Returns:
        Path of ``manifest.csv`` with the columns id, text, image, audio, label and split.

    Raises:
        UserError: where the folder holds something else or cannot be written, or the seed is negative.
    """
    folder = Path(folder)
    wanted = {"version": VERSION, "seed": seed, "sizes": dict(sizes)}
    if seed < 0:
        raise UserError(f"the seed of the demo data must be 0 or more, got {seed}")
    try:
        if not _finished(folder, wanted):  # asked before anything is written, so that a read-only copy can be used
            folder.mkdir(parents=True, exist_ok=True)
            _refuse_other_files(folder, wanted)
            with FileLock(folder / LOCK):
                if not _finished(folder, wanted):
                    _fill(folder, wanted)
    except OSError as error:
        raise UserError(
            f"the demo data cannot be written to {folder} ({error.strerror or error}): make room for about 40 MB "
            "there, or name another folder"
        ) from error
    return folder / MANIFEST


def _marker(folder: Path) -> Any:
    """Return what the folder was written from; None where the marker is absent or was cut short."""
    try:
        return json.loads((folder / MARKER).read_text())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None


def _finished(folder: Path, wanted: Mapping[str, Any]) -> bool:
    """Tell whether the folder holds the whole set: the manifest comes last, and what it names may have been deleted."""
    if _marker(folder) != wanted or not (folder / MANIFEST).exists():
        return False
    with (folder / MANIFEST).open(newline="") as file:
        named = {row[key] for row in csv.DictReader(file) for key in ("image", "audio") if row[key]}
    return named <= {f"{kind}/{name}" for kind in ("images", "audio") for name in _names(folder / kind)}


def _names(folder: Path) -> list[str]:
    return os.listdir(folder) if folder.is_dir() else []


def _refuse_other_files(folder: Path, wanted: Mapping[str, Any]) -> None:
    """Keep away from what the user may have put there.

    Raises:
        UserError: where the folder holds files that are not this set, or the same set with another seed or size.
    """
    others = sorted(set(_names(folder)) - {LOCK})
    if others and not (folder / MARKER).exists():
        raise UserError(
            f"{folder} holds files that are not the demo data, such as {others[0]}: name another folder for "
            "it, or move them"
        )
    found = _marker(folder)
    same = found is None or all(found.get(key) == wanted[key] for key in ("seed", "sizes"))
    if not same and (folder / MANIFEST).exists():
        raise UserError(
            f"{folder} holds the demo data with seed {found['seed']} and sizes {found['sizes']}, but seed "
            f"{wanted['seed']} and sizes {wanted['sizes']} are asked for: name another folder, or delete this one"
        )


def _fill(folder: Path, wanted: Mapping[str, Any]) -> None:
    """Write marker, media and manifest, in this order: a folder with a marker is ours, one with a manifest is whole."""
    (folder / MANIFEST).unlink(missing_ok=True)
    (folder / MARKER).write_text(json.dumps(wanted))
    for kind, pattern in (("images", r"\d{5}\.png"), ("audio", r"\d{5}\.wav")):
        (folder / kind).mkdir(exist_ok=True)
        for name in filter(re.compile(pattern).fullmatch, _names(folder / kind)):
            (folder / kind / name).unlink()
    with (folder / f"{MANIFEST}.part").open("w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(COLUMNS)
        table.writerows(_rows(folder, wanted["seed"], wanted["sizes"]))
    (folder / f"{MANIFEST}.part").replace(folder / MANIFEST)


def _rows(folder: Path, seed: int, sizes: Mapping[str, int]) -> Iterator[tuple[str, ...]]:
    """Write each sample's files and yield its row."""
    console = Console(stderr=True)
    splits = [split for split, size in sizes.items() for _ in range(size)]
    bar = track(splits, "Writing the demo data", console=console, transient=True, disable=not console.is_terminal)
    for index, split in enumerate(bar):
        digit = index % len(CLASSES)  # every split holds every class
        text, image, audio = press(digit, np.random.default_rng([seed, index]))
        image_path, audio_path = f"images/{index:05d}.png", f"audio/{index:05d}.wav"
        if image is not None:
            image.save(folder / image_path, compress_level=1)  # noise: more would cost time and save nothing
        if audio is not None:
            with wave.open(str(folder / audio_path), "wb") as file:
                file.setparams((1, 2, RATE, 0, "NONE", ""))
                file.writeframes(audio.astype("<i2").tobytes())
        yield (
            f"{index:05d}",
            text or "",
            image_path if image is not None else "",
            audio_path if audio is not None else "",
            CLASSES[digit],
            split,
        )
