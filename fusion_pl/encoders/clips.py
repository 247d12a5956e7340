"""Crop and resample clips."""

from __future__ import annotations

import math
from fractions import Fraction
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchaudio.transforms import Resample

from fusion_pl.types import Waveform

MAX_FILTER_SIZE = 1_000_000  # entries of the resampling filter


def crop_range(samples: int, rate: int, target: int, longest: int, training: bool) -> tuple[int, int]:
    """Return which part of a clip is used: its first sample, and the one after its last.

    Args:
        samples: number of samples of the clip.
        rate: sampling rate of the clip, in Hz.
        target: sampling rate to which it will be resampled, in Hz.
        longest: maximum number of samples of the result.
        training: whether to crop at random instead of to the centre.
    """
    used = math.ceil(longest * rate / target)
    spare = samples - used
    if spare <= 0:
        return 0, samples
    start = int(torch.randint(spare + 1, ())) if training else spare // 2
    return start, start + used


def crop_and_resample(clip: Waveform, rate: int, longest: int, training: bool) -> Float[Tensor, " n"]:
    """Return at most ``longest`` samples of a clip at another sampling rate.

    Args:
        clip: of any rate and length.
        rate: sampling rate of the result, in Hz.
        longest: maximum number of samples of the result.
        training: whether to crop at random instead of to the centre.
    """
    samples = clip.samples.float()
    start, end = crop_range(samples.numel(), clip.rate, rate, longest, training)
    samples = samples[start:end]  # before resampling, which is slow
    if clip.rate != rate and samples.numel():
        samples = _resampler(*_ratio(clip.rate, rate))(samples)[:longest]
    return samples


def _ratio(rate: int, target: int) -> tuple[int, int]:
    """Return two small numbers with the same ratio as the rates.

    The filter has as many entries as their product: for 44,101 to 16,000 Hz, which have no common divisor, it would
    take gigabytes. Common pairs of rates are exact; others are accurate to 0.05 %, a hundredth of a semitone.
    """
    exact = Fraction(rate, target)
    near = exact.limit_denominator(max(1, math.isqrt(MAX_FILTER_SIZE * target // rate)))
    return near.numerator, near.denominator


@lru_cache(maxsize=32)  # the filter depends on the two rates only
def _resampler(rate: int, target: int) -> nn.Module:
    resampler: nn.Module = Resample(rate, target)
    return resampler
