"""A small aligned data set on disk, and models that are built in milliseconds.

The fixtures import the libraries, because the process of pytest-xdist that runs no test imports this file as well.
"""

from __future__ import annotations

import copy
import csv
import gc
import importlib
import logging
import math
import shutil
import signal
import sys

import pytest

CLASSES = ["high", "low"]
gc.disable()  # while tests and libraries are imported
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # of a shell in the background; tests send Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection(session):
    """Import the libraries first: what jaxtyping's hook imports for the package is compiled once more.

    Not in the process of pytest-xdist that runs no test.
    """
    if hasattr(session.config, "workerinput") or not session.config.getoption("numprocesses", None):
        for name in (
            "lightning.pytorch.cli",
            "scipy.signal",
            "scipy.stats",
            "torchaudio",
            "torchvision",
            "transformers",
        ):
            importlib.import_module(name)


def pytest_collection_finish():
    """Leave what was imported out of all garbage collections."""
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def notices_reach_caplog(monkeypatch):
    """Lightning hands its messages on or keeps them, by which library was imported before it."""
    monkeypatch.setattr(logging.getLogger("lightning.pytorch"), "propagate", True)


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path_factory):
    """Runs store features in a folder of the tests."""
    monkeypatch.setenv("FUSION_PL_CACHE", str(tmp_path_factory.getbasetemp() / "feature_cache"))


@pytest.fixture(autouse=True)
def threads():
    """A run chooses how many threads compute; the tests after it are to have as many as before."""
    import torch

    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def write_row(folder, row, label, rng):
    """Bright picture and high tone for one class, dark and low for the other; the text names neither."""
    import numpy as np
    import soundfile
    from PIL import Image

    high = label == "high"
    pixels = np.clip(rng.normal(200 if high else 60, 20, (16, 16)), 0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(folder / f"{row}.png")
    time = np.arange(1600) / 8000
    soundfile.write(folder / f"{row}.wav", 0.3 * np.sin(2 * math.pi * (1500 if high else 300) * time), 8000)
    return {"id": f"s{row}", "text": f"number {row}", "image": f"{row}.png", "audio": f"{row}.wav", "label": label}


@pytest.fixture(scope="session")
def manifest(tmp_path_factory):
    """48 rows in three splits; every sixth lacks its picture, every eighth its sound."""
    import numpy as np

    folder = tmp_path_factory.mktemp("aligned")
    rng = np.random.default_rng(0)
    rows = []
    for row in range(48):
        record = write_row(folder, row, CLASSES[row % 2], rng)
        record["image"] = "" if row % 6 == 5 else record["image"]
        record["audio"] = "" if row % 8 == 3 else record["audio"]
        rows.append(record | {"split": ("train", "train", "val", "test")[row // 12]})
    path = folder / "manifest.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


def tiny_encoders():
    import torch

    from fusion_pl.encoders import TinyAudio, TinyImage, TinyText

    torch.manual_seed(0)
    return {
        "text": TinyText(dim=8),
        "image": TinyImage(dim=16, image_size=16, channels=1),
        "audio": TinyAudio(dim=8, num_layers=1),
    }


@pytest.fixture
def encoders():
    return tiny_encoders()


@pytest.fixture
def model(encoders):
    from fusion_pl.fusion import Weighted
    from fusion_pl.module import FusionClassifier

    return FusionClassifier(encoders, Weighted, CLASSES)


@pytest.fixture(scope="session")
def training_batch(manifest):
    from fusion_pl.data import ManifestData
    from fusion_pl.data.collate import Collate

    data = ManifestData(str(manifest), batch_size=12, num_workers=0)
    data.processors = {name: encoder.processor for name, encoder in tiny_encoders().items()}
    data.setup("fit")
    samples = data.samples("train")
    found = Collate(data.processors, training=True)([samples[row] for row in range(24)])
    assert not all(present.all() for present in found.present.values()), "the tests need a missing input"
    return found


@pytest.fixture
def batch(training_batch):
    """The 24 training rows, the same ones each time; some inputs are missing."""
    return copy.deepcopy(training_batch)


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A folder in which two epochs were trained on short texts."""
    from tests.texts import fit_in, write_config

    folder = tmp_path_factory.mktemp("trained")
    write_config(folder)
    assert fit_in(folder) == 0
    return folder


@pytest.fixture
def again(trained, tmp_path, monkeypatch):
    """A copy of that folder, to work in."""
    monkeypatch.setattr(sys, "argv", sys.argv)  # which fit writes to
    shutil.copytree(trained, tmp_path / "again")
    monkeypatch.chdir(tmp_path / "again")
    return tmp_path / "again"


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """A folder in which nothing was trained yet."""
    from tests.texts import write_config

    monkeypatch.setattr(sys, "argv", sys.argv)
    write_config(tmp_path)
    monkeypatch.chdir(tmp_path)
