"""A checkpoint with an input of each kind, and a client of its server in this process."""

from __future__ import annotations

import io
import threading
from contextlib import contextmanager

import numpy as np
import pytest
import soundfile
import torch
import uvicorn
from PIL import Image
from starlette.testclient import TestClient

from fusion_pl.encoders import FeatureEncoder, TinyAudio, TinyImage, TinyText
from fusion_pl.fusion import Weighted
from fusion_pl.module import FusionClassifier
from fusion_pl.predict import Predictor
from fusion_pl.serve.app import create_app
from fusion_pl.serve.limits import Limits
from fusion_pl.serve.processes import listen
from fusion_pl.serve.service import ServeOptions, Service
from fusion_pl.serve.supervisor import server_configuration
from tests.test_module import quiet_trainer

LIMITS = Limits(megabytes=0.2, samples=8, values=1000, characters=1000, megapixels=0.01, seconds=2.0)


def write_checkpoint(path, model):
    trainer = quiet_trainer(path.parent, max_epochs=0)
    trainer.strategy.connect(model)
    trainer.save_checkpoint(path, weights_only=True)
    return path


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    encoders = {
        "title": TinyText(dim=8),
        "photo": TinyImage(dim=16, image_size=16, channels=1),
        "voice": TinyAudio(dim=8, num_layers=1),
        "sensors": FeatureEncoder(features=3, dim=8),
    }
    folder = tmp_path_factory.mktemp("served")
    model = FusionClassifier(encoders, Weighted, ["high", "low"])
    return write_checkpoint(folder / "best.ckpt", model)


@pytest.fixture(scope="module")
def service(checkpoint):
    return Service(ServeOptions(str(checkpoint), device="cpu", limits=LIMITS))


@pytest.fixture(scope="session")
def predictor(checkpoint):
    return Predictor.from_checkpoint(checkpoint, device="cpu")


@pytest.fixture(scope="module")
def client(service):
    with TestClient(create_app(service)) as client:
        yield client


@contextmanager
def listening(service):
    """The address of a server that listens, in a thread."""
    server = uvicorn.Server(server_configuration(create_app(service)))
    with listen("127.0.0.1", 0) as bound:
        bound.listen()
        thread = threading.Thread(target=server.run, args=[[bound]])
        thread.start()
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def address(service):
    with listening(service) as address:
        yield address


@pytest.fixture(scope="session")
def sample():
    """A value of each input, as ``Predictor.predict`` takes it."""
    rng = np.random.default_rng(0)
    return {
        "title": "number 3",
        "photo": png(rng.integers(0, 256, (12, 20, 3), dtype=np.uint8)),
        "voice": wav(0.3 * rng.standard_normal(1600)),
        "sensors": [0.5, -1.0, 2.0],
    }


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def wav(samples, rate=8000):
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format="WAV")
    return file.getvalue()
