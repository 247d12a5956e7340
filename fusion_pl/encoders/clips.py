"""Crop and resample clips."""

from __future__ import annotations

import math
from fractions import Fraction
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchaudio.transforms import Resample

from fusion_pl.types import Kind, Waveform

MAX_FILTER_SIZE = 1_000_000  # entries of the resampling filter


class ClipProcessor:
    """Base of the processors of audio: crop and resample clips.

    Args:
        rate: sampling rate of the result, in Hz.
        longest: maximum number of samples of the result; longer clips are cropped, at random in training and to the
            centre otherwise.

    Attributes:
        fixed: whether clips are cropped to the centre in training, too, so that a clip is the same in every epoch.
    """

    kind: Kind = "audio"
    fixed = False

    def __init__(self, rate: int, longest: int) -> None:
        self.rate = rate
        self.longest = longest

    def crop(self, samples: int, rate: int, training: bool) -> tuple[int, int]:
        """Return the first sample of a clip to use, and the one after the last; no more of its file is read."""
        used = math.ceil(self.longest * rate / self.rate)
        spare = samples - used
        if spare <= 0:
            return 0, samples
        start = int(torch.randint(spare + 1, ())) if training and not self.fixed else spare // 2
        return start, start + used

    def crop_and_resample(self, clip: Waveform, training: bool) -> Float[Tensor, " n"]:
        """Return at most ``longest`` samples of a clip of any rate and length."""
        samples = clip.samples.float()
        start, end = self.crop(samples.numel(), clip.rate, training)
        samples = samples[start:end]  # before resampling, which is slow
        if clip.rate != self.rate and samples.numel():
            samples = _resampler(*_ratio(clip.rate, self.rate))(samples)[: self.longest]
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
