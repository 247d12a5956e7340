"""Cut a sound to the length and the rate that a model takes."""

from __future__ import annotations

import math
from fractions import Fraction
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchaudio.transforms import Resample

from fusion_pl.types import Waveform

FILTER = 1_000_000  # entries, at most, of the filter that resamples


def span(samples: int, rate: int, target: int, longest: int, training: bool) -> tuple[int, int]:
    """Say which part of a sound is used: from the first sample up to, but without, the second.

    Args:
        samples: of the sound.
        rate: of the sound, in Hz.
        target: the rate to which it will be resampled, in Hz.
        longest: samples of the result.
        training: whether the part is drawn at random; otherwise it is the middle.
    """
    used = math.ceil(longest * rate / target)
    spare = samples - used
    if spare <= 0:
        return 0, samples
    start = int(torch.randint(spare + 1, ())) if training else spare // 2
    return start, start + used


def cut(sound: Waveform, rate: int, longest: int, training: bool) -> Float[Tensor, " n"]:
    """Return at most ``longest`` samples of a sound at a given rate.

    Args:
        sound: of any rate and length.
        rate: of the result, in Hz.
        longest: samples of the result; a longer sound loses its rest.
        training: whether the part that is kept is drawn at random; otherwise it is the middle.
    """
    samples = sound.samples.float()
    start, end = span(samples.numel(), sound.rate, rate, longest, training)
    if end - start < samples.numel():
        samples = samples[start:end]  # before resampling: fewer samples to resample
    if sound.rate != rate and samples.numel():
        samples = _resampler(*_ratio(sound.rate, rate))(samples)[:longest]
    return samples


def _ratio(rate: int, target: int) -> tuple[int, int]:
    """Return two small numbers whose quotient is that of the rates.

    The filter has as many entries as their product: for 44,101 to 16,000 Hz, which share no divisor, it would take
    gigabytes. The usual pairs of rates are exact; others come within 0.05 %, a hundredth of a semitone.
    """
    exact = Fraction(rate, target)
    near = exact.limit_denominator(max(1, math.isqrt(FILTER * target // rate)))
    return near.numerator, near.denominator


@lru_cache(maxsize=32)  # its filter is worth keeping, and depends on nothing but the two rates
def _resampler(rate: int, target: int) -> nn.Module:
    made: nn.Module = Resample(rate, target)
    return made
