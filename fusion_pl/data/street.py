"""Demo data with several labels: a caption, a picture and a recording of a street, none of which tells everything."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Collection

import numpy as np
from jaxtyping import Int16
from numpy.random import Generator
from PIL import Image, ImageDraw

from fusion_pl.data.synthetic import SyntheticDataset, SyntheticSample

INPUTS = ("text", "image", "audio")
# Label -> inputs that show it. Each input alone shows three labels, and any two inputs show five.
SHOWN_IN = {
    "bell": ("text", "audio"),
    "bus": ("text", "image"),
    "market": ("text",),
    "rain": ("image", "audio"),
    "siren": ("audio",),
    "tree": ("image",),
}
LABELS = tuple(SHOWN_IN)
PRESENT_ODDS, ABSENT_ODDS = 2, 3  # of each label, independent of the others
WORDS = {"bell": ("bell", "chimes"), "bus": ("bus", "coach"), "market": ("market", "stalls")}
FILLERS = ("a", "the", "near", "old", "corner", "shop", "people", "walk", "quiet", "wide", "houses", "windows")

SIDE = 40  # pixels
RATE, SECONDS = 8000, 0.3
BELL, SIREN = 2400.0, (500.0, 1100.0)  # Hz


def best_exact_match(inputs: Collection[str]) -> float:
    """Return the largest share of samples of which all labels can be right with some inputs, over all sets of labels.

    Example:
        >>> best_exact_match({"text"}), best_exact_match({"text", "image"}), best_exact_match(INPUTS)
        (0.216, 0.6, 1.0)
    """
    answers: dict[tuple[bool, ...], Counter[tuple[bool, ...]]] = {}
    for labels in itertools.product((False, True), repeat=len(LABELS)):
        weight = PRESENT_ODDS ** sum(labels) * ABSENT_ODDS ** (len(LABELS) - sum(labels))
        is_shown = (bool(set(SHOWN_IN[name]) & set(inputs)) for name in LABELS)
        observed = tuple(value and shown for value, shown in zip(labels, is_shown, strict=True))
        answers.setdefault(observed, Counter())[labels] += weight
    best = sum(max(counts.values()) for counts in answers.values())
    total: int = (PRESENT_ODDS + ABSENT_ODDS) ** len(LABELS)
    return best / total


def generate_sample(index: int, rng: Generator) -> SyntheticSample:
    """Generate a sample: a caption of some words, 40 × 40 RGB pixels, and 0.3 s of audio at 8 kHz."""
    del index
    present = {name for name in LABELS if rng.random() < PRESENT_ODDS / (PRESENT_ODDS + ABSENT_ODDS)}
    label = "|".join(name for name in LABELS if name in present)
    return SyntheticSample(label, _write_caption(present, rng), _draw_image(present, rng), _record(present, rng))


def _write_caption(present: Collection[str], rng: Generator) -> str:
    """Return the words of the labels among other words, in random order."""
    words = [str(rng.choice(names)) for label, names in WORDS.items() if label in present]
    words += [str(word) for word in rng.choice(FILLERS, rng.integers(2, 5))]
    return " ".join(rng.permutation(words).tolist())


def _draw_image(present: Collection[str], rng: Generator) -> Image.Image:
    """Draw a bus as a red rectangle, a tree as a green disc on a trunk, and rain as white streaks."""
    image = Image.new("RGB", (SIDE, SIDE), tuple(int(value) for value in rng.integers(80, 140, 3)))
    canvas = ImageDraw.Draw(image)
    if "tree" in present:
        x, y = rng.uniform(6, SIDE - 6), rng.uniform(7, 20)
        canvas.rectangle((x - 1, y, x + 1, y + 14), fill=(110, 70, 30))
        canvas.ellipse((x - 5, y - 5, x + 5, y + 5), fill=(40, 150, 60))
    if "bus" in present:
        x, y = rng.uniform(2, SIDE - 18), rng.uniform(24, 30)
        canvas.rectangle((x, y, x + 15, y + 7), fill=(210, 50, 40))
    if "rain" in present:
        for x, y in rng.uniform(0, SIDE, (25, 2)):
            canvas.line((x, y, x + 1.5, y + 5), fill=(225, 230, 240))
    noisy = np.asarray(image) + rng.normal(0, rng.uniform(10, 60), (SIDE, SIDE, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def _record(present: Collection[str], rng: Generator) -> Int16[np.ndarray, " N"]:
    """Synthesise a bell as a decaying tone, a siren as a rising tone, and rain as noise, over quieter noise."""
    time = np.arange(int(SECONDS * RATE)) / RATE
    signal = rng.normal(0, rng.uniform(0.05, 0.4), len(time))
    if "bell" in present:
        start = rng.uniform(0, 0.5 * SECONDS)
        decay = np.exp(-20 * (time - start)) * (time >= start)
        signal = signal + 0.5 * decay * np.sin(2 * np.pi * rng.uniform(0.97, 1.03) * BELL * time)
    if "siren" in present:
        low, high = SIREN
        phase = low * time + (high - low) * time**2 / (2 * SECONDS)
        signal = signal + 0.2 * np.sin(2 * np.pi * rng.uniform(0.97, 1.03) * phase)
    if "rain" in present:
        signal = signal + rng.normal(0, 0.6, len(time))
    level = rng.uniform(0.2, 0.3)
    samples: Int16[np.ndarray, " N"] = ((level * signal).clip(-1, 1) * 32767).astype(np.int16)
    return samples


STREET = SyntheticDataset(
    name="street",
    version=1,
    classes=LABELS,
    sizes={"train": 2000, "val": 500, "test": 500},
    rate=RATE,
    generate=generate_sample,
)
