"""Random changes of raw values, made in training only: a model meets more speakers and typists than the data holds.

They work on what ``Sample.inputs`` holds and draw from torch's generator, which every loader worker seeds by itself.
For pictures use ``torchvision.transforms.v2``, which takes PIL images as they are.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fusion_pl.types import UserError, Waveform


def _uniform(low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand(()))


def _fast_length(length: int) -> int:
    return 1 << max(1, length - 1).bit_length()  # a prime length takes five times as long as the next power of two


def _check(part: nn.Module, name: str, value: float, high: float = math.inf) -> float:
    if not 0 <= value <= high:
        limit = "0 or more" if math.isinf(high) else f"between 0 and {high:g}"
        raise UserError(f"{type(part).__name__}({name}={value}): expected a number that is {limit}")
    return value


class Speed(nn.Module):
    """Play the sound faster or slower, which moves its pitch with it: the same words from a smaller or larger speaker.

    The factor is log-uniform in [1 / (1 + spread), 1 + spread]. Interpolation is linear: a tenth of the time of a
    band-limited resampler, and training does not hear the difference.
    Source: Ko et al. 2015, "Audio augmentation for speech recognition" (Interspeech); factors there are 0.9, 1 and 1.1.

    Args:
        spread: 0.15 means up to 15 % faster.
    """

    def __init__(self, spread: float = 0.15) -> None:
        super().__init__()
        self.limit = math.log1p(_check(self, "spread", spread))

    def forward(self, waveform: Waveform) -> Waveform:
        """Return the sound with N / factor samples."""
        before = waveform.samples.numel()
        after = max(1, round(before / math.exp(_uniform(-self.limit, self.limit))))
        if after == before or before < 2:
            return waveform
        moved = nn.functional.interpolate(waveform.samples[None, None], size=after, mode="linear")
        return Waveform(moved[0, 0], waveform.rate)


class Gain(nn.Module):
    """Make the sound louder or softer.

    Args:
        decibels: largest change, either way.
    """

    def __init__(self, decibels: float = 6.0) -> None:
        super().__init__()
        self.decibels = _check(self, "decibels", decibels)

    def forward(self, waveform: Waveform) -> Waveform:
        """Return the sound times one random factor."""
        factor = 10 ** (_uniform(-self.decibels, self.decibels) / 20)
        return Waveform(waveform.samples * factor, waveform.rate)


class Noise(nn.Module):
    """Add coloured noise: its power falls as 1 / frequency ** color.

    Args:
        snr_low: smallest ratio of signal to noise power, in dB.
        snr_high: largest one; uniform between the two.
        color: 0 is white, 1 pink, 2 brown.
        probability: of noise at all.
    """

    def __init__(
        self, snr_low: float = 5.0, snr_high: float = 20.0, color: float = 1.0, probability: float = 0.5
    ) -> None:
        super().__init__()
        if snr_low > snr_high:
            raise UserError(
                f"Noise(snr_low={snr_low}, snr_high={snr_high}): the low end is above the high one; swap them"
            )
        self.snr_low, self.snr_high, self.color = snr_low, snr_high, color
        self.probability = _check(self, "probability", probability, 1.0)

    def forward(self, waveform: Waveform) -> Waveform:
        """Return the sound with noise relative to its own power; silence stays silent."""
        if torch.rand(()) >= self.probability or waveform.samples.numel() < 2:
            return waveform
        noise = self._noise(waveform.samples.numel())
        ratio = 10 ** (_uniform(self.snr_low, self.snr_high) / 10)
        scale = waveform.samples.square().mean().div(ratio * noise.square().mean()).sqrt()
        return Waveform(waveform.samples + scale * noise, waveform.rate)

    def _noise(self, length: int) -> Float[Tensor, " N"]:
        if not self.color:
            return torch.randn(length)
        longer = _fast_length(length)
        spectrum = torch.randn(longer // 2 + 1, dtype=torch.complex64)
        frequency = torch.arange(spectrum.numel()).clamp(min=1)  # the constant part has no finite power
        noise: Tensor = torch.fft.irfft(spectrum * frequency ** (-self.color / 2), n=longer)
        return noise[:length]


class Shift(nn.Module):
    """Move the sound in time; what leaves is lost, what enters is silence, and the length stays.

    Args:
        seconds: largest shift, either way.
    """

    def __init__(self, seconds: float = 0.05) -> None:
        super().__init__()
        self.seconds = _check(self, "seconds", seconds)

    def forward(self, waveform: Waveform) -> Waveform:
        """Return the sound with as many samples as before."""
        length = waveform.samples.numel()
        by = round(_uniform(-self.seconds, self.seconds) * waveform.rate)
        by = max(-length, min(length, by))
        moved = torch.zeros_like(waveform.samples)
        moved[max(by, 0) : length + min(by, 0)] = waveform.samples[max(-by, 0) : length - max(by, 0)]
        return Waveform(moved, waveform.rate)


class MaskBand(nn.Module):
    """Silence one random band of frequencies, so that no single band decides.

    Source: the frequency masks of SpecAugment (arXiv:1904.08779), on the sound itself, so that any encoder can use it.

    Args:
        width: largest width as a fraction of the spectrum.
    """

    def __init__(self, width: float = 0.15) -> None:
        super().__init__()
        self.width = _check(self, "width", width, 1.0)

    def forward(self, waveform: Waveform) -> Waveform:
        """Return the sound without that band."""
        length = waveform.samples.numel()
        longer = _fast_length(length)
        bins = longer // 2 + 1
        wide = round(_uniform(0.0, self.width) * bins)
        if not wide or not length:
            return waveform
        start = int(torch.randint(bins - wide + 1, ()))
        spectrum = torch.fft.rfft(waveform.samples, n=longer)
        spectrum[start : start + wide] = 0
        return Waveform(torch.fft.irfft(spectrum, n=longer)[:length], waveform.rate)


class MaskTime(nn.Module):
    """Silence one random stretch of the sound, so that no single moment decides.

    Source: the time masks of SpecAugment (arXiv:1904.08779), here on the sound itself.

    Args:
        width: largest length as a fraction of the sound.
    """

    def __init__(self, width: float = 0.15) -> None:
        super().__init__()
        self.width = _check(self, "width", width, 1.0)

    def forward(self, waveform: Waveform) -> Waveform:
        """Return the sound with that stretch set to zero."""
        length = waveform.samples.numel()
        wide = round(_uniform(0.0, self.width) * length)
        if not wide:
            return waveform
        start = int(torch.randint(length - wide + 1, ()))
        samples = waveform.samples.clone()
        samples[start : start + wide] = 0
        return Waveform(samples, waveform.rate)


class Typos(nn.Module):
    """Damage a text as hasty typing does: each character may be replaced, dropped, doubled or swapped with the next.

    Args:
        rate: expected fraction of damaged characters.
        alphabet: what replaces a character.
    """

    def __init__(self, rate: float = 0.05, alphabet: str = "abcdefghijklmnopqrstuvwxyz") -> None:
        super().__init__()
        self.rate = _check(self, "rate", rate, 1.0)
        if not alphabet:
            raise UserError("Typos(alphabet=''): expected at least one character to replace others with")
        self.alphabet = alphabet

    def forward(self, text: str) -> str:
        """Return the damaged text; its length may change by a little."""
        characters = list(text)
        for place in (torch.rand(len(characters)) < self.rate).nonzero().flatten().tolist():
            match int(torch.randint(4, ())):
                case 0:
                    characters[place] = self.alphabet[int(torch.randint(len(self.alphabet), ()))]
                case 1:
                    characters[place] = ""
                case 2:
                    characters[place] *= 2
                case 3 if place + 1 < len(characters):
                    characters[place : place + 2] = characters[place + 1], characters[place]
        return "".join(characters)
