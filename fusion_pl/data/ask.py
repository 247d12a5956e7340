"""Demo data whose label depends on all inputs: an image, a question about it, and a tone that selects an object."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Collection
from typing import NamedTuple

import numpy as np
from jaxtyping import Int16
from numpy.random import Generator
from PIL import Image, ImageDraw

from fusion_pl.data.synthetic import SyntheticDataset, SyntheticSample

COLOURS = {"red": (220, 50, 40), "green": (40, 170, 70), "blue": (50, 90, 220), "yellow": (225, 195, 40)}
# Easy for a small encoder, so that accuracy measures the fusion: filled and hollow circle, wide and tall rectangle.
SHAPES = ("disc", "ring", "bar", "pole")
QUESTIONS = {
    "colour": ("what colour is it", "which colour", "name its colour", "how is it painted", "its colour please"),
    "shape": ("what shape is it", "which shape", "name its shape", "what form has it", "its shape please"),
}
CLASSES = (*COLOURS, *SHAPES)
INPUTS = ("text", "image", "audio")

SIDE, HALF_HEIGHT = 40, 20  # pixels: side of the image, and height of the half that holds an object
RATE, SECONDS = 8000, 0.2
PITCHES = {"upper": (900.0, 1400.0), "lower": (250.0, 400.0)}  # Hz


class Scene(NamedTuple):
    """Properties of a sample that determine its label; its other properties are random.

    Attributes:
        colours: colours of the upper and of the lower object, which differ.
        shapes: shapes of the upper and of the lower object, which differ.
        question: ``colour`` or ``shape``, the property that the question asks for.
        position: ``upper`` or ``lower``, the object that the question asks about.
    """

    colours: tuple[str, str]
    shapes: tuple[str, str]
    question: str
    position: str

    @property
    def correct_answer(self) -> str:
        """Label of the sample: the answer to its question."""
        values = self.colours if self.question == "colour" else self.shapes
        return values[0 if self.position == "upper" else 1]


SCENES = [
    Scene(colours, shapes, question, position)
    for colours in itertools.permutations(COLOURS, 2)
    for shapes in itertools.permutations(SHAPES, 2)
    for question in QUESTIONS
    for position in PITCHES
]
# Upper objects are more often red or green, and more often a disc or a ring. Without this correlation, the tone alone
# carries no information on the label, and the training loss stays on a plateau for many steps.
ODDS = 3  # of a value in UPPER_VALUES for an upper object, and of any other value for a lower object
UPPER_VALUES = {*list(COLOURS)[:2], *SHAPES[:2]}
SCENE_WEIGHTS: list[int] = [
    ODDS ** sum((upper in UPPER_VALUES) + (lower not in UPPER_VALUES) for upper, lower in (scene.colours, scene.shapes))
    for scene in SCENES
]


def bayes_accuracy(inputs: Collection[str]) -> float:
    """Return the accuracy of the Bayes classifier on some of the inputs, computed over all scenes.

    The text contains the question, the image both objects, and the audio the position.

    Example:
        >>> bayes_accuracy({"text"}), bayes_accuracy({"text", "image"}), bayes_accuracy(INPUTS)
        (0.25, 0.5, 1.0)
    """
    answers: dict[tuple[object, ...], Counter[str]] = {}
    for scene, weight in zip(SCENES, SCENE_WEIGHTS, strict=True):
        content = {"text": scene.question, "image": (scene.colours, scene.shapes), "audio": scene.position}
        observed = tuple(content[name] for name in INPUTS if name in inputs)
        answers.setdefault(observed, Counter())[scene.correct_answer] += weight
    return sum(max(count.values()) for count in answers.values()) / sum(SCENE_WEIGHTS)


def generate_sample(index: int, rng: Generator) -> SyntheticSample:
    """Generate a sample: one of five phrasings, 40 × 40 RGB pixels, and 0.2 s of audio at 8 kHz."""
    del index
    scene = SCENES[rng.choice(len(SCENES), p=np.divide(SCENE_WEIGHTS, sum(SCENE_WEIGHTS)))]
    phrasings = QUESTIONS[scene.question]
    text = phrasings[rng.integers(len(phrasings))]
    return SyntheticSample(scene.correct_answer, text, _draw_image(scene, rng), _synthesise_audio(scene, rng))


def _draw_image(scene: Scene, rng: Generator) -> Image.Image:
    """Draw each object at a random position and size in its half, on a grey background with noise."""
    image = Image.new("RGB", (SIDE, SIDE), tuple(int(value) for value in rng.integers(90, 150, 3)))
    canvas = ImageDraw.Draw(image)
    for row, (colour, shape) in enumerate(zip(scene.colours, scene.shapes, strict=True)):
        radius = rng.uniform(6.5, 9.0)
        x = rng.uniform(radius + 1, SIDE - radius - 1)
        y = row * HALF_HEIGHT + rng.uniform(radius + 1, HALF_HEIGHT - radius - 1)
        wide, tall = {"bar": (radius, radius / 3), "pole": (radius / 3, radius)}.get(shape, (radius, radius))
        box = (x - wide, y - tall, x + wide, y + tall)
        if shape == "disc":
            canvas.ellipse(box, fill=COLOURS[colour])
        elif shape == "ring":
            canvas.ellipse(box, outline=COLOURS[colour], width=2)
        else:
            canvas.rectangle(box, fill=COLOURS[colour])
    noisy = np.asarray(image) + rng.normal(0, 6, (SIDE, SIDE, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def _synthesise_audio(scene: Scene, rng: Generator) -> Int16[np.ndarray, " N"]:
    """Synthesise a tone with noise, x(t) = sin(2π f t + φ) + n(t); the position determines the range of f."""
    time = np.arange(int(SECONDS * RATE)) / RATE
    tone = np.sin(2 * np.pi * rng.uniform(*PITCHES[scene.position]) * time + rng.uniform(0, 2 * np.pi))
    signal = tone + rng.normal(0, rng.uniform(0.1, 0.6), len(time))
    samples: Int16[np.ndarray, " N"] = (signal / np.abs(signal).max() * rng.uniform(0.2, 0.8) * 32767).astype(np.int16)
    return samples


ASK = SyntheticDataset(
    name="ask",
    version=2,
    classes=CLASSES,
    sizes={"train": 8000, "val": 1000, "test": 1000},
    rate=RATE,
    generate=generate_sample,
)
