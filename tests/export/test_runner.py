"""The runner opens and processes values as the processors do."""

from __future__ import annotations

import io

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
from fusion_pl.export.runner import KINDS, OPEN_ERRORS, ByteText, Clip, Vectors

from ..encoders.models import tokenizer

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


def encoded(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


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


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (Vectors([0.0] * 3, [1.0] * 3, 9, None, False), [1, 2, 3, 4, 5, 6]),
        (Vectors([0.0] * 3, [1.0] * 3, 9, None, False), [1, None, 3]),
        (Vectors([0.0] * 3, [1.0] * 3, 9, None, True), []),
        (Clip(8000, 8000, ["samples", "lengths"], 10**6), (np.zeros(0, np.float32), 8000)),
        (Clip(8000, 8000, ["samples", "lengths"], 10**6), (np.full(9, np.nan, np.float32), 8000)),
        (Clip(8000, 8000, ["samples", "lengths"], 10**6), b"no sound"),
        (ByteText(9, 256), "\ud800"),
        (ByteText(9, 256), ["a"]),
    ],
)
def test_values_that_cannot_be_used(kind, value):
    with pytest.raises(OPEN_ERRORS):
        kind.open(value)
