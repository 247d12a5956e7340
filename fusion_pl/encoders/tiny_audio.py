"""A small audio encoder, trained from scratch on log-mel spectrograms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torchaudio.functional import resample
from torchaudio.transforms import MelScale

from fusion_pl.encoders.base import Encoder
from fusion_pl.encoders.convolution import MaskedConv, MeanMax, check_dim
from fusion_pl.layers import masked_mean
from fusion_pl.types import Encoded, Kind, UserError, Waveform

WINDOW, HOP = 0.032, 0.010  # seconds
QUIET = 1e-5  # root mean square under which a clip counts as silence: less than one step of 16 bits
FLOOR = 1e-3  # power, beside a clip's mean power of about 1 a sample: keeps the logarithm of empty bands finite


class LogMel:
    """Turn sounds into log-mel spectrograms that do not depend on how loud the recording is.

    A clip counts as followed by silence up to the end of its last window, so that padding it to the batch's longest
    adds frames (which the mask hides) and changes none.

    Args:
        rate: sounds are resampled to this, in Hz.
        max_seconds: longer sounds are cut: somewhere in training, to their middle otherwise.
        n_mels: bands.
        centered: whether each band's mean over the clip is subtracted, which takes away the microphone's colour.
    """

    kind: Kind = "audio"

    def __init__(self, rate: int, max_seconds: float, n_mels: int, centered: bool) -> None:
        if max_seconds < WINDOW:
            raise UserError(f"TinyAudio(max_seconds={max_seconds}): expected at least one window of {WINDOW} seconds")
        if rate < 1000:
            raise UserError(f"TinyAudio(rate={rate}): expected at least 1000 Hz; speech needs 8000")
        if n_mels < 1:
            raise UserError(f"TinyAudio(n_mels={n_mels}): expected at least 1 band")
        self.rate, self.centered = rate, centered
        self.max_samples = round(max_seconds * rate)
        self.hop = round(HOP * rate)
        self.window = round(WINDOW * rate)
        self.bands = MelScale(n_mels, rate, n_stft=self.window // 2 + 1)

    def __call__(self, values: Sequence[Any], training: bool = False) -> dict[str, Tensor]:
        """Return ``mels`` (P, T, n_mels) and ``mask`` (P, T)."""
        clips = [self._clip(value, training) for value in values]
        lengths = torch.tensor([clip.numel() for clip in clips])
        frames = 1 + ((lengths - self.window).clamp(min=0) + self.hop - 1) // self.hop
        most = int(frames.max())
        sound = nn.utils.rnn.pad_sequence(clips, batch_first=True)
        sound = nn.functional.pad(sound, (0, self.window + (most - 1) * self.hop - sound.shape[1]))
        loudness = (sound.square().sum(1, keepdim=True) / lengths.clamp(min=1).unsqueeze(1)).sqrt()
        mels = self.bands(self._power(sound / loudness.clamp(min=QUIET))).add(FLOOR).log().transpose(1, 2)
        mask = torch.arange(most) < frames.unsqueeze(1)
        if self.centered:
            mels = mels - masked_mean(mels, mask).unsqueeze(1)
        return {"mels": mels * mask.unsqueeze(-1), "mask": mask}

    def _power(self, sound: Float[Tensor, "P N"]) -> Float[Tensor, "P K T"]:
        hann = torch.hann_window(self.window)
        spectrum = torch.stft(sound, self.window, self.hop, window=hann, center=False, return_complex=True)
        real, imaginary = torch.view_as_real(spectrum).unbind(-1)
        return real.square().addcmul_(imaginary, imaginary)  # abs() takes a root first, and sum(-1) over two is slow

    def _clip(self, sound: Waveform, training: bool) -> Float[Tensor, " N"]:
        samples = sound.samples.float()
        if sound.rate != self.rate and samples.numel():
            samples = resample(samples, sound.rate, self.rate)
        spare = samples.numel() - self.max_samples
        if spare <= 0:
            return samples
        start = int(torch.randint(spare + 1, ())) if training else spare // 2
        return samples[start : start + self.max_samples]


class TinyAudio(Encoder):
    """Encode sounds by convolutions over their log-mel spectrogram; a token stands for 40 ms.

    Args:
        dim: channels D.
        rate: sounds are resampled to this, in Hz; 8,000 keeps what a telephone does.
        max_seconds: longest sound.
        n_mels: bands of the spectrogram.
        num_layers: convolutions after the two that shorten the sequence.
        dropout: probability that a channel of the vector is dropped.
        centered: whether each band's mean over the clip is subtracted. It takes away what microphone, room and a
            speaker's timbre add throughout, so words generalise to new speakers; it also takes away a steady tone.
            Source: cepstral mean normalisation, Atal 1974 (J. Acoust. Soc. Am. 55), here on the log-mel bands.
    """

    def __init__(
        self,
        dim: int = 64,
        rate: int = 8000,
        max_seconds: float = 4.0,
        n_mels: int = 40,
        num_layers: int = 2,
        dropout: float = 0.1,
        centered: bool = False,
    ) -> None:
        super().__init__()
        self.dim = check_dim("TinyAudio", dim)
        self.processor = LogMel(rate, max_seconds, n_mels, centered)
        first = [MaskedConv(n_mels, dim, stride=2), MaskedConv(dim, dim, stride=2)]
        rest = [MaskedConv(dim, dim) for _ in range(num_layers)]
        self.layers = nn.ModuleList([*first, *rest])
        self.pool = MeanMax(dim, dropout)

    def forward(self, mels: Float[Tensor, "P T K"], mask: Bool[Tensor, "P T"]) -> Encoded:  # type: ignore[override]
        """Return a token for every fourth frame."""
        tokens = mels
        for layer in self.layers:
            tokens, mask = layer(tokens, mask)
        return Encoded(tokens, mask, self.pool(tokens, mask))
