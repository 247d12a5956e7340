"""Compare exported models with PyTorch: all heads, all encoder families, and int8 beside fp32.

python -m benchmarks.export heads [Concat Mean …]
python -m benchmarks.export encoders
python -m benchmarks.export int8 best.ckpt data/digits/manifest.csv
"""

from __future__ import annotations

import argparse
import csv
import itertools
import shutil
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from PIL import Image

import fusion_pl.fusion
from fusion_pl.data.collate import Collate
from fusion_pl.encoders import AudioEncoder, Encoder, ImageEncoder, TextEncoder, TinyAudio, TinyImage, TinyText
from fusion_pl.export.onnx_model import write_onnx
from fusion_pl.export.quantize import quantize_int8
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


def compare(model: FusionClassifier) -> tuple[float, float, float]:
    """Return, over all subsets of the inputs, the largest difference of a probability and the share of equal labels,
    and the CPU seconds of the export.
    """
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
        abs(probability - other["probabilities"][name])
        for one, other in zip(expected, found, strict=True)
        for name, probability in (one.probabilities or {}).items()
    ]
    labels = sum(one.label == other["label"] for one, other in zip(expected, found, strict=True))
    return max(differences), labels / len(samples), seconds


def heads(names: list[str]) -> None:
    print("| head | largest difference of a probability | equal labels | CPU seconds |\n| --- | --- | --- | --- |")
    for name in names or fusion_pl.fusion.__all__:
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
        print(f"| `{name}` | {difference:.1e} | {labels:.0%} | {seconds:.0f} |", flush=True)
    except UserError as error:
        print(f"| `{name}` | {error} | | |", flush=True)


def encoders(_: list[str]) -> None:
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


def int8(arguments: list[str]) -> None:
    """Compare PyTorch, fp32 and int8 on the test rows of a table, in one run that alternates between them."""
    checkpoint, manifest = arguments
    predictor = Predictor.from_checkpoint(checkpoint, "cpu")
    with open(manifest, newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "test"]
    files = {name for name, processor in predictor.processors.items() if processor.reads_files}
    samples = [
        {
            name: str(Path(manifest).parent / row[name]) if name in files else row[name]
            for name in predictor.processors
            if row[name]
        }
        for row in rows
    ]
    labels = [row["label"] for row in rows]
    torch.set_num_threads(1)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    with tempfile.TemporaryDirectory() as folder:
        write_onnx(predictor.model, Path(folder))
        shutil.copy(Path(folder, "model.onnx"), Path(folder, "int8.onnx"))
        quantize_int8(predictor.model, Path(folder, "int8.onnx"))
        runners = {name: Runner(folder, f"{name}.onnx") for name in ("model", "int8")}
        for name, runner in runners.items():
            runner.session = onnxruntime.InferenceSession(str(Path(folder, f"{name}.onnx")), options)
        sizes = {name: Path(folder, f"{name}.onnx").stat().st_size / 1e6 for name in runners}
        predictions = {name: [one["label"] for one in runner.predict(samples)] for name, runner in runners.items()}
        predictions["PyTorch"] = [one.label for one in predictor.predict(samples)]
        sizes["PyTorch"] = sum(tensor.nbytes for tensor in predictor.model.state_dict().values()) / 1e6
        milliseconds = {size: measure(predictor, runners, samples[:size]) for size in (1, 32)}
    print("| | correct | labels of PyTorch | MB | CPU ms per sample, alone | in a batch of 32 |\n|" + " --- |" * 6)
    for name in ("PyTorch", "model", "int8"):
        correct = np.mean([one == label for one, label in zip(predictions[name], labels, strict=True)])
        equal = sum(one == other for one, other in zip(predictions[name], predictions["PyTorch"], strict=True))
        times = [f"{1000 * np.median(milliseconds[size][name]) / size:.2f}" for size in milliseconds]
        print(f"| {name} | {correct:.1%} | {equal} of {len(rows)} | {sizes[name]:.1f} | {' | '.join(times)} |")


def measure(predictor: Predictor, runners: dict[str, Runner], samples: list[dict[str, str]]) -> dict[str, list[float]]:
    """Return the CPU seconds of 30 forward passes of a batch, without opening and processing its values."""
    batch = Collate(predictor.processors)([predictor.open_sample(str(i), one) for i, one in enumerate(samples)])
    runner = runners["model"]
    feeds = runner.tensors([{name: runner.inputs[name].open(one[name]) for name in one} for one in samples])
    calls = {name: partial(one.session.run, None, feeds) for name, one in runners.items()}

    def forward() -> None:
        with torch.inference_mode():
            predictor.model(batch)

    calls["PyTorch"] = forward
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(30):
        for name, call in calls.items():
            started = time.process_time()
            call()
            seconds[name].append(time.process_time() - started)
    return seconds


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=["heads", "encoders", "int8"])
    parser.add_argument("arguments", nargs="*")
    given = parser.parse_args()
    {"heads": heads, "encoders": encoders, "int8": int8}[given.part](given.arguments)
