"""Demo data: keys of a telephone as text, image and audio. Random inputs are missing or unreadable."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int16
from numpy.random import Generator
from PIL import Image, ImageDraw, ImageFont

from fusion_pl.data.synthetic import SyntheticDataset, SyntheticSample

CLASSES = tuple("0123456789")
MISSING_PROBABILITY, UNREADABLE_PROBABILITY = 0.125, 0.1  # probabilities per input, independent of the other inputs

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
LETTERS = list("abcdefghijklmnopqrstuvwxyz")
FILLER_CHARACTERS = [*LETTERS, *"-.*_~" * 4]
FONTS = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSansMono", "DejaVuSerif", "DejaVuSerif-Italic")
SIDE = 32  # pixels
RATE = 8000  # Hz
# Tone of each row and column of the keypad, in Hz. Source: ITU-T Recommendation Q.23.
ROW_FREQUENCIES = (697.0, 770.0, 852.0, 941.0)
COLUMN_FREQUENCIES = (1209.0, 1336.0, 1477.0)


def generate_sample(index: int, rng: Generator) -> SyntheticSample:
    """Generate a sample of the class ``index % 10``, so that every split has every class.

    Each input is missing with probability 0.125 and unreadable with probability 0.1, independent of the other inputs;
    at least one input is present and readable. The text is the number word between random characters, the image has
    32 × 32 grey pixels, and the audio has 0.25 to 0.5 s at 8 kHz.
    """
    digit = index % len(CLASSES)
    while True:
        present = rng.random(3) >= MISSING_PROBABILITY
        readable = rng.random(3) >= UNREADABLE_PROBABILITY
        if (present & readable).any():
            break
    generators = (_generate_text, _draw_image, _synthesise_audio)
    values: list[Any] = [generate(digit, flag, rng) for generate, flag in zip(generators, readable, strict=True)]
    return SyntheticSample(CLASSES[digit], *(values[i] if present[i] else None for i in range(3)))


def _generate_text(digit: int, is_readable: np.bool, rng: Generator) -> str:
    """Write the number word with up to two typos between random characters; an unreadable word has random letters."""
    word = list(WORDS[digit]) if is_readable else list(rng.choice(FILLER_CHARACTERS, len(WORDS[digit])))
    for _ in range(rng.choice(3, p=(0.65, 0.3, 0.05)) if len(word) > 3 else int(rng.random() < 0.2)):
        position = rng.integers(len(word))
        word[position] = "" if rng.random() < 0.4 else rng.choice(LETTERS)
    before, after = (rng.choice(FILLER_CHARACTERS, rng.integers(2, 8)) for _ in range(2))
    return "".join([*before, *word, *after])


@functools.lru_cache
def _load_font(name: str, size: int) -> ImageFont.FreeTypeFont:
    import matplotlib as mpl

    return ImageFont.truetype(Path(mpl.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf", size)


def _draw_image(digit: int, is_readable: np.bool, rng: Generator) -> Image.Image:
    """Draw the digit in a random font, position and angle behind a bar and noise; if unreadable, almost invisible."""
    ink = Image.new("L", (SIDE, SIDE))
    center = SIDE / 2 + rng.uniform(-3, 3, 2)
    font = _load_font(FONTS[rng.integers(len(FONTS))], int(rng.integers(19, 27)))
    ImageDraw.Draw(ink).text((center[0], center[1]), str(digit), fill=255, font=font, anchor="mm")
    ink = ink.rotate(rng.uniform(-12, 12), Image.Resampling.BICUBIC)
    contrast = rng.uniform(0.55, 0.8) if is_readable else rng.uniform(0.0, 0.04)
    light = np.asarray(ink) / 255 * contrast + rng.uniform(0.1, 0.25)
    top, left = rng.integers(0, SIDE - 8, 2)
    height, width = rng.permutation([rng.integers(2, 5), rng.integers(6, 16)])
    light[top : top + height, left : left + width] = rng.uniform(0.0, 0.9)
    light += rng.normal(0.0, rng.uniform(0.05, 0.14), light.shape)
    return Image.fromarray((light.clip(0, 1) * 255).astype(np.uint8))


def _synthesise_audio(digit: int, is_readable: np.bool, rng: Generator) -> Int16[np.ndarray, " N"]:
    """Synthesise the two tones of a key at a random time, with noise; if unreadable, one or both tones are absent.

    ``x(t) = a(t) (g₁ sin(2π f₁ t + φ₁) + g₂ sin(2π f₂ t + φ₂)) + n(t)``, where ``f₁`` is the tone of the key's row and
    ``f₂`` that of its column, ``a(t)`` is 1 while the key is pressed, else 0, and ``n(t)`` is white noise.
    """
    row, column = (3, 1) if digit == 0 else divmod(digit - 1, 3)
    time = np.arange(rng.integers(int(0.25 * RATE), int(0.5 * RATE) + 1)) / RATE
    gains = rng.uniform(0.8, 1.2, 2)
    if not is_readable:
        gains *= [(0.0, 0.0), (0.0, 1.0), (1.0, 0.0)][rng.choice(3, p=(0.8, 0.1, 0.1))]
    phases = rng.uniform(0, 2 * np.pi, (2, 1))
    tones = np.sin(2 * np.pi * np.outer((ROW_FREQUENCIES[row], COLUMN_FREQUENCIES[column]), time) + phases)
    seconds = rng.uniform(0.1, 0.2)
    start = rng.uniform(0, time[-1] - seconds)
    audible = (time >= start) & (time < start + seconds)
    decibels = rng.uniform(-4, 8)  # signal-to-noise ratio
    signal: Float[np.ndarray, " N"] = gains @ tones * audible + rng.normal(0.0, 10 ** (-decibels / 20), len(time))
    level = rng.uniform(0.1, 0.6)
    samples: Int16[np.ndarray, " N"] = (signal / np.abs(signal).max() * level * 32767).astype(np.int16)
    return samples


KEYPAD = SyntheticDataset(
    name="keypad",
    version=1,
    classes=CLASSES,
    sizes={"train": 2000, "val": 500, "test": 500},
    rate=RATE,
    generate=generate_sample,
)
