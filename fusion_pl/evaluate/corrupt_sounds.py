"""Corruptions of sounds: white noise, clipping, a band limit, and a codec."""

from __future__ import annotations

import torch
from torchaudio.functional import mu_law_decoding, mu_law_encoding

from fusion_pl.data.augment import Noise
from fusion_pl.evaluate.corruption import Corruption
from fusion_pl.types import Waveform


def add_noise(waveform: Waveform, snr: float) -> Waveform:
    """Add white noise; silence stays silent.

    Args:
        waveform: clip.
        snr: ratio of the power of the clip to that of the noise, in dB.
    """
    return Noise(snr_low=snr, snr_high=snr, color=0.0, probability=1.0).forward(waveform)


def clip(waveform: Waveform, decibels: float) -> Waveform:
    """Limit the audio samples, as an overdriven microphone does.

    Args:
        waveform: clip.
        decibels: limit below the peak of the clip, in dB.
    """
    limit = float(waveform.samples.abs().max()) * 10 ** (-decibels / 20)
    return Waveform(waveform.samples.clamp(-limit, limit), waveform.rate)


def limit_band(waveform: Waveform, cutoff: float) -> Waveform:
    """Remove all frequencies above a cutoff; a clip of a lower rate than twice the cutoff has none.

    Args:
        waveform: clip.
        cutoff: highest frequency that remains, in Hz.
    """
    length = waveform.samples.numel()
    padded = 1 << (length - 1).bit_length()  # a prime length takes five times as long as a power of two
    spectrum = torch.fft.rfft(waveform.samples, n=padded)
    spectrum[torch.fft.rfftfreq(padded, 1 / waveform.rate) > cutoff] = 0
    return Waveform(torch.fft.irfft(spectrum, n=padded)[:length], waveform.rate)


def encode_mu_law(waveform: Waveform, bits: float) -> Waveform:
    r"""Quantise the audio samples by the μ-law :math:`\text{sign}(x) \ln(1 + μ|x|) / \ln(1 + μ)`, as telephones do.

    Source: ITU-T G.711, which has μ = 255 and 8 bits. Deviation: fewer bits b, with μ = 2^b - 1.

    Args:
        waveform: clip; audio samples outside [-1, 1] are clipped.
        bits: bits per audio sample.
    """
    levels = 2 ** round(bits)
    samples = mu_law_decoding(mu_law_encoding(waveform.samples.clamp(-1, 1), levels), levels)
    return Waveform(samples, waveform.rate)


SOUND_CORRUPTIONS = (
    Corruption("noise", "signal-to-noise ratio in dB", (20.0, 15.0, 10.0, 5.0, 0.0), add_noise),
    Corruption("clipping", "limit below the peak in dB", (6.0, 12.0, 18.0, 24.0, 30.0), clip),
    Corruption("band limit", "cutoff in Hz", (4000.0, 3000.0, 2000.0, 1000.0, 500.0), limit_band),
    Corruption("codec", "μ-law, bits per audio sample", (8.0, 6.0, 5.0, 4.0, 3.0), encode_mu_law),
)
