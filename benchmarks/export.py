"""Compare exported models with PyTorch: all heads, all encoder families, and int8 beside fp32.

python -m benchmarks.export heads
python -m benchmarks.export encoders
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import fusion_pl.fusion
from fusion_pl.encoders import AudioEncoder, Encoder, ImageEncoder, TextEncoder, TinyAudio, TinyImage, TinyText
from fusion_pl.export.onnx_model import write_onnx
from fusion_pl.export.runner import Runner
from fusion_pl.fusion import Fusion
from fusion_pl.messages import error_reason
from fusion_pl.module import FusionClassifier
from fusion_pl.predict import Predictor
from fusion_pl.types import UserError

CLASSES = ["a", "b", "c", "d"]


def values(row: int) -> dict[str, object]:
    """Return the inputs of a sample; texts and sounds have different lengths."""
    rng = np.random.default_rng(row)
    return {
        "text": " ".join(rng.choice(["the", "red", "cat", "sat", "on", "a", "mat"], 1 + 3 * row)),
        "image": Image.fromarray(rng.integers(0, 255, (30 + row, 47, 3), dtype=np.uint8)),
        "audio": (rng.normal(0, 0.1, 4_000 + 3_000 * row).astype(np.float32), 16_000),
    }


def compare(model: FusionClassifier) -> tuple[float, float, int]:
    """Return the largest differences of probabilities and of logits over all subsets of the inputs, and CPU seconds."""
    names = list(model.processors)
    subsets = [part for size in range(1, len(names) + 1) for part in itertools.combinations(names, size)]
    samples = [{name: values(row)[name] for name in part} for row, part in enumerate(subsets)]
    model.eval()
    with tempfile.TemporaryDirectory() as folder:
        started = time.process_time()
        write_onnx(model, Path(folder))
        seconds = time.process_time() - started
        found = Runner(folder).predict(samples, batch_size=4)
    expected = Predictor(model, "cpu").predict(samples, batch_size=4)
    differences = [
        max(abs(one.probabilities[name] - other["probabilities"][name]) for name in CLASSES)  # type: ignore[index]
        for one, other in zip(expected, found, strict=True)
    ]
    labels = sum(one.label == other["label"] for one, other in zip(expected, found, strict=True))
    return max(differences), labels / len(samples), round(seconds)


def heads() -> None:
    print("| head | largest difference of a probability | equal labels | CPU seconds |\n| --- | --- | --- | --- |")
    for name in fusion_pl.fusion.__all__:
        head = getattr(fusion_pl.fusion, name)
        if head is Fusion:
            continue
        torch.manual_seed(0)
        encoders: dict[str, Encoder] = {
            "text": TinyText(dim=16),
            "image": TinyImage(dim=16, image_size=16),
            "audio": TinyAudio(dim=16, max_seconds=1.0),
        }
        report(name, FusionClassifier(encoders, head, CLASSES))


def report(name: str, model: FusionClassifier) -> None:
    try:
        difference, labels, seconds = compare(model)
        print(f"| `{name}` | {difference:.1e} | {labels:.0%} | {seconds} |", flush=True)
    except UserError as error:
        print(f"| `{name}` | {error} | | |", flush=True)


def encoders() -> None:
    from tests.encoders.models import AUDIOS, IMAGES, TEXTS, save_audio, save_image, save_text

    print("| model | largest difference of a probability | equal labels | CPU seconds |\n| --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        for kind, save, models, cls in (
            ("text", save_text, TEXTS, TextEncoder),
            ("image", save_image, IMAGES, ImageEncoder),
            ("audio", save_audio, AUDIOS, AudioEncoder),
        ):
            for name in models:
                path = Path(folder, kind, name)
                path.parent.mkdir(exist_ok=True)
                save(name, path)
                torch.manual_seed(0)
                encoder = cls(str(path))
                try:
                    encoder.load_pretrained()
                    report(name, FusionClassifier({kind: encoder}, fusion_pl.fusion.Concat, CLASSES))
                except Exception as error:  # one family that fails must not hide the others
                    print(f"| {name} | {type(error).__name__}: {error_reason(error)} | | |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=["heads", "encoders"])
    sys.exit({"heads": heads, "encoders": encoders}[parser.parse_args().part]())
