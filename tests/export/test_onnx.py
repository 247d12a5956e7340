"""``fusion-pl export --format onnx``: the folder predicts as the checkpoint does, without torch."""

from __future__ import annotations

import importlib.util
import itertools
import json
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from fusion_pl.__main__ import main
from fusion_pl.encoders import FeatureEncoder, TinyAudio, TinyImage, TinyText
from fusion_pl.export import onnx_model
from fusion_pl.fusion import Concat
from fusion_pl.module import FusionClassifier
from fusion_pl.predict import Predictor
from fusion_pl.uncertainty.calibration import Calibration

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


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint of four inputs with a calibration by subset, its export, and a file of each kind."""
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
    model.calibration = Calibration("temperature", [0.7], [0.0], [(["my text"], 3.0), (["photo", "voice"], 0.4)])
    for embedding in model.missing_embeddings.values():
        embedding.data.mul_(50)  # so that it matters
    write(model, folder / "model.ckpt")
    assert export("--ckpt_path", folder / "model.ckpt", "--output", folder / "out") == 0
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (40, 23, 4), dtype=np.uint8), "RGBA").save(folder / "photo.png")
    soundfile.write(folder / "voice.wav", rng.normal(0, 0.1, (20_000, 2)), 22_050)
    np.save(folder / "sensors.npy", rng.normal(0, 9, (4, 3)))
    return folder


@pytest.fixture(scope="module")
def predictor(folder):
    return Predictor.from_checkpoint(folder / "model.ckpt", device="cpu")


@pytest.fixture(scope="module")
def runner(folder):
    spec = importlib.util.spec_from_file_location("exported_runner", folder / "out" / "runner.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def assert_same(found, expected):
    """Compare a prediction of the runner with one of ``Predictor``."""
    assert expected.error is None
    assert found["label"] == expected.label
    assert found["probability"] == pytest.approx(expected.probability, abs=1e-5)
    assert found["probabilities"] == pytest.approx(expected.probabilities, abs=1e-5)


def test_every_subset_of_the_inputs_is_predicted_as_by_the_checkpoint(folder, predictor, runner):
    values = {
        "my text": "naïve 日本語, cut off after twelve bytes",
        "photo": str(folder / "photo.png"),
        "voice": str(folder / "voice.wav"),
        "sensors": str(folder / "sensors.npy"),
    }
    subsets = [names for size in range(1, 5) for names in itertools.combinations(INPUTS, size)]
    samples = [{name: values[name] for name in names} for names in subsets]
    samples += [{"my text": "", "sensors": [1, None, 3]}, {"my text": 3, "photo": None}]
    expected = predictor.predict(samples)
    for size in (len(samples), 1):  # in one batch of padded values, and each alone
        for found, one in zip(runner.Runner(folder / "out").predict(samples, batch_size=size), expected, strict=True):
            assert_same(found, one)
    assert len({round(one.probability, 3) for one in expected}) > 10, "the inputs matter"


def test_a_sample_that_cannot_be_used_has_an_error_and_the_others_do_not(folder, runner):
    (folder / "bad.png").write_bytes(b"no image")
    samples = [{}, {"my text": "a"}, {"photo": str(folder / "bad.png")}, {"photo": "none.png"}, {"other": 1}]
    found = runner.Runner(folder / "out").predict(samples)
    assert [list(one) == ["error"] for one in found] == [True, False, True, True, True]
    assert "none of the model's inputs: my text, photo" in found[0]["error"]
    assert "'photo' cannot be used" in found[2]["error"]
    assert "no input 'other'" in found[4]["error"]


def test_the_runner_is_a_command_that_needs_no_torch(folder, predictor):
    """In a process in which torch and fusion_pl cannot be imported."""
    code = (
        "import runpy, sys; sys.modules.update(torch=None, fusion_pl=None); runpy.run_path('runner.py', {}, '__main__')"
    )
    words = [sys.executable, "-I", "-c", code, "--input", "my text=a=b", "--input", f"photo={folder / 'photo.png'}"]
    done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=folder / "out")
    assert_same(json.loads(done.stdout), predictor.predict({"my text": "a=b", "photo": str(folder / "photo.png")}))


def test_an_existing_folder_is_kept(folder, capsys):
    line = error_of(capsys, "--ckpt_path", folder / "model.ckpt", "--output", folder / "out")
    assert f"--output {folder / 'out'} exists" in line
    assert (folder / "out" / "model.onnx").exists()


def test_a_missing_package_is_one_sentence(folder, capsys, monkeypatch):
    monkeypatch.setattr(onnx_model, "find_spec", lambda name: None if name == "onnxscript" else name)
    line = error_of(capsys, "--ckpt_path", folder / "model.ckpt", "--output", folder / "other")
    assert "--format onnx needs onnxscript: pip install 'fusion-pl[export]'" in line


def test_an_input_without_preprocessing_in_the_runner_is_one_sentence(folder, capsys, monkeypatch):
    monkeypatch.delattr("fusion_pl.encoders.tiny_audio.WaveformProcessor.runner_settings")
    line = error_of(capsys, "--ckpt_path", folder / "model.ckpt", "--output", folder / "other")
    assert "the input 'voice' cannot be processed without torch" in line
    assert "WaveformProcessor: use an encoder of docs/export.md" in line
    assert not list(folder.glob("other*")), "nothing is left"
