"""Demo data in which no sum of opinions can find the answer: a picture, a question about it, and a tone that points."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int16
from numpy.random import Generator
from PIL import Image, ImageDraw

from fusion_pl.data.drawn import Drawing, DrawnSet

VERSION = 2  # raise it with every change that alters a byte
SIZES: Mapping[str, int] = {"train": 8000, "val": 1000, "test": 1000}
COLOURS = {"red": (220, 50, 40), "green": (40, 170, 70), "blue": (50, 90, 220), "yellow": (225, 195, 40)}
SHAPES = ("disc", "ring", "bar", "pole")  # filled, hollow, lying, standing: plain to a small encoder, so that a head's
# accuracy says how well it fuses, not how long its gradient takes to teach the encoder fine differences of outline
QUESTIONS = {
    "colour": ("what colour is it", "which colour", "name its colour", "how is it painted", "its colour please"),
    "shape": ("what shape is it", "which shape", "name its shape", "what form has it", "its shape please"),
}
CLASSES = (*COLOURS, *SHAPES)
INPUTS = ("text", "image", "audio")

SIDE, CELL = 40, 20  # pixels: of the picture, and of the half in which an object has its place
RATE, SECONDS = 8000, 0.2
PITCHES = {"upper": (900.0, 1400.0), "lower": (250.0, 400.0)}  # Hz; what sounds high points up


class Scene(NamedTuple):
    """What a sample is about; all else is how it is drawn.

    Attributes:
        colours: of the upper and the lower object; they differ.
        shapes: of the upper and the lower object; they differ.
        asked: ``colour`` or ``shape``.
        place: ``upper`` or ``lower``, which object the question means.
    """

    colours: tuple[str, str]
    shapes: tuple[str, str]
    asked: str
    place: str

    @property
    def answer(self) -> str:
        """The label."""
        values = self.colours if self.asked == "colour" else self.shapes
        return values[0 if self.place == "upper" else 1]


SCENES = [
    Scene(colours, shapes, asked, place)
    for colours in itertools.permutations(COLOURS, 2)
    for shapes in itertools.permutations(SHAPES, 2)
    for asked in QUESTIONS
    for place in PITCHES
]
# What is above tends to be red or green, a disc or a ring. Without this hint, tone and place each mean nothing
# until the other is understood, and training waits long for both to come by chance.
HINT = 3
ABOVE = {*list(COLOURS)[:2], *SHAPES[:2]}
WEIGHTS: list[int] = [
    HINT ** sum((upper in ABOVE) + (lower not in ABOVE) for upper, lower in (scene.colours, scene.shapes))
    for scene in SCENES
]


def ceiling(inputs: Collection[str]) -> float:
    """Return the best accuracy that some of the inputs allow, exactly: summed over all scenes.

    The text tells what is asked, the image both objects, the audio which of them is meant.

    Example:
        >>> [round(ceiling({name}), 2) for name in INPUTS], ceiling({"text", "image"}), ceiling(INPUTS)
        ([0.25, 0.25, 0.2], 0.5, 1.0)
    """
    answers: dict[tuple[object, ...], Counter[str]] = {}
    for scene, weight in zip(SCENES, WEIGHTS, strict=True):
        told = {"text": scene.asked, "image": (scene.colours, scene.shapes), "audio": scene.place}
        known = tuple(told[name] for name in INPUTS if name in inputs)
        answers.setdefault(known, Counter())[scene.answer] += weight
    best: int = sum(max(count.values()) for count in answers.values())
    return best / sum(WEIGHTS)


def draw(index: int, rng: Generator) -> Drawing:
    """Draw a sample: one of five ways to ask, 40 × 40 pixels in colour, and 0.2 s of sound at 8 kHz."""
    del index
    scene = SCENES[rng.choice(len(SCENES), p=np.divide(WEIGHTS, sum(WEIGHTS)))]
    ways = QUESTIONS[scene.asked]
    return Drawing(scene.answer, ways[rng.integers(len(ways))], _paint(scene, rng), _sound(scene, rng))


def _paint(scene: Scene, rng: Generator) -> Image.Image:
    """Put each object somewhere in its half, in some size, on a dull ground with noise."""
    image = Image.new("RGB", (SIDE, SIDE), tuple(int(value) for value in rng.integers(90, 150, 3)))
    pen = ImageDraw.Draw(image)
    for row, (colour, shape) in enumerate(zip(scene.colours, scene.shapes, strict=True)):
        radius = rng.uniform(6.5, 9.0)
        x = rng.uniform(radius + 1, SIDE - radius - 1)
        y = row * CELL + rng.uniform(radius + 1, CELL - radius - 1)
        _shape(pen, shape, (x, y, radius), COLOURS[colour])
    noisy = np.asarray(image) + rng.normal(0, 6, (SIDE, SIDE, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def _shape(pen: ImageDraw.ImageDraw, shape: str, at: tuple[float, float, float], colour: tuple[int, int, int]) -> None:
    x, y, radius = at
    wide, tall = {"bar": (radius, radius / 3), "pole": (radius / 3, radius)}.get(shape, (radius, radius))
    box = (x - wide, y - tall, x + wide, y + tall)
    if shape == "disc":
        pen.ellipse(box, fill=colour)
    elif shape == "ring":
        pen.ellipse(box, outline=colour, width=2)
    else:
        pen.rectangle(box, fill=colour)


def _sound(scene: Scene, rng: Generator) -> Int16[np.ndarray, " N"]:
    """Sound one tone of the place's range in noise: x(t) = sin(2π f t + φ) + n(t)."""
    time = np.arange(int(SECONDS * RATE)) / RATE
    tone = np.sin(2 * np.pi * rng.uniform(*PITCHES[scene.place]) * time + rng.uniform(0, 2 * np.pi))
    signal = tone + rng.normal(0, rng.uniform(0.1, 0.6), len(time))
    samples: Int16[np.ndarray, " N"] = (signal / np.abs(signal).max() * rng.uniform(0.2, 0.8) * 32767).astype(np.int16)
    return samples


def write_ask(folder: str | Path, seed: int = 0, sizes: Mapping[str, int] = SIZES) -> Path:
    """Write the demo data, unless it is there already, and return its manifest; see ``DrawnSet.write``."""
    return DrawnSet("ask", VERSION, RATE, draw).write(folder, seed, sizes)
