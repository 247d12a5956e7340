"""The runner opens and processes values as the processors do."""

from __future__ import annotations

import io
import zipfile
from fractions import Fraction
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


def array_file(save=np.save, *arrays, **named):
    file = io.BytesIO()
    save(file, *arrays, **named)
    return file.getvalue()


def sound_file(samples, **options):
    file = io.BytesIO()
    soundfile.write(file, samples, 8000, **{"format": "WAV"} | options)
    return file.getvalue()


def odd_texts():
    nan = float("nan")
    numbers = [nan, np.float32(nan), np.float32(2.5), np.bool_(True), Fraction(1, 2), 1j, np.complex64(1)]
    return ["", " ", "nan", "\ud800", None, *numbers, b"a", ["a"], io.BytesIO(b"a"), io.StringIO("a")]


def odd_images():
    pixels = RNG.integers(0, 255, (30, 47, 4), dtype=np.uint8)
    colour, grey = Image.fromarray(pixels[..., :3]), Image.fromarray(pixels[..., 0])
    modes = [colour.convert(mode) for mode in ("1", "P", "CMYK", "YCbCr", "HSV", "LAB")]
    modes += [Image.fromarray(pixels).convert(mode) for mode in ("LA", "PA", "RGBA", "RGBa")]
    numbers = [np.float32(pixels[..., 0]) / scale for scale in (255, 100, -255)]
    numbers += [np.where(numbers[0] > 0.5, np.nan, 0).astype(np.float32), np.int32(pixels[..., 0]) * 500 - 9]
    arrays = [pixels, pixels[..., :3], pixels[..., :2], pixels[..., :1], pixels[..., 0], pixels[:0], pixels[None]]
    arrays += [pixels / 255, np.float16(pixels / 255), pixels / 200, pixels > 9, np.uint16(pixels), pixels.tolist()]
    exif = Image.Exif()
    exif[0x0112] = 6
    oriented = encoded(colour, "JPEG", exif=exif)
    progressive = encoded(colour, "JPEG", progressive=True)
    files = [oriented, encoded(colour, "PNG")[:-900], encoded(colour, "JPEG")[:-400], b"", b"no image", progressive]
    files += [encoded(colour, "GIF", save_all=True, append_images=[grey]), encoded(Image.new("L", (99, 99)), "PNG")]
    files += [encoded(Image.new("L", (600, 600)), "PNG"), progressive + b"\xff\xda" * 2**20, encoded(colour, "EPS")]
    others = [Image.open(io.BytesIO(oriented)), io.BytesIO(oriented), io.StringIO("a"), 3, "none.png", "", "."]
    return [*modes, *(Image.fromarray(values) for values in numbers), *numbers, *arrays, *files, *others]


def odd_sounds():
    clip = RNG.normal(0, 0.1, (9_000, 2)).astype(np.float32)
    deep = np.round(clip * 2**15).astype(np.int16)
    samples = [clip, clip.T, clip.T.astype(np.float64), np.float16(clip.T), deep, deep.T, deep[:, 0], np.int32(deep.T)]
    samples += [np.uint8(deep.T), np.int64(deep.T), clip.T > 0, clip.T * 1e39, clip.T[None], clip[:0].T, clip[0, 0]]
    samples += [clip[:, 0].tolist(), np.where(clip.T > 0.3, np.nan, 0)]
    rates = [0, -8000, 500, 400_000, 8000.0, 8000.5, float("nan"), "8000", None, np.int64(8000)]
    ends, middle = np.float64(clip), np.float64(clip)  # 4,000 samples in the middle are used
    ends[0] = middle[4500] = np.nan
    files = [sound_file(values, subtype="FLOAT") for values in (clip, ends, middle, clip[:0])]
    files += [sound_file(clip), sound_file(clip)[:-5000], b"", b"no sound"]
    files += [sound_file(clip, format="FLAC"), sound_file(clip, format="FLAC")[:-5000]]
    files += [
        sound_file(clip, format="OGG"),
        sound_file(clip, format="OGG")[:-2000],
        sound_file(clip, format="AIFF")[:-9],
    ]
    others = [io.BytesIO(files[0]), (clip.T, 8000, 1), [clip.T, 8000], clip.T, 3, "none.wav"]
    return [*((values, 8000) for values in samples), *((clip.T, rate) for rate in rates), *files, *others]


def odd_vectors():
    nan, ones = float("nan"), np.ones((6, 3))
    lists = [
        [],
        [[]],
        [1, 2],
        [1, None, 3],
        [nan, None, nan],
        [1, "2", "3.5"],
        [1, "nan", 3],
        [1, "a", 3],
        [1, True, 3],
    ]
    lists += [[[1, 2, 3], [4, nan, 6]], [[1, 2, 3], [None] * 3], [[1, 2, 3], [4, 5]], [[[1, 2, 3]]], [1, np.inf, 3]]
    lists += [[1, 1e39, 3], (1, 2, 3), [1, np.float32(nan), 3], [1, None, "nan"], [1, 2, 3, 4, 5, 6], [10**400, 2, 3]]
    arrays = [ones[0], np.float16(ones), ones[:0], ones[None], ones > 0, ones * 1j, ones.astype(str), ones * 1e39]
    arrays += [np.array([1, nan, 3]), ones.astype(object), np.uint8(ones), np.array(1.0)]
    late = np.where(np.arange(6)[:, None] > 4, nan, ones)  # after the vectors that are used
    files = [array_file(np.save, values) for values in (*arrays[:9], late)]
    files += [
        array_file(np.savez, a=ones),
        array_file(np.savez, a=ones, b=ones),
        array_file(np.savez, key=ones, b=ones),
    ]
    files += [array_file(np.savez), array_file(np.savez, a=late), files[0][:-4], b"", b"no array"]
    others = [None, nan, np.float32(nan), 3, 3.0, np.float32(3), {"a": 1}, "none.npy", io.BytesIO(files[0])]
    return [*lists, *arrays, late, *files, *others]


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
