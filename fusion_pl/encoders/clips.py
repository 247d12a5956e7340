"""Cut a sound to the length and the rate that a model takes."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchaudio.transforms import Resample

from fusion_pl.types import Waveform


def cut(sound: Waveform, rate: int, longest: int, training: bool) -> Float[Tensor, " n"]:
    """Return at most ``longest`` samples of a sound at a given rate.

    Args:
        sound: of any rate and length.
        rate: of the result, in Hz.
        longest: samples of the result; a longer sound loses its rest.
        training: whether the part that is kept is drawn at random; otherwise it is the middle.
    """
    samples = sound.samples.float()
    spare = samples.numel() - math.ceil(longest * sound.rate / rate)
    if spare > 0:  # before resampling: fewer samples to resample
        start = int(torch.randint(spare + 1, ())) if training else spare // 2
        samples = samples[start : start + samples.numel() - spare]
    if sound.rate != rate and samples.numel():
        samples = _resampler(sound.rate, rate)(samples)[:longest]
    return samples


@lru_cache(maxsize=32)  # its filter is worth keeping, and depends on nothing but the two rates
def _resampler(rate: int, target: int) -> nn.Module:
    made: nn.Module = Resample(rate, target)
    return made
