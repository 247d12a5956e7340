"""Crop and resample clips."""

from __future__ import annotations

import math
from fractions import Fraction
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchaudio.transforms import Resample

from fusion_pl.processors import AudioProcessor
from fusion_pl.types import Waveform

MAX_FILTER_SIZE = 1_000_000  # number of entries in the resampling filter


class ClipProcessor(AudioProcessor):
    """Base of the audio processors: crop and resample clips.

    Args:
        rate: sampling rate of the result, in Hz.
        max_samples: maximum length in audio samples; longer clips are cropped, at random in training, else centrally.

    Attributes:
        fixed_crop: whether clips are cropped to their centre in training too, so that every epoch has the same crops.
    """

    fixed_crop = False

    def __init__(self, rate: int, max_samples: int) -> None:
        self.rate = rate
        self.max_samples = max_samples

    def crop(self, samples: int, rate: int, training: bool) -> tuple[int, int]:
        """Return the start and end of the part of a clip to read, in audio samples at ``rate``."""
        num_samples = math.ceil(self.max_samples * rate / self.rate)
        excess = samples - num_samples
        if excess <= 0:
            return 0, samples
        start = int(torch.randint(excess + 1, ())) if training and not self.fixed_crop else excess // 2
        return start, start + num_samples

    def crop_and_resample(self, clip: Waveform, training: bool) -> Float[Tensor, " n"]:
        """Return at most ``max_samples`` audio samples of a clip of any rate and length."""
        samples = clip.samples.float()
        start, end = self.crop(samples.numel(), clip.rate, training)
        samples = samples[start:end]  # crop before resampling, which is slow
        if clip.rate != self.rate and samples.numel():
            samples = _build_resampler(*_approximate_ratio(clip.rate, self.rate))(samples)[: self.max_samples]
        return samples


def _approximate_ratio(rate: int, target: int) -> tuple[int, int]:
    """Return two small integers whose ratio equals, or approximates, the ratio of the rates.

    The filter has as many entries as their product: for 44,101 to 16,000 Hz, which have no common divisor, it would
    take gigabytes. Common pairs of rates are exact; others are accurate to 0.05 %, a hundredth of a semitone.
    """
    exact = Fraction(rate, target)
    near = exact.limit_denominator(max(1, math.isqrt(MAX_FILTER_SIZE * target // rate)))
    return near.numerator, near.denominator


@lru_cache(maxsize=32)  # the filter depends on the two rates only
def _build_resampler(rate: int, target: int) -> nn.Module:
    resampler: nn.Module = Resample(rate, target)
    return resampler
