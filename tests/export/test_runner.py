"""The runner opens and processes values as the processors do."""

from __future__ import annotations

import io
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from transformers import Wav2Vec2FeatureExtractor

from fusion_pl.encoders import FeatureEncoder, TinyAudio, TinyImage, TinyText
from fusion_pl.encoders.audio import FeatureExtractor
from fusion_pl.encoders.audio_features import WaveformFeatures
from fusion_pl.encoders.image import ResizeAndCrop
from fusion_pl.encoders.text import SubwordTokenizer
from fusion_pl.export.preprocess import KINDS
from fusion_pl.export.runner import Runner
from fusion_pl.predict import Predictor

from ..encoders.models import tokenizer
from .odd_values import encoded, odd_images, odd_sounds, odd_texts, odd_vectors

RNG = np.random.default_rng(0)


def assert_same(processor, values, tolerance=0.0):
    """Compare the tensors of the runner with those of the processor."""
    settings = processor.runner_settings()
    kind = KINDS[settings.pop("kind")](**settings)
    expected = processor([processor.open(value) for value in values])
    found = kind([kind.open(value) for value in values])
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.numpy().dtype, name
        torch.testing.assert_close(torch.from_numpy(found[name]), tensor, rtol=0, atol=tolerance)


def pictures():
    """Modes, sizes, transparency, palettes, 16 bits and an orientation."""
    pixels = RNG.integers(0, 255, (30, 47, 4), dtype=np.uint8)
    colour = Image.fromarray(pixels[..., :3])
    exif = Image.Exif()
    exif[0x0112] = 6
    deep = Image.fromarray(RNG.integers(0, 65535, (20, 9), dtype=np.uint16))
    return {
        "rgb": encoded(colour, "PNG"),
        "grey": encoded(colour.convert("L"), "PNG"),
        "transparent": encoded(Image.fromarray(pixels), "PNG"),
        "palette": encoded(colour.convert("P"), "GIF", transparency=3),
        "bits": encoded(colour.convert("1"), "PNG"),
        "deep": encoded(deep, "PNG"),
        "orientation": encoded(colour, "JPEG", exif=exif),
        "cmyk": encoded(colour.convert("CMYK"), "JPEG"),
        "object": colour,
    }


@pytest.mark.parametrize("channels", [1, 3])
def test_images(channels):
    assert_same(TinyImage(image_size=16, channels=channels).processor, list(pictures().values()))


def test_texts():
    assert_same(TinyText(max_tokens=9).processor, ["", "a", "naïve 日本語 🙂", 3, 2.5, True])


@pytest.mark.parametrize("rate", [8000, 16_000, 44_100, 44_101, 11_025, 6000])
def test_sounds(rate):
    """Shorter and longer than the maximum, of one channel and several."""
    files = []
    for seconds, channels in ((0.3, 1), (0.0201, 2), (1.7, 2)):
        file = io.BytesIO()
        soundfile.write(file, RNG.normal(0, 0.1, (round(seconds * rate), channels)), rate, format="WAV")
        files.append(file.getvalue())
    assert_same(TinyAudio(max_seconds=0.5).processor, [*files, (np.zeros(7, np.float32), rate)], 1e-6)


def test_vectors():
    encoder = FeatureEncoder(3, missing_numbers="flag", max_tokens=4)
    encoder.fit_statistics(torch.randn(20, 3) * 5 + 100)
    file = io.BytesIO()
    np.save(file, RNG.normal(0, 1, (6, 3)).astype(np.float32))
    assert_same(encoder.processor, [[1, None, 3], [[1, 2, 3], [4, 5, float("nan")]], file.getvalue(), np.ones(3)])


def test_subwords():
    processor = SubwordTokenizer(tokenizer(), max_tokens=6, vocab_size=64)
    assert_same(processor, ["", "the red cat", "a very fast old dog ran on the mat", 3])
    processor.tokenizer.truncation_side = "left"
    assert_same(processor, ["", "the red cat", "a very fast old dog ran on the mat", 3])


@pytest.mark.parametrize("settings", [(24, None, 2), (24, 28, 3), (24, 24, 2)])
def test_resized_images(settings):
    """Pillow and torchvision differ by at most one of 255 levels."""
    assert_same(ResizeAndCrop(*settings), list(pictures().values()), 1)


@pytest.mark.parametrize("normalise", [True, False])
def test_waveforms(normalise):
    extractor = Wav2Vec2FeatureExtractor(sampling_rate=16_000, do_normalize=normalise)
    processor = FeatureExtractor(WaveformFeatures(extractor, min_samples=400), max_seconds=0.5)
    clips = [(RNG.normal(0, 0.1, size).astype(np.float32), 16_000) for size in (300, 5_000, 20_000)]
    assert_same(processor, [*clips, (RNG.normal(0, 0.1, (2, 9_000)).astype(np.float32), 22_050)], 1e-4)


PROCESSORS = {
    "text": (lambda: TinyText(max_tokens=9), odd_texts),
    "image": (lambda: TinyImage(image_size=16), odd_images),
    "sound": (lambda: TinyAudio(rate=8000, max_seconds=0.5), odd_sounds),
    "vector": (lambda: FeatureEncoder(3, max_tokens=4), odd_vectors),
    "number": (lambda: FeatureEncoder(1), odd_vectors),
    "vector with flags": (lambda: FeatureEncoder(3, max_tokens=4, missing_numbers="flag"), odd_vectors),
    "array of a key": (lambda: FeatureEncoder(3, key="key"), odd_vectors),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("encoder", "odd_values"), PROCESSORS.values(), ids=PROCESSORS)
def test_odd_values_are_used_missing_or_refused_as_by_the_predictor(encoder, odd_values, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 9_000)
    processor = encoder().processor
    settings = processor.runner_settings()
    predictor, runner = Predictor.__new__(Predictor), Runner.__new__(Runner)  # without a model
    predictor.processors, runner.inputs = {"x": processor}, {"x": KINDS[settings.pop("kind")](**settings)}
    outcomes = set()
    for value in odd_values():
        expected = predictor.open_sample("", {"x": value})
        if hasattr(value, "seek"):
            value.seek(0)
        found = runner._open({"x": value})
        shown = f"{value!r:.200} of the Predictor: {expected}, of the runner: {found}"
        if expected.inputs:
            assert isinstance(found, dict), shown
            for name, tensor in processor([expected.inputs["x"]]).items():
                array = runner.inputs["x"]([found["x"]])[name]
                torch.testing.assert_close(torch.from_numpy(array), tensor, rtol=0, atol=1e-6, msg=shown)
        else:
            assert isinstance(found, str), shown
            assert found.startswith("the input 'x' cannot be used" if expected.bad_files else "the sample has none"), (
                shown
            )
        outcomes.add((bool(expected.inputs), bool(expected.bad_files)))
    assert len(outcomes) > 1, "not all values are alike"


def test_samples_are_opened_batch_by_batch_and_errors_are_in_their_place(monkeypatch):
    opened = []

    def run(samples):
        assert all(sample is not None for sample in samples)
        return [{"label": len(opened)} for _ in samples]

    def damaged(value):
        opened.append(value)
        if value == b"x":
            raise zipfile.BadZipFile("no zip file")
        return value

    runner = Runner.__new__(Runner)
    runner.inputs = {"vector": SimpleNamespace(open=damaged)}
    monkeypatch.setattr(runner, "_run", run)
    found = runner.predict([{"vector": value} for value in (b"a", b"x", b"c", b"d", b"x")], batch_size=2)
    error = {"error": "the input 'vector' cannot be used: no zip file"}
    assert found == [{"label": 2}, error, {"label": 4}, {"label": 4}, error]
    assert runner.predict({"vector": b"a"}) == {"label": 6}, "one sample has one prediction"
    for mistake in ("a cat", [3], [["a"]]):
        with pytest.raises(TypeError, match="a sample is a dictionary from input name to value, got "):
            runner.predict(mistake)
    with pytest.raises(ValueError, match="batch_size is 0"):
        runner.predict([], batch_size=0)


def test_an_output_that_is_not_finite_is_an_error():
    runner = Runner.__new__(Runner)
    runner.inputs, runner.classes = {}, ["a", "b"]
    outputs = {"probabilities": np.array([[np.nan, 1], [0.25, 0.75]]), "decision": np.array([0, 1])}
    runner.session = SimpleNamespace(
        get_outputs=lambda: [SimpleNamespace(name=name) for name in outputs],
        run=lambda names, feed: [outputs[name] for name in names],
    )
    first, second = runner._run([{}, {}])
    assert first == {"error": "the model's output for this sample is NaN or infinite"}
    assert second == {"label": "b", "probability": 0.75, "probabilities": {"a": 0.25, "b": 0.75}}
