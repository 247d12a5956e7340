"""Real data: a digit as handwriting, as a recording (other speakers in each split) and as a word, each one degraded."""

from __future__ import annotations

import io
import wave
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int16, UInt8
from numpy.random import Generator
from PIL import Image

from fusion_pl.data import digits_sources
from fusion_pl.data.digits_sources import SIDE, SPEAKERS, Release, load_sources
from fusion_pl.data.synthetic import SEED, SyntheticDataset, SyntheticSample

CLASSES = tuple("0123456789")
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
LETTERS = list("abcdefghijklmnopqrstuvwxyz")
SPLIT_SPEAKERS = {"train": SPEAKERS[:4], "val": SPEAKERS[4:5], "test": SPEAKERS[5:]}
MNIST_SPLITS = {"train": "train", "val": "train", "test": "t10k"}
RATE = 8000  # Hz
MISSING_PROBABILITIES = (0.15, 0.15, 0.1)  # text, image, audio
TEXT_LENGTH, WRONG_CHARACTERS = 12, 0.2
PIXEL_NOISE, OCCLUSION = 0.3, 0.1  # standard deviation relative to white; part of the area
DECIBELS = (5.0, 20.0)  # range of the signal-to-noise ratio
README = """# Digits: seen, heard and read

3,000 samples of a digit as a picture of handwriting, a recording and a word between random letters. Each recording and
each picture is in one sample only, and the speakers of the splits differ: george, jackson, lucas and nicolas in train,
theo in val, yweweler in test. The pictures of test are from MNIST's test split. An empty cell is a missing input.

Made from, and changed by noise, occlusion and pairing:

- Free Spoken Digit Dataset, version 1.0.10, by Zohar Jackson and contributors,
  <https://github.com/Jakobovski/free-spoken-digit-dataset>, licence CC BY-SA 4.0
- MNIST, by Yann LeCun, Corinna Cortes and Christopher J. C. Burges, licence CC BY-SA 3.0

Pass the data set on under [CC BY-SA 4.0](https://creativecommons.org/licenses/by-sa/4.0/), with these credits.
"""


class DigitsGenerator:
    """Pair each recording with a picture of the same digit, and degrade both.

    Args:
        sources: folder of the sources, see ``load_sources``.
        release: addresses and checksums of the sources.
    """

    def __init__(self, sources: str | Path, release: Release) -> None:
        self.sources, self.release = sources, release
        self._pairs: list[tuple[int, bytes, UInt8[np.ndarray, "28 28"]]] = []

    def prepare(self) -> None:
        """Load the sources, and draw the order of the recordings and the picture of each.

        Raises:
            UserError: if a source is damaged, or is missing and cannot be downloaded.
        """
        recordings, pictures = load_sources(self.sources, self.release)
        rng = np.random.default_rng(SEED)
        unused = {
            split: {digit: iter(rng.permutation(np.flatnonzero(labels == digit))) for digit in range(len(CLASSES))}
            for split, (_, labels) in pictures.items()
        }
        self._pairs = []
        for split, speakers in SPLIT_SPEAKERS.items():
            pixels = pictures[MNIST_SPLITS[split]].pixels
            for name in rng.permutation(sorted(name for name in recordings if name.split("_")[1] in speakers)):
                digit = int(name[0])
                picture = pixels[next(unused[MNIST_SPLITS[split]][digit])].copy()
                self._pairs.append((digit, recordings[name], picture))

    def __call__(self, index: int, rng: Generator) -> SyntheticSample:
        """Return a degraded sample, in which each input is missing at random, but not all of them."""
        digit, recording, picture = self._pairs[index]
        while not (present := rng.random(3) >= MISSING_PROBABILITIES).any():
            pass
        text, image, audio = _hide_word(digit, rng), _degrade_picture(picture, rng), _degrade_recording(recording, rng)
        return SyntheticSample(
            CLASSES[digit], text if present[0] else None, image if present[1] else None, audio if present[2] else None
        )


def digits_dataset(sources: str | Path, release: Release | None = None) -> SyntheticDataset:
    """Return the data set, whose sources are loaded when it is written.

    Args:
        sources: folder of the sources, see ``load_sources``.
        release: addresses and checksums of the sources; by default those of version 1.0.10.
    """
    release = release or digits_sources.RELEASE
    generator = DigitsGenerator(sources, release)
    return SyntheticDataset(
        name="digits",
        version=1,
        classes=CLASSES,
        sizes={split: len(names) * len(CLASSES) * release.recordings for split, names in SPLIT_SPEAKERS.items()},
        rate=RATE,
        generate=generator,
        prepare=generator.prepare,
        readme=README,
    )


def _hide_word(digit: int, rng: Generator) -> str:
    """Return random letters with the number word at a random place; each character is wrong with probability 0.2."""
    characters, word = rng.choice(LETTERS, TEXT_LENGTH), list(WORDS[digit])
    start = rng.integers(TEXT_LENGTH - len(word) + 1)
    characters[start : start + len(word)] = word
    wrong = rng.random(TEXT_LENGTH) < WRONG_CHARACTERS
    characters[wrong] = rng.choice(LETTERS, wrong.sum())
    return "".join(characters)


def _degrade_picture(picture: UInt8[np.ndarray, "28 28"], rng: Generator) -> Image.Image:
    """Cover a tenth of the picture by a grey square, and add Gaussian noise."""
    light = picture / 255
    side = round(SIDE * OCCLUSION**0.5)
    top, left = rng.integers(0, SIDE - side + 1, 2)
    light[top : top + side, left : left + side] = 0.5
    light += rng.normal(0.0, PIXEL_NOISE, light.shape)
    return Image.fromarray((light.clip(0, 1) * 255).round().astype(np.uint8))


def _degrade_recording(recording: bytes, rng: Generator) -> Int16[np.ndarray, " N"]:
    """Add pink noise, whose power is proportional to 1/f, at a random signal-to-noise ratio."""
    with wave.open(io.BytesIO(recording)) as file:
        signal = np.frombuffer(file.readframes(file.getnframes()), "<i2") / 32768
    spectrum = np.fft.rfft(rng.normal(size=len(signal)))
    spectrum[1:] /= np.sqrt(np.arange(1, len(spectrum)))
    spectrum[0] = 0.0
    noise: Float[np.ndarray, " N"] = np.fft.irfft(spectrum, len(signal))
    ratio = 10 ** (rng.uniform(*DECIBELS) / 20)
    noisy = signal + noise * (signal.std() / (ratio * noise.std()))
    noisy /= max(1.0, np.abs(noisy).max())  # louder than full scale
    samples: Int16[np.ndarray, " N"] = (noisy * 32767).round().astype(np.int16)
    return samples
