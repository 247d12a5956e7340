from __future__ import annotations

import io
import pickle
import shutil
from functools import partial

import jaxtyping
import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image

from fusion_pl.checkpoint import read_checkpoint
from fusion_pl.data import ManifestData
from fusion_pl.fusion import Concat, Weighted
from fusion_pl.module import FusionClassifier
from fusion_pl.predict import Predictor
from fusion_pl.types import MissingFileError, UserError, Waveform

from .conftest import CLASSES, tiny_encoders
from .test_module import quiet_trainer


@pytest.fixture(scope="module")
def trained_model(manifest, tmp_path_factory):
    """Trained for two epochs, with its checkpoint."""
    model = FusionClassifier(tiny_encoders(), Weighted, CLASSES)
    data = ManifestData(str(manifest), batch_size=6, num_workers=0)
    data.processors = model.processors
    folder = tmp_path_factory.mktemp("trained_model")
    trainer: Trainer = quiet_trainer(folder, max_epochs=2)
    trainer.fit(model, datamodule=data)
    trainer.save_checkpoint(folder / "model.ckpt")
    return model, folder / "model.ckpt"


@pytest.fixture
def checkpoint(trained_model, tmp_path):
    """A copy of that checkpoint, to change."""
    return shutil.copy(trained_model[1], tmp_path / "model.ckpt")


def test_a_model_from_a_checkpoint_predicts_the_same(checkpoint, trained_model, manifest):
    model, _ = trained_model
    predictor = Predictor.from_checkpoint(checkpoint, device="cpu")
    folder = manifest.parent
    samples = [
        {"text": "number 3", "image": str(folder / "3.png"), "audio": folder / "4.wav"},
        {"image": folder / "6.png"},
    ]
    predictions = predictor.predict(samples)
    model.eval().cpu()
    direct = Predictor(model, device="cpu").predict(samples)
    assert predictions == direct
    assert predictions[0].label in {"high", "low"}
    assert sum(predictions[0].probabilities.values()) == pytest.approx(1.0)
    assert predictions[1].weights == {"text": 0.0, "image": 1.0, "audio": 0.0}


@pytest.mark.parametrize(("missing", "weights"), [("mask", (1.0, 0.0, 0.0)), ("token", (0.25, 0.25, 0.5))])
def test_a_missing_input_has_a_weight_only_with_a_learned_embedding(encoders, missing, weights):
    head = partial(Weighted, weights={"text": 1.0, "image": 1.0, "audio": 2.0})
    predictor = Predictor(FusionClassifier(encoders, head, CLASSES, missing=missing), device="cpu")
    assert predictor.predict({"text": "number 3"}).weights == pytest.approx(dict(zip(encoders, weights, strict=True)))


def test_missing_embeddings_are_saved_in_the_checkpoint(encoders, manifest, tmp_path):
    model = FusionClassifier(encoders, Concat, CLASSES, missing="token")
    data = ManifestData(str(manifest), batch_size=6, num_workers=0)
    data.processors = model.processors
    trainer: Trainer = quiet_trainer(tmp_path, max_epochs=1)
    trainer.fit(model, datamodule=data)
    with torch.no_grad():
        model.missing_embeddings["audio"] += torch.arange(8.0)
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    sample = {"text": "number 3"}
    direct = Predictor(model.eval().cpu(), device="cpu").predict(sample)
    assert Predictor.from_checkpoint(tmp_path / "model.ckpt", device="cpu").predict(sample) == direct
    with torch.no_grad():
        model.missing_embeddings["audio"] -= torch.arange(8.0)
    other = Predictor(model, device="cpu").predict(sample)
    assert other.probabilities["high"] != pytest.approx(direct.probabilities["high"], abs=1e-4)


def test_every_form_of_an_input_gives_the_same_prediction(checkpoint, manifest):
    predictor = Predictor.from_checkpoint(checkpoint)
    picture = Image.open(manifest.parent / "0.png")
    pixels = np.asarray(picture)
    expected = predictor.predict({"image": manifest.parent / "0.png"})
    for value in (picture, pixels, torch.from_numpy(pixels.copy())[None], pixels.astype(np.float32) / 255):
        assert predictor.predict({"image": value}).probabilities == pytest.approx(expected.probabilities, abs=1e-6)
    tone = 0.3 * np.sin(np.arange(1600)).astype(np.float32)
    expected = predictor.predict({"audio": (tone, 8000)})
    for value in (
        Waveform(torch.from_numpy(tone), 8000),
        (torch.from_numpy(tone), 8000),
        (np.stack([tone, tone]), 8000),
    ):
        assert predictor.predict({"audio": value}).probabilities == pytest.approx(expected.probabilities, abs=1e-5)


def test_a_sample_that_cannot_be_used_gets_its_own_error(checkpoint, manifest):
    predictor = Predictor.from_checkpoint(checkpoint)
    good = {"text": "number 1", "image": manifest.parent / "1.png"}
    bad = [
        {"image": "nowhere.png"},
        {"imag": "1.png"},
        {},
        {"text": None},
        {"audio": np.zeros(10)},
        {"text": ["a"]},
    ]
    alone = predictor.predict(good)
    predictions = predictor.predict([good, *bad, good])
    for one in (predictions[0], predictions[-1]):
        assert one.error is None
        assert one.probabilities == pytest.approx(alone.probabilities, abs=1e-6)
    assert all(one.error and one.label is None for one in predictions[1:-1])
    assert "nowhere.png" in predictions[1].error
    assert "no input 'imag'; it takes: text, image, audio" in predictions[2].error


@pytest.mark.parametrize("missing", [None, float("nan"), np.float32("nan")])
def test_nan_is_missing_as_in_tables(checkpoint, manifest, missing):
    """A row of a pandas data frame has NaN in place of a missing text or path."""
    predictor = Predictor.from_checkpoint(checkpoint, device="cpu")
    row = {"text": missing, "image": str(manifest.parent / "1.png"), "audio": missing}
    assert predictor.predict(row) == predictor.predict({"image": row["image"]})
    assert predictor.predict({"text": missing}).error.startswith("the sample has none of the model's inputs")


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (12, "12"),
        (1.5, "1.5"),
        (np.int64(7), "7"),
        (np.float32(0.1), "0.1"),
        (True, "true"),
        (np.bool_(False), "false"),
    ],
)
def test_a_number_is_text_as_in_tables(checkpoint, number, text):
    predictor = Predictor.from_checkpoint(checkpoint, device="cpu")
    assert predictor.processors["text"].open(number) == text
    assert predictor.predict({"text": number}) == predictor.predict({"text": text})


@pytest.mark.parametrize(
    ("samples", "sample"),
    [
        ("barks", "sample 0: a sample is a dictionary from input name to value, got str: 'barks'"),
        (None, "sample 0: a sample is a dictionary from input name to value, got NoneType: None"),
        (b"barks", "sample 0: .* got bytes: b'barks'"),
        (3, "sample 0: .* got int: 3"),
        ([{"text": "barks"}, "purrs"], "sample 1: .* got str: 'purrs'"),
        ([None], "sample 0: .* got NoneType: None"),
    ],
)
def test_a_sample_that_is_no_dictionary_is_refused(model, samples, sample, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # a user's Python does not check annotations
    with pytest.raises(UserError, match=sample):
        Predictor(model, device="cpu").predict(samples)


def test_an_empty_path_is_refused(checkpoint):
    predictor = Predictor.from_checkpoint(checkpoint, device="cpu")
    expected = "the path of the input 'image' is empty: give a path, or None if it is missing"
    assert predictor.predict({"text": "a", "image": ""}).error == expected


def test_an_empty_text_is_present(checkpoint):
    assert Predictor.from_checkpoint(checkpoint).predict({"text": ""}).error is None


def rewrite(path, change):
    checkpoint = torch.load(path, weights_only=True)
    change(checkpoint["fusion_pl"])
    torch.save(checkpoint, path)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (
            lambda r: r["fusion"].update(class_path="os.system"),
            r"asks for os\.system, which is not part of fusion-pl.*--trust os",
        ),
        (lambda r: r["fusion"].update(class_path="fusion_pl.encoders.TinyText"), "is not a Fusion"),
        (lambda r: r["encoders"]["text"].update(class_path="fusion_pl.predict.tempfile.mkdtemp"), "cannot be imported"),
        (lambda r: r["encoders"]["text"]["init_args"].update(dim=16), "is inconsistent"),
        (lambda r: r["encoders"]["text"]["init_args"].update(evil=1), "is inconsistent"),
        (lambda r: r["files"].update(text={"../evil": b"x"}), "not a plain file name"),
        (lambda r: r.pop("encoders"), "is inconsistent"),
        (lambda r: r.update(format=99), "format 99"),
    ],
)
def test_a_tampered_config_is_refused(checkpoint, change, match):
    rewrite(checkpoint, change)
    with pytest.raises(UserError, match=match):
        Predictor.from_checkpoint(checkpoint)


class Bomb:
    def __reduce__(self):
        return (open, ("bomb-went-off", "w"))


def test_code_in_a_checkpoint_does_not_run(checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    loaded = torch.load(checkpoint, weights_only=True)
    torch.save(loaded | {"bomb": Bomb()}, checkpoint)
    with pytest.raises(UserError, match="can be read safely"):
        Predictor.from_checkpoint(checkpoint)
    assert not (tmp_path / "bomb-went-off").exists()


def test_files_that_are_not_checkpoints(tmp_path):
    with pytest.raises(MissingFileError, match="there is no checkpoint"):
        read_checkpoint(tmp_path / "none.ckpt")
    for content in (b"", b"hello", pickle.dumps({"a": 1})):
        (tmp_path / "x.ckpt").write_bytes(content)
        with pytest.raises(UserError, match="is not a checkpoint"):
            read_checkpoint(tmp_path / "x.ckpt")
    buffer = io.BytesIO()
    torch.save({"state_dict": {}}, buffer)
    (tmp_path / "x.ckpt").write_bytes(buffer.getvalue())
    with pytest.raises(UserError, match="but not from fusion-pl"):
        read_checkpoint(tmp_path / "x.ckpt")
    (tmp_path / "x.ckpt").write_bytes(buffer.getvalue()[:-40])
    with pytest.raises(UserError, match="is not a checkpoint"):
        read_checkpoint(tmp_path / "x.ckpt")


def test_an_unknown_device_is_refused(model):
    with pytest.raises(UserError, match="there is no device 'cuda:77' here"):
        Predictor(model, device="cuda:77")
