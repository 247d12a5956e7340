from __future__ import annotations

import inspect
import math
import pickle
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn

from fusion_pl.data import augment
from fusion_pl.data.augment import FlipSides, Gain, MaskBand, MaskTime, Noise, Shift, Speed, TransformSamples, Typos
from fusion_pl.types import UserError, Waveform

RATE = 8000
# Every transform as strong as its test needs, and switched off.
SOUNDS: list[tuple[type[nn.Module], dict[str, Any], dict[str, Any]]] = [
    (Speed, {"spread": 0.5}, {"spread": 0.0}),
    (Gain, {"decibels": 12.0}, {"decibels": 0.0}),
    (Noise, {"probability": 1.0}, {"probability": 0.0}),
    (Noise, {"probability": 1.0, "color": 0.0}, {"probability": 0.0}),
    (Shift, {"seconds": 0.1}, {"seconds": 0.0}),
    (MaskBand, {"width": 0.8}, {"width": 0.0}),
    (MaskTime, {"width": 0.8}, {"width": 0.0}),
]
every_sound = pytest.mark.parametrize(("kind", "strong", "off"), SOUNDS)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def noise() -> Waveform:
    return Waveform(torch.randn(4001) * 0.1, RATE)


def tone(frequency: float, seconds: float = 1.0) -> Waveform:
    time = torch.arange(round(seconds * RATE)) / RATE
    return Waveform(torch.sin(2 * math.pi * frequency * time), RATE)


def peak(waveform: Waveform) -> float:
    """Return the loudest frequency in Hz."""
    spectrum = torch.fft.rfft(waveform.samples, n=8 * RATE).abs()
    return float(spectrum.argmax()) / 8


def test_every_transform_is_tested() -> None:
    found = {part for _, part in inspect.getmembers(augment, inspect.isclass) if issubclass(part, nn.Module)}
    assert found == {kind for kind, _, _ in SOUNDS} | {Typos, TransformSamples, FlipSides}


@every_sound
def test_transforms_change_the_sound_and_return_valid_sound(kind, strong, off, noise) -> None:
    before = noise.samples.clone()
    change = kind(**strong)
    changed = [change(noise) for _ in range(3)]
    for sound in changed:
        assert isinstance(sound, Waveform)
        assert sound.rate == RATE
        assert sound.samples.dtype == torch.float32
        assert sound.samples.isfinite().all()
        assert not torch.equal(sound.samples, before)
    assert not torch.equal(changed[0].samples, changed[1].samples)
    assert torch.equal(noise.samples, before), "the value itself must stay: it may be kept for the next epoch"
    if kind is not Speed:
        assert all(sound.samples.shape == before.shape for sound in changed)


@every_sound
def test_strength_zero_is_the_identity(kind, strong, off, noise) -> None:
    assert torch.equal(kind(**off)(noise).samples, noise.samples)


@every_sound
def test_transforms_depend_on_the_seed(kind, strong, off, noise) -> None:
    results = []
    for part in (kind(**strong), pickle.loads(pickle.dumps(kind(**strong)))):
        torch.manual_seed(7)
        results.append(part(noise).samples)
    assert torch.equal(*results)


@every_sound
@pytest.mark.parametrize("length", [0, 1, 2, 3])
def test_transforms_accept_the_shortest_sounds(kind, strong, off, length) -> None:
    sound = kind(**strong)(Waveform(torch.ones(length), RATE))
    assert sound.samples.isfinite().all()
    assert (sound.samples.numel() > 0) == (length > 0)


@every_sound
def test_silence_stays_silent(kind, strong, off) -> None:
    sound = kind(**strong)(Waveform(torch.zeros(500), RATE))
    assert not sound.samples.any()


def test_speed_changes_pitch_and_length() -> None:
    seen = []
    for _ in range(20):
        faster = Speed(0.25)(tone(800))
        factor = RATE / faster.samples.numel()
        assert 1 / 1.25 - 1e-3 <= factor <= 1.25 + 1e-3
        assert peak(faster) == pytest.approx(800 * factor, rel=0.01)
        seen.append(factor)
    assert min(seen) < 0.9
    assert max(seen) > 1.1


def test_gain_is_limited_to_its_decibels(noise) -> None:
    ratios = [float((Gain(6.0)(noise).samples / noise.samples).mean()) for _ in range(50)]
    decibels = [20 * math.log10(ratio) for ratio in ratios]
    assert -6.01 <= min(decibels) < -3
    assert 3 < max(decibels) <= 6.01


@pytest.mark.parametrize("color", [0.0, 1.0, 2.0])
def test_noise_has_the_requested_ratio_and_colour(color) -> None:
    sound = tone(1000, seconds=16.0)
    added = Noise(snr_low=10.0, snr_high=10.0, color=color, probability=1.0)(sound).samples - sound.samples
    ratio = 10 * math.log10(float(sound.samples.square().mean() / added.square().mean()))
    assert ratio == pytest.approx(10, abs=0.05)
    power = torch.fft.rfft(added).abs().square()
    octaves = [float(power[16 * low : 32 * low].mean()) for low in (250, 500, 1000, 2000)]
    slopes = [math.log2(low / high) for low, high in pairwise(octaves)]
    assert sum(slopes) / len(slopes) == pytest.approx(color, abs=0.1)


def test_transforms_of_torchaudio_change_the_samples(noise) -> None:
    torchaudio = pytest.importorskip("torchaudio", exc_type=ImportError)
    louder = TransformSamples(torchaudio.transforms.Vol(2.0, "amplitude"))(noise)
    torch.testing.assert_close(louder.samples, (2 * noise.samples).clamp(-1, 1))
    faster = TransformSamples(torchaudio.transforms.SpeedPerturbation(RATE, [1.25]))(noise)  # returns lengths, too
    assert faster.samples.shape == (round(4001 / 1.25),)
    assert faster.rate == RATE


def test_noise_has_the_requested_probability(noise) -> None:
    part = Noise(probability=0.3)
    changed = sum(not torch.equal(part(noise).samples, noise.samples) for _ in range(300))
    assert 60 < changed < 120


def test_shift_pads_with_silence() -> None:
    sound = Waveform(torch.arange(1.0, 801.0), RATE)
    offsets = set()
    for _ in range(20):
        moved = Shift(0.02)(sound).samples
        real = moved.nonzero().flatten()
        offset = int(real[0] - (moved[real[0]] - 1))
        assert torch.equal(moved[real], (real - offset + 1).float())
        assert len(real) == 800 - abs(offset)
        assert abs(offset) <= 160
        offsets.add(offset)
    assert min(offsets) < 0 < max(offsets)


def test_mask_band_removes_one_band_only() -> None:
    sound = Waveform(torch.randn(4096), RATE)  # as long as a fast transform, so that bands are cut exactly
    before = torch.fft.rfft(sound.samples).abs()
    after = torch.fft.rfft(MaskBand(0.5)(sound).samples).abs()
    gone = after < before * 1e-3
    places = gone.nonzero().flatten()
    assert 0 < len(places) <= 0.5 * len(before)
    assert int(places[-1] - places[0]) == len(places) - 1
    torch.testing.assert_close(after[~gone], before[~gone], rtol=1e-3, atol=1e-3)


def test_mask_time_silences_one_interval_only(noise) -> None:
    masked = MaskTime(0.5)(noise).samples
    places = (masked == 0).nonzero().flatten()
    assert 0 < len(places) <= 0.5 * len(masked) + 1
    assert int(places[-1] - places[0]) == len(places) - 1
    kept = masked != 0
    assert torch.equal(masked[kept], noise.samples[kept])


def test_typos_have_the_requested_rate() -> None:
    text = "0123456789" * 100
    damaged = Typos(0.1)(text)
    assert isinstance(damaged, str)
    assert abs(len(damaged) - len(text)) < 60  # dropped and doubled ones cancel out
    letters = sum(character.isalpha() for character in damaged)
    assert 10 < letters < 45  # a quarter of the damage is a replacement
    assert all(character in damaged for character in "0123456789")


def test_typos_have_four_kinds() -> None:
    damaged = {Typos(0.5, alphabet="x")("ab") for _ in range(200)}
    assert {"ab", "xb", "ax", "b", "a", "aab", "abb", "ba"} <= damaged


def test_typos_depend_on_the_seed_and_can_be_switched_off() -> None:
    texts = []
    for _ in range(2):
        torch.manual_seed(3)
        texts.append(Typos(0.5)("a sentence of some length"))
    assert texts[0] == texts[1] != "a sentence of some length"
    assert Typos(0.0)("a sentence") == "a sentence"
    assert Typos(1.0)("") == ""


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Speed(-0.1), r"Speed\(spread=-0.1\): expected a number that is 0 or more"),
        (lambda: Gain(-1.0), r"Gain\(decibels=-1.0\)"),
        (lambda: Noise(probability=1.5), r"Noise\(probability=1.5\): expected a number that is between 0 and 1"),
        (lambda: Noise(snr_low=30.0), r"Noise\(snr_low=30.0, snr_high=20.0\): snr_low is above snr_high"),
        (lambda: Shift(-1.0), r"Shift\(seconds=-1.0\)"),
        (lambda: MaskBand(2.0), r"MaskBand\(width=2.0\)"),
        (lambda: MaskTime(2.0), r"MaskTime\(width=2.0\)"),
        (lambda: Typos(1.1), r"Typos\(rate=1.1\)"),
        (lambda: Typos(alphabet=""), r"Typos\(alphabet=''\): expected at least one character"),
    ],
)
def test_arguments_out_of_range_are_refused(build, message) -> None:
    with pytest.raises(UserError, match=message):
        build()
