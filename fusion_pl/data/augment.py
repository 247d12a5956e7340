"""Random augmentation in training.

The transforms take values of ``Sample.inputs`` and use torch's global generator. For images use the transforms of
``torchvision.transforms.v2``, which take PIL images, for audio also those of ``torchaudio.transforms``, in
``TransformSamples``.
"""

from __future__ import annotations

import math
import re
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fusion_pl.types import UserError, Waveform


def _random_uniform(low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand(()))


def _fft_length(length: int) -> int:
    return 1 << max(1, length - 1).bit_length()  # a prime length takes five times as long as a power of two


def _random_interval(length: int, max_fraction: float) -> slice:
    width = round(_random_uniform(0.0, max_fraction) * length)
    start = int(torch.randint(length - width + 1, ())) if width else 0
    return slice(start, start + width)


def _check_range(transform: nn.Module, name: str, value: float, high: float = math.inf) -> float:
    if not 0 <= value <= high:
        limit = "0 or more" if math.isinf(high) else f"between 0 and {high:g}"
        raise UserError(f"{type(transform).__name__}({name}={value}): expected a number that is {limit}")
    return value


class Speed(nn.Module):
    """Change the speed of a waveform, which also changes its pitch.

    The factor is log-uniform in [1 / (1 + spread), 1 + spread]. Resampling is linear interpolation, which takes a tenth
    of the time of a band-limited resampler.
    Source: Ko et al. 2015, "Audio augmentation for speech recognition" (Interspeech); factors there are 0.9, 1 and 1.1.

    Args:
        spread: largest relative change of the speed; 0.15 = up to 15 % faster.
    """

    def __init__(self, spread: float = 0.15) -> None:
        super().__init__()
        self.limit = math.log1p(_check_range(self, "spread", spread))

    def forward(self, waveform: Waveform) -> Waveform:
        """Return the waveform, resampled to N / factor audio samples."""
        length = waveform.samples.numel()
        new_length = max(1, round(length / math.exp(_random_uniform(-self.limit, self.limit))))
        if new_length == length or length < 2:
            return waveform
        resampled = nn.functional.interpolate(waveform.samples[None, None], size=new_length, mode="linear")
        return Waveform(resampled[0, 0], waveform.rate)


class Gain(nn.Module):
    """Change the volume of a waveform by a random factor.

    Args:
        decibels: largest change of the volume, in dB.
    """

    def __init__(self, decibels: float = 6.0) -> None:
        super().__init__()
        self.decibels = _check_range(self, "decibels", decibels)

    def forward(self, waveform: Waveform) -> Waveform:
        """Return the waveform times a random factor."""
        factor = 10 ** (_random_uniform(-self.decibels, self.decibels) / 20)
        return Waveform(waveform.samples * factor, waveform.rate)


class Noise(nn.Module):
    """Add coloured noise, whose power spectrum is proportional to 1 / frequency ** color.

    Args:
        snr_low: lower bound of the signal-to-noise ratio, which is uniform, in dB.
        snr_high: upper bound of the signal-to-noise ratio, in dB.
        color: exponent of the noise spectrum: 0 = white, 1 = pink, 2 = brown.
        probability: probability of adding noise.
    """

    def __init__(
        self, snr_low: float = 5.0, snr_high: float = 20.0, color: float = 1.0, probability: float = 0.5
    ) -> None:
        super().__init__()
        if snr_low > snr_high:
            raise UserError(
                f"Noise(snr_low={snr_low}, snr_high={snr_high}): snr_low is above snr_high: swap the two numbers"
            )
        self.snr_low, self.snr_high, self.color = snr_low, snr_high, color
        self.probability = _check_range(self, "probability", probability, 1.0)

    def forward(self, waveform: Waveform) -> Waveform:
        """Return the waveform with noise scaled to its power; silence stays silent."""
        if torch.rand(()) >= self.probability or waveform.samples.numel() < 2:
            return waveform
        noise = self._generate_noise(waveform.samples.numel())
        ratio = 10 ** (_random_uniform(self.snr_low, self.snr_high) / 10)
        scale = waveform.samples.square().mean().div(ratio * noise.square().mean()).sqrt()
        return Waveform(waveform.samples + scale * noise, waveform.rate)

    def _generate_noise(self, length: int) -> Float[Tensor, " N"]:
        if not self.color:
            return torch.randn(length)
        fft_length = _fft_length(length)
        spectrum = torch.randn(fft_length // 2 + 1, dtype=torch.complex64)
        frequency = torch.arange(spectrum.numel()).clamp(min=1)  # with frequency 0, the power would be infinite
        noise: Tensor = torch.fft.irfft(spectrum * frequency ** (-self.color / 2), n=fft_length)
        return noise[:length]


class Shift(nn.Module):
    """Shift a waveform in time by a random offset, and pad it with silence to the same length.

    Args:
        seconds: largest shift in either direction, in seconds.
    """

    def __init__(self, seconds: float = 0.05) -> None:
        super().__init__()
        self.seconds = _check_range(self, "seconds", seconds)

    def forward(self, waveform: Waveform) -> Waveform:
        """Return the shifted waveform."""
        length = waveform.samples.numel()
        offset = round(_random_uniform(-self.seconds, self.seconds) * waveform.rate)
        offset = max(-length, min(length, offset))
        shifted = torch.zeros_like(waveform.samples)
        shifted[max(offset, 0) : length + min(offset, 0)] = waveform.samples[max(-offset, 0) : length - max(offset, 0)]
        return Waveform(shifted, waveform.rate)


class MaskBand(nn.Module):
    """Remove a random band of frequencies.

    Source: the frequency masks of SpecAugment (arXiv:1904.08779), applied to the waveform for use with any encoder.

    Args:
        width: largest width of the band, as a fraction of the spectrum.
    """

    def __init__(self, width: float = 0.15) -> None:
        super().__init__()
        self.width = _check_range(self, "width", width, 1.0)

    def forward(self, waveform: Waveform) -> Waveform:
        """Return the waveform without the frequencies of one band."""
        length = waveform.samples.numel()
        fft_length = _fft_length(length)
        band = _random_interval(fft_length // 2 + 1, self.width)
        if band.start == band.stop or not length:
            return waveform
        spectrum = torch.fft.rfft(waveform.samples, n=fft_length)
        spectrum[band] = 0
        return Waveform(torch.fft.irfft(spectrum, n=fft_length)[:length], waveform.rate)


class MaskTime(nn.Module):
    """Silence a random interval of a waveform.

    Source: the time masks of SpecAugment (arXiv:1904.08779), applied to the waveform.

    Args:
        width: largest length of the interval, as a fraction of the waveform.
    """

    def __init__(self, width: float = 0.15) -> None:
        super().__init__()
        self.width = _check_range(self, "width", width, 1.0)

    def forward(self, waveform: Waveform) -> Waveform:
        """Return the waveform with an interval of zeros."""
        samples = waveform.samples.clone()
        samples[_random_interval(samples.numel(), self.width)] = 0
        return Waveform(samples, waveform.rate)


class TransformSamples(nn.Module):
    """Apply a transform of tensors to the audio samples of a waveform, such as those of ``torchaudio.transforms``.

    Args:
        transform: module that takes a tensor (..., N), and returns one or a tuple that starts with one.

    Example:
        >>> from torchvision.transforms.v2 import RandomApply
        >>> quieter = RandomApply([TransformSamples(nn.Threshold(0.5, 0.0))], p=1.0)
        >>> quieter(Waveform(torch.tensor([0.2, 0.9]), 8000)).samples
        tensor([0.0000, 0.9000])
    """

    def __init__(self, transform: nn.Module) -> None:
        super().__init__()
        self.transform = transform

    def forward(self, waveform: Waveform) -> Waveform:
        """Return the transformed waveform; its rate is unchanged."""
        samples = self.transform(waveform.samples)
        return Waveform(samples[0] if isinstance(samples, tuple) else samples, waveform.rate)


class FlipSides(nn.Module):
    """Mirror images and swap the words "left" and "right" in texts, in all inputs of a sample or in none.

    Audio is mono and stays as it is. Key of ``data.augment``: the names of the inputs, such as ``photo+question``.

    Args:
        probability: probability of the flip.
    """

    def __init__(self, probability: float = 0.5) -> None:
        super().__init__()
        self.probability = _check_range(self, "probability", probability, 1.0)

    def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Flip all inputs of a sample: name of the input -> text, image or ``Waveform``."""
        if torch.rand(()) >= self.probability:
            return inputs
        return {name: self._flip(value) for name, value in inputs.items()}

    @staticmethod
    def _flip(value: Any) -> Any:
        match value:
            case str():
                return re.sub(r"\b(left|right)\b", _other_side, value, flags=re.IGNORECASE)
            case Waveform():
                return value
        from torchvision.transforms.v2.functional import horizontal_flip

        return horizontal_flip(value)


def _other_side(found: re.Match[str]) -> str:
    """Return the opposite of "left" or "right", in the same case."""
    word = found.group()
    other = "right" if word.lower() == "left" else "left"
    return other.upper() if word.isupper() else other.capitalize() if word.istitle() else other


class Typos(nn.Module):
    """Add typos: each character may be replaced, dropped, doubled or swapped with the next one.

    Args:
        rate: probability of a typo per character.
        alphabet: characters that may replace another character.
    """

    def __init__(self, rate: float = 0.05, alphabet: str = "abcdefghijklmnopqrstuvwxyz") -> None:
        super().__init__()
        self.rate = _check_range(self, "rate", rate, 1.0)
        if not alphabet:
            raise UserError("Typos(alphabet=''): expected at least one character to replace others with")
        self.alphabet = alphabet

    def forward(self, text: str) -> str:
        """Return the text with typos; its length may change."""
        characters = list(text)
        for index in (torch.rand(len(characters)) < self.rate).nonzero().flatten().tolist():
            match int(torch.randint(4, ())):
                case 0:
                    characters[index] = self.alphabet[int(torch.randint(len(self.alphabet), ()))]
                case 1:
                    characters[index] = ""
                case 2:
                    characters[index] *= 2
                case 3 if index + 1 < len(characters):
                    characters[index : index + 2] = characters[index + 1], characters[index]
        return "".join(characters)
