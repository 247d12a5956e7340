from __future__ import annotations

import csv
import logging
import wave
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from fusion_pl.data import Ask
from fusion_pl.data.ask import ASK, CLASSES, SCENE_WEIGHTS, SCENES, bayes_accuracy, generate_sample
from fusion_pl.encoders import TinyAudio, TinyImage, TinyText

SMALL = replace(ASK, sizes={"train": 60, "val": 20, "test": 20})
INK = {"red": (220, 50, 40), "green": (40, 170, 70), "blue": (50, 90, 220), "yellow": (225, 195, 40)}


@pytest.fixture(scope="module")
def samples():
    return [generate_sample(index, np.random.default_rng([5, index])) for index in range(300)]


def question_of(text):
    return "shape" if "shape" in text or "form" in text else "colour"


def position_of(audio):
    spectrum = np.abs(np.fft.rfft(audio / 32768, n=8000))  # 1 Hz a bin
    return "upper" if spectrum[800:1500].max() > spectrum[200:500].max() else "lower"


def objects_in(image):
    """Return the most frequent colour of each half, and the shape of its pixels."""
    pixels = np.asarray(image).astype(float)
    seen = []
    for half in (pixels[:20], pixels[20:]):
        near = {name: np.abs(half - ink).max(-1) < 30 for name, ink in INK.items()}
        colour = max(near, key=lambda name: near[name].sum())
        rows, columns = near[colour].sum(1), near[colour].sum(0)
        tall, wide = (rows > 2).sum(), (columns > 2).sum()
        filled = near[colour].sum() / max(1, tall * wide)
        seen.append((colour, "bar" if wide > 2 * tall else "pole" if tall > 2 * wide else shape_of(filled)))
    return seen


def shape_of(filled):
    """A disc fills 0.79 of its bounding box, a ring of two pixels about 0.35."""
    return "disc" if filled > 0.6 else "ring"


def test_the_label_follows_from_the_inputs(samples):
    """The label is decoded from text, pixels and samples."""
    asked = Counter(question_of(sample.text) for sample in samples)
    assert min(asked.values()) > 100
    for sample in samples:
        upper, lower = objects_in(sample.image)
        assert all(one != other for one, other in zip(upper, lower, strict=True))
        colour, shape = upper if position_of(sample.audio) == "upper" else lower
        assert sample.label == {"colour": colour, "shape": shape}[question_of(sample.text)]


def test_classes_are_balanced(samples):
    expected = Counter()
    for scene, weight in zip(SCENES, SCENE_WEIGHTS, strict=True):
        expected[scene.correct_answer] += weight
    assert set(expected.values()) == {sum(SCENE_WEIGHTS) // 8}
    drawn = Counter(sample.label for sample in samples)
    assert all(drawn[name] == pytest.approx(300 / 8, abs=18) for name in CLASSES)  # three standard deviations


@pytest.mark.parametrize(
    ("inputs", "best"),
    [
        ((), 1 / 8),  # eight answers
        # Of the ordered pairs of colours, red above has the weights 3 (with green), 9, 9 (with blue, yellow): 21 of 52.
        (("audio",), 21 / 104),
        (("text",), 1 / 4),  # four colours, or four shapes
        (("image",), 1 / 4),  # two colours and two shapes are seen
        (("text", "audio"), 21 / 52),
        (("text", "image"), 1 / 2),  # one of two objects
        (("image", "audio"), 1 / 2),  # colour or shape
        (("text", "image", "audio"), 1),
    ],
)
def test_best_accuracy_agrees_with_counting_by_hand(inputs, best):
    assert bayes_accuracy(inputs) == pytest.approx(best)


def test_files_and_rows(tmp_path):
    manifest = SMALL.write(tmp_path / "ask")
    with manifest.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert Counter(row["split"] for row in rows) == SMALL.sizes
    assert all(row["text"] and row["image"] and row["audio"] for row in rows)
    with Image.open(manifest.parent / rows[0]["image"]) as image:
        assert (image.size, image.mode) == ((40, 40), "RGB")
    with wave.open(str(manifest.parent / rows[0]["audio"])) as sound:
        assert (sound.getframerate(), sound.getnframes()) == (8000, 1600)


def test_setup_prints_the_best_accuracy_of_the_models_inputs(tmp_path, caplog):
    SMALL.write(tmp_path / "ask")
    encoders = {"text": TinyText(), "image": TinyImage(), "audio": TinyAudio()}
    for names, best in ((("text", "image", "audio"), "100.0%"), (("text", "image"), "50.0%"), (("audio",), "20.2%")):
        data = Ask(str(tmp_path / "ask"))
        data.processors = {name: encoders[name].processor for name in names}
        with caplog.at_level(logging.INFO):
            caplog.clear()
            data.setup("fit")
        assert f"The inputs of this model allow an accuracy of at most {best}" in caplog.text
        assert "one input at most 25.0%, two at most 50.0%" in caplog.text
