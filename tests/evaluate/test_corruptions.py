"""Corruptions grow with severity, are the same in every run, and leave severity 0 as it is."""

from __future__ import annotations

import math
import pickle
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.signal import periodogram

from fusion_pl.evaluate.choose_sweeps import CORRUPTIONS, corruptions_of
from fusion_pl.evaluate.corrupt_images import IMAGE_CORRUPTIONS
from fusion_pl.evaluate.corrupt_sounds import SOUND_CORRUPTIONS
from fusion_pl.evaluate.corrupt_texts import TEXT_CORRUPTIONS
from fusion_pl.evaluate.corruption import SEVERITIES
from fusion_pl.types import Waveform

TEXT = " ".join(f"{a}{b}" for a in ("stone", "river", "cloud", "tree") for b in "abcdefghijklmno")  # 60 different words


def image(size=(96, 64), mode="RGB"):
    """Blocks of 16 pixels in random colours, with a gradient over them."""
    rng = np.random.default_rng(0)
    width, height = size
    blocks = rng.integers(40, 160, (-(-height // 16), -(-width // 16), 3)).repeat(16, 0).repeat(16, 1)[:height, :width]
    gradient = np.linspace(0, 60, width)[None, :, None]
    return Image.fromarray((blocks + gradient).astype(np.uint8)).convert(mode)


def sound(rate=16_000, seconds=0.5):
    """Four tones from 300 to 7,000 Hz; a length that is a prime number."""
    time = torch.arange(int(rate * seconds) - 7) / rate
    return Waveform(sum(0.15 * torch.sin(2 * math.pi * f * time) for f in (300, 1500, 3500, 7000)), rate)


VALUES = {"image": image(), "grey": image(mode="L"), "sound": sound(), "text": TEXT}
CASES = [
    pytest.param(value, corruption, id=f"{kind}-{corruption.name}")
    for kind, value in VALUES.items() for corruption in corruptions_of(value)
]  # fmt: skip


def content(value):
    """A value as an array or text."""
    if isinstance(value, str):
        return value
    return value.samples.numpy() if isinstance(value, Waveform) else np.asarray(value, np.float64)


def inversions(order):
    return sum(a > b for i, a in enumerate(order) for b in order[i + 1 :])


def edit_distance(a, b):
    """Levenshtein's distance, by the textbook's table."""
    row = list(range(len(b) + 1))
    for i, left in enumerate(a, 1):
        previous, row[0] = row[0], i
        for j, right in enumerate(b, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (left != right))
    return row[-1]


def distance(name, before, after):
    if name == "swapped words":
        words = before.split()
        assert sorted(words) == sorted(after.split())
        return inversions([words.index(word) for word in after.split()])
    if isinstance(before, str):
        return edit_distance(before, after)
    if name == "occlusion":
        return float((content(before) != content(after)).mean())
    return float(np.mean((content(before) - content(after)) ** 2))


@pytest.mark.parametrize(("value", "corruption"), CASES)
def test_severity_0_is_the_value_itself_and_distances_grow(value, corruption):
    before = pickle.dumps(value)
    assert corruption.apply(value, 0, "s1") is value
    found = [corruption.apply(value, severity, "s1") for severity in SEVERITIES]
    distances = [distance(corruption.name, value, changed) for changed in found]
    assert distances[0] > 0
    assert distances == sorted(set(distances)), "each severity is to change more than the one before"
    assert pickle.dumps(value) == before, "the value itself must stay"
    assert all(type(changed) is type(value) for changed in found)


@pytest.mark.parametrize(("value", "corruption"), CASES)
def test_equal_seeds_give_equal_values_whatever_was_drawn_before(value, corruption):
    first = [content(corruption.apply(value, severity, "s1")) for severity in SEVERITIES]
    state = torch.get_rng_state()
    second = [content(corruption.apply(value, severity, "s1")) for severity in reversed(SEVERITIES)]
    assert torch.equal(torch.get_rng_state(), state), "the random numbers of the caller must stay"
    assert all(np.array_equal(a, b) for a, b in zip(first, reversed(second), strict=True))
    is_random = corruption.name in ("noise", "occlusion", "typos", "dropped words", "swapped words")
    other = content(corruption.apply(value, 5, "s2"))
    assert np.array_equal(first[-1], other) != is_random or corruption.name == "brightness"


@pytest.mark.parametrize("corruption", CORRUPTIONS, ids=lambda c: c.name)
def test_corruptions_can_be_sent_to_loader_workers(corruption):
    assert pickle.loads(pickle.dumps(corruption)) == corruption


def by_name(corruptions, name):
    return next(corruption for corruption in corruptions if corruption.name == name)


def test_white_noise_has_the_snr_of_its_level_and_a_flat_spectrum():
    corruption, clip = by_name(SOUND_CORRUPTIONS, "noise"), sound(seconds=4)
    for severity, snr in zip(SEVERITIES, corruption.levels, strict=True):
        noise = corruption.apply(clip, severity, "s1").samples - clip.samples
        measured = 10 * torch.log10(clip.samples.square().mean() / noise.square().mean())
        assert measured.item() == pytest.approx(snr, abs=1e-3)
    frequencies, power = periodogram(noise.numpy(), clip.rate)
    low, high = power[frequencies < 4000].mean(), power[frequencies >= 4000].mean()
    assert low == pytest.approx(high, rel=0.05)


def test_clipping_and_the_band_limit_have_the_limits_of_their_levels():
    clip = sound()
    clipping, band = by_name(SOUND_CORRUPTIONS, "clipping"), by_name(SOUND_CORRUPTIONS, "band limit")
    for severity in SEVERITIES:
        peak = clipping.apply(clip, severity, "s1").samples.abs().max() / clip.samples.abs().max()
        assert 20 * math.log10(peak) == pytest.approx(-clipping.levels[severity - 1], abs=1e-3)
        limited = band.apply(clip, severity, "s1").samples
        frequencies, power = periodogram(limited.numpy(), clip.rate, window="hann")
        above = frequencies > 1.1 * band.levels[severity - 1]
        assert power[above].sum() < 1e-3 * power.sum()
    narrow = Waveform(torch.randn(801), 1000)
    torch.testing.assert_close(band.apply(narrow, 5, "s1").samples, narrow.samples, rtol=0, atol=1e-5)


def test_mu_law_of_8_bits_is_that_of_the_formula():
    corruption = by_name(SOUND_CORRUPTIONS, "codec")
    values = np.linspace(-1, 1, 999, dtype=np.float32)
    clip = Waveform(torch.from_numpy(values), 8000)
    compressed = np.sign(values) * np.log1p(255 * np.abs(values)) / math.log(256)
    step = 2 / 255
    nearest = np.rint((compressed + 1) / step) * step - 1
    expected = np.sign(nearest) * (256 ** np.abs(nearest) - 1) / 255
    np.testing.assert_allclose(corruption.apply(clip, 1, "s1").samples.numpy(), expected, atol=0.02)
    assert len(corruption.apply(clip, 5, "s1").samples.unique()) <= 8


def test_noise_of_images_has_its_standard_deviation_and_scales_with_large_images():
    corruption = by_name(IMAGE_CORRUPTIONS, "noise")
    grey = Image.new("L", (300, 300), 128)
    changed = np.asarray(corruption.apply(grey, 1, "s1"), float) / 255
    assert changed.std() == pytest.approx(0.08, rel=0.05)
    large = Image.new("L", (1120, 1120), 128)
    reduced = corruption.apply(large, 1, "s1").resize((224, 224), Image.Resampling.BOX)
    assert np.asarray(reduced, float).std() / 255 == pytest.approx(0.08, rel=0.05)


def test_occlusion_covers_its_share_by_the_mean_colour_and_brightness_changes_by_stops():
    occlusion, brightness = by_name(IMAGE_CORRUPTIONS, "occlusion"), by_name(IMAGE_CORRUPTIONS, "brightness")
    pixels = np.full((200, 300), 90, np.uint8)
    pixels[::2] = 110
    picture = Image.fromarray(pixels)
    masks = [np.asarray(occlusion.apply(picture, severity, "s1")) == 100 for severity in SEVERITIES]
    assert [mask.mean() for mask in masks] == pytest.approx(occlusion.levels, abs=0.01)
    assert all((smaller <= larger).all() for smaller, larger in pairwise(masks))
    signs = set()
    for seed in range(8):
        found = np.asarray(brightness.apply(Image.new("L", (4, 4), 60), 2, f"s{seed}"))[0, 0]
        assert found in (30, 120)
        signs.add(int(found))
    assert signs == {30, 120}


def test_blur_is_relative_to_the_shorter_edge():
    corruption = by_name(IMAGE_CORRUPTIONS, "blur")
    for scale in (1, 2):
        picture = Image.new("L", (224 * scale, 224 * scale))
        picture.paste(255, (112 * scale, 0, 224 * scale, 224 * scale))
        row = np.diff(np.asarray(corruption.apply(picture, 3, "s1"), float)[5])
        positions = np.arange(len(row))
        mean = (row * positions).sum() / row.sum()
        deviation = math.sqrt((row * (positions - mean) ** 2).sum() / row.sum())
        assert deviation == pytest.approx(3 * scale, rel=0.15)


@pytest.mark.parametrize("corruption", IMAGE_CORRUPTIONS, ids=lambda c: c.name)
def test_tensors_of_pixels_change_as_images_do(corruption):
    picture = image()
    tensor = torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()
    assert corruptions_of(tensor) == IMAGE_CORRUPTIONS
    changed = corruption.apply(tensor, 3, "s1")
    expected = np.asarray(corruption.apply(picture, 3, "s1"))
    assert np.array_equal(changed.permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize("corruption", TEXT_CORRUPTIONS, ids=lambda c: c.name)
def test_texts_of_any_length_and_language(corruption):
    for text in ("", " ", "word", "  two  words ", "東京 都の天気"):
        for severity in SEVERITIES:
            changed = corruption.apply(text, severity, "s1")
            assert isinstance(changed, str)
            if corruption.name == "dropped words" and text.strip():
                assert changed.strip()


def test_dropped_words_have_their_share_and_those_of_a_lower_severity_stay_dropped():
    corruption = by_name(TEXT_CORRUPTIONS, "dropped words")
    text = " ".join(map(str, range(4000)))
    kept = [set(corruption.apply(text, severity, "s1").split()) for severity in SEVERITIES]
    assert [1 - len(words) / 4000 for words in kept] == pytest.approx(corruption.levels, abs=0.03)
    assert all(later < earlier for earlier, later in pairwise(kept))


@pytest.mark.parametrize(
    "value",
    [
        Image.new("RGB", (1, 1)),
        Image.new("L", (1, 3)),
        Waveform(torch.zeros(1), 8000),
        Waveform(torch.zeros(801), 8000),
    ],
    ids=["pixel", "column", "sample", "silence"],
)
def test_tiny_and_silent_values_stay_finite(value):
    for corruption in corruptions_of(value):
        for severity in SEVERITIES:
            changed = content(corruption.apply(value, severity, "s1"))
            assert np.isfinite(changed).all()
            assert changed.shape == content(value).shape


def test_other_values_have_no_corruption():
    rgba = Image.new("RGBA", (4, 4))
    for value in (rgba, torch.zeros(3), torch.zeros(4, 5), torch.zeros(2, 3, 4, dtype=torch.uint8), 1.0, None):
        assert corruptions_of(value) == ()
