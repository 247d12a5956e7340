"""The demo data: keys of a telephone that are seen, heard and read, none of them reliably."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int16
from numpy.random import Generator
from PIL import Image, ImageDraw, ImageFont

from fusion_pl.data.drawn import Drawing, DrawnSet

VERSION = 1  # raise it with every change that alters a byte
CLASSES = tuple("0123456789")
SIZES: Mapping[str, int] = {"train": 2000, "val": 500, "test": 500}

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


def press(digit: int, rng: Generator) -> Drawing:
    """Draw one sample of a digit.

    Each input is missing with probability 0.125 and, where it is there, unreadable with 0.1, whatever the others are;
    samples without any readable input are drawn again, so that no label is a guess.

    Args:
        digit: 0 to 9.
        rng: everything random comes from here.

    Returns:
        The number word inside other characters, 32 × 32 grey pixels, and 0.25 to 0.5 s of sound at 8 kHz.
    """
    while True:
        there = rng.random(3) >= MISSING
        clear = rng.random(3) >= UNREADABLE
        if (there & clear).any():
            break
    text, image, audio = _write(digit, clear[0], rng), _render(digit, clear[1], rng), _dial(digit, clear[2], rng)
    seen, heard = image if there[1] else None, audio if there[2] else None
    return Drawing(CLASSES[digit], text if there[0] else None, seen, heard)


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
    """Write the demo data, unless it is there already, and return its manifest; see ``DrawnSet.write``."""
    return DrawnSet("keypad", VERSION, RATE, _draw).write(folder, seed, sizes)


def _draw(index: int, rng: Generator) -> Drawing:
    digit = index % len(CLASSES)  # every split holds every class
    return press(digit, rng)
