"""Crop and resample audio clips."""

from __future__ import annotations

import math
from fractions import Fraction
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchaudio.transforms import Resample

from fusion_pl.processors import AudioProcessor, Length
from fusion_pl.types import Waveform

MAX_FILTER_SIZE = 1_000_000  # number of entries in the resampling filter


class ClipProcessor(AudioProcessor):
    """Base of the audio processors, which crop and resample audio clips.

    Args:
        rate: sampling rate of the result, in Hz.
        max_samples: maximum number of audio samples; longer clips are cropped at a random position in training, and to
            their centre otherwise.
    """

    def __init__(self, rate: int, max_samples: int) -> None:
        self.rate = rate
        self.max_samples = max_samples

    def crop(self, samples: int, rate: int, training: bool) -> tuple[int, int]:
        """Return the start and end of the part of a clip to read, in audio samples at ``rate``."""
        num_samples = math.ceil(self.max_samples * rate / self.rate)
        excess = samples - num_samples
        if excess <= 0:
            return 0, samples
        start = int(torch.randint(excess + 1, ())) if training else excess // 2
        return start, start + num_samples

    def length(self, value: Waveform) -> Length:
        """Return the duration of a clip."""
        return Length(len(value.samples) / value.rate, self.max_samples / self.rate, "seconds")

    def examples(self) -> list[Waveform]:
        """Return silence of half the maximum length, and of that length, up to a second."""
        length = min(self.max_samples, self.rate)
        return [Waveform(torch.zeros(size), self.rate) for size in (length // 2, length)]

    def clip_settings(self, tensors: list[str], **settings: Any) -> dict[str, Any]:
        """Return the settings of the runner, for a subclass whose clips become the tensors of these names."""
        common = {"rate": self.rate, "max_samples": self.max_samples, "max_filter": MAX_FILTER_SIZE}
        return {"kind": "Clip", "tensors": tensors} | common | settings

    def crop_and_resample(self, clip: Waveform, training: bool) -> Float[Tensor, " n"]:
        """Return at most ``max_samples`` audio samples of a clip of any rate and length."""
        samples = clip.samples.float()
        start, end = self.crop(samples.numel(), clip.rate, training)
        samples = samples[start:end]  # crop before resampling, which is slow
        if clip.rate != self.rate and samples.numel():
            samples = _build_resampler(*_approximate_ratio(clip.rate, self.rate))(samples)[: self.max_samples]
        return samples


def _approximate_ratio(rate: int, target: int) -> tuple[int, int]:
    """Return two small integers whose ratio equals, or approximates, the ratio of two sampling rates.

    The number of entries of the resampling filter is the product of both integers. For 44,101 and 16,000 Hz, which have
    no common divisor, an exact ratio would need gigabytes. The ratio of common rates is exact; other ratios are
    accurate to 0.05 %, a hundredth of a semitone.
    """
    exact = Fraction(rate, target)
    near = exact.limit_denominator(max(1, math.isqrt(MAX_FILTER_SIZE * target // rate)))
    return near.numerator, near.denominator


@lru_cache(maxsize=32)  # computing the filter is slow, and it depends only on the two rates
def _build_resampler(rate: int, target: int) -> nn.Module:
    resampler: nn.Module = Resample(rate, target)
    return resampler
