"""A checkpoint of four inputs, and its export."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from fusion_pl.__main__ import main
from fusion_pl.encoders import FeatureEncoder, TinyAudio, TinyImage, TinyText
from fusion_pl.fusion import Concat
from fusion_pl.module import FusionClassifier
from fusion_pl.predict import Predictor
from fusion_pl.uncertainty.calibration import Calibration
from fusion_pl.uncertainty.outliers import OutlierDetector
from fusion_pl.uncertainty.validation_scores import ValidationScores

from ..checkpoint.conftest import write

CLASSES = ["high", "low", "média"]
INPUTS = ["my text", "photo", "voice", "sensors"]


def export(*arguments):
    """Run the command in this process, and return its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["fusion-pl", "export", *map(str, arguments)])
        return main()


def error_of(capsys, *arguments):
    assert export(*arguments) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("fusion-pl: error: ")]
    return line


@pytest.fixture(scope="session")
def unexported(tmp_path_factory):
    """A folder with a checkpoint of four inputs with a calibration by subset."""
    folder = tmp_path_factory.mktemp("onnx")
    torch.manual_seed(0)
    encoders = {
        "my text": TinyText(dim=8, max_tokens=12),
        "photo": TinyImage(dim=8, image_size=16),
        "voice": TinyAudio(dim=8, max_seconds=0.5, centered=True),
        "sensors": FeatureEncoder(3, dim=8, missing_numbers="flag"),
    }
    encoders["sensors"].fit_statistics(torch.randn(20, 3) * 5 + 2)
    model = FusionClassifier(encoders, lambda dims, count: Concat(dims, count, dim=8), CLASSES, missing="token")
    subsets = [(["my text"], 3.0), (["photo", "voice"], 0.4)]
    scores = {"ece": 0.2, "brier": 0.6, "nll": 0.9}, {"ece": 0.1, "brier": 0.5, "nll": 0.8}
    model.calibration = Calibration("temperature", [0.5], [0.0], subsets, 60, *scores)
    logits = torch.randn(60, 3)
    model.validation_scores = ValidationScores.measure(logits, logits.softmax(-1), torch.arange(60) % 3, False)
    model.outlier_detectors = {"photo": OutlierDetector(torch.eye(8), torch.zeros(3, 8), torch.rand(60).double())}
    for embedding in model.missing_embeddings.values():
        embedding.data.mul_(50)  # so that it matters
    write(model, folder / "model.ckpt")
    return folder


@pytest.fixture(scope="session")
def folder(unexported):
    """That checkpoint, its export, which takes seconds, and a file of each kind."""
    folder = unexported
    assert export("--ckpt_path", folder / "model.ckpt", "--output", folder / "out") == 0
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (40, 23, 4), dtype=np.uint8), "RGBA").save(folder / "photo.png")
    soundfile.write(folder / "voice.wav", rng.normal(0, 0.1, (20_000, 2)), 22_050)
    np.save(folder / "sensors.npy", rng.normal(0, 9, (4, 3)))
    return folder


@pytest.fixture(scope="session")
def predictor(unexported):
    return Predictor.from_checkpoint(unexported / "model.ckpt", device="cpu")
