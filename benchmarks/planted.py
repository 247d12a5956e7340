"""Texts, images and sounds with planted evidence, and models that are trained on them."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from fusion_pl import FusionClassifier, Predictor
from fusion_pl.data.collate import Collate
from fusion_pl.encoders import TinyAudio, TinyImage, TinyText
from fusion_pl.fusion import Concat
from fusion_pl.types import Sample, Waveform

WORDS = ["the", "a", "of", "on", "in", "at", "film", "dog", "tree", "house", "river", "stone", "cloud", "green"]
CLASSES = ["low", "high", "neither"]  # samples of the last class have no evidence, so that both others need theirs
KEYWORDS = ("great", "awful")  # of the two classes
COLOURS = ((220, 60, 40), (40, 80, 220))
TONES = (500.0, 1500.0)  # Hz
SIZE, PATCH, RATE, SECONDS, TONE = 32, 8, 8000, 1.0, 0.25


def draw(rng, label):
    """Return a sample, and the place of the evidence of each input."""
    words = list(rng.choice(WORDS, 9))
    keyword = KEYWORDS[label] if label < 2 else str(rng.choice(WORDS))
    words.insert(rng.integers(10), keyword)
    text = " ".join(words)
    start = text.index(keyword)
    pixels = rng.normal(128, 30, (SIZE, SIZE, 3)).clip(0, 255)
    top, left = rng.integers(0, SIZE - PATCH + 1, 2)
    if label < 2:
        pixels[top : top + PATCH, left : left + PATCH] = COLOURS[label]
    count, length = int(SECONDS * RATE), int(TONE * RATE)
    samples = rng.normal(0, 0.05, count)
    first = int(rng.integers(0, count - length + 1))
    if label < 2:
        samples[first : first + length] += 0.2 * np.sin(2 * np.pi * TONES[label] * np.arange(length) / RATE)
    inputs = {
        "text": text,
        "image": Image.fromarray(pixels.astype(np.uint8)),
        "audio": Waveform(torch.from_numpy(samples.astype(np.float32)), RATE),
    }
    evidence = {
        "text": ((start, start + len(keyword)),),
        "image": ((top, top + PATCH), (left, left + PATCH)),
        "audio": ((first / RATE, (first + length) / RATE),),
    }
    return inputs, evidence


def train(seed=0, size=384, epochs=12, head=Concat):
    """Train a model with tiny encoders on samples that each have only some of the inputs."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    encoders = {"text": TinyText(dim=16), "image": TinyImage(dim=32), "audio": TinyAudio(dim=16, num_layers=1)}
    model = FusionClassifier(encoders, head, CLASSES)
    samples = []
    for row in range(size):
        inputs, _ = draw(rng, row % 3)
        names = [name for name in inputs if rng.random() < 0.5] or [str(rng.choice(list(inputs)))]
        samples.append(Sample(str(row), {name: inputs[name] for name in names}, row % 3))
    collate = Collate(model.processors)
    batches = [collate(samples[start : start + 32]) for start in range(0, size, 32)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(epochs):
        for batch in batches:
            loss = torch.nn.functional.cross_entropy(model(batch).logits, batch.target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return Predictor(model, device="cpu")


def is_evidence(evidence, span):
    """Return whether the centre of a span lies in the evidence, or, of a word, whether it has a part of it."""
    if isinstance(span[0][0], int) and len(span) == 1:
        return span[0][0] < evidence[0][1] and evidence[0][0] < span[0][1]
    centres = [(start + end) / 2 for start, end in span]
    return all(start <= centre < end for (start, end), centre in zip(evidence, centres, strict=True))
