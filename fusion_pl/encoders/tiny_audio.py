"""A small audio encoder, trained from scratch on log-mel spectrograms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torchaudio.functional import melscale_fbanks

from fusion_pl.encoders.clips import ClipProcessor
from fusion_pl.encoders.convolution import MaskedConv, SmallEncoder
from fusion_pl.encoders.layer_mixing import Combine
from fusion_pl.layers import masked_mean
from fusion_pl.types import Encoded, UserError

WINDOW, HOP = 0.032, 0.010  # seconds
MIN_RMS = 1e-5  # a clip with a lower root mean square is silence; less than one quantisation step of 16-bit audio
MIN_POWER = 1e-5  # added to the power of each band before the logarithm; -50 dB relative to equally loud white noise


class WaveformProcessor(ClipProcessor):
    """Resample and pad clips; the encoder computes their spectrograms on its device.

    Args:
        rate: sampling rate of the result, in Hz.
        max_seconds: maximum length of a clip.
    """

    def __init__(self, rate: int, max_seconds: float) -> None:
        if max_seconds < WINDOW:
            raise UserError(f"TinyAudio(max_seconds={max_seconds}): expected at least one window of {WINDOW} seconds")
        if rate < 1000:
            raise UserError(f"TinyAudio(rate={rate}): expected at least 1000 Hz; speech needs 8000")
        super().__init__(rate, round(max_seconds * rate))

    def runner_settings(self) -> dict[str, Any]:
        """Return the settings of the runner."""
        return self.clip_settings(["samples", "lengths"])

    def __call__(self, values: Sequence[Any], training: bool = False) -> dict[str, Tensor]:
        """Return ``samples`` (P, N) and their ``lengths`` (P,)."""
        clips = [self.crop_and_resample(value, training) for value in values]
        lengths = torch.tensor([len(clip) for clip in clips])
        return {"samples": nn.utils.rnn.pad_sequence(clips, batch_first=True), "lengths": lengths}


class LogMel(nn.Module):
    """Compute log-mel spectrograms that do not depend on the loudness of the recording.

    The power of each band is divided by the power that the band has in white noise as loud as the clip, so that the
    logarithms are around 0. Without this division, all bands have a large common offset, and the loss can stay constant
    for many epochs.

    The last window of a clip is filled with silence. Padding a clip to the longest clip of the batch therefore adds
    frames, which are masked, and changes no other frame. The computation is in float32 for any precision of the model.

    Args:
        rate: sampling rate, in Hz.
        n_mels: number of mel bands.
        centered: whether to subtract each band's mean over the clip, which removes the frequency response of the
            microphone.
    """

    hann: Tensor
    bands: Tensor

    def __init__(self, rate: int, n_mels: int, centered: bool) -> None:
        super().__init__()
        if n_mels < 1:
            raise UserError(f"TinyAudio(n_mels={n_mels}): expected at least 1 band")
        self.centered = centered
        self.hop, self.window = round(HOP * rate), round(WINDOW * rate)
        bands = melscale_fbanks(self.window // 2 + 1, 0.0, rate / 2, n_mels, rate)
        hann = torch.hann_window(self.window)
        noise = bands.sum(0) * hann.square().sum()  # expected band power of white noise of unit power
        self.register_buffer("bands", bands / noise.clamp(min=torch.finfo(noise.dtype).tiny), persistent=False)
        self.register_buffer("hann", hann, persistent=False)

    def forward(
        self, samples: Float[Tensor, "P N"], lengths: Int[Tensor, " P"]
    ) -> tuple[Float[Tensor, "P T K"], Bool[Tensor, "P T"]]:
        """Return one frame per 10 ms (zeros after the end of a clip), and the mask of real frames."""
        lengths = lengths.clamp(min=1)
        num_frames = self._count_frames(max(samples.shape[1], 1))
        mask = torch.arange(num_frames, device=lengths.device) < self._count_frames(lengths).unsqueeze(1)
        padding = self.window + (num_frames - 1) * self.hop - samples.shape[1]
        with torch.autocast(samples.device.type, enabled=False):
            waveform = nn.functional.pad(samples.float(), (0, padding))
            loudness = (waveform.square().sum(1) / lengths).sqrt().clamp(min=MIN_RMS)
            power = self._power_spectrogram(waveform / loudness.unsqueeze(1)).transpose(1, 2)
            mels = (power @ self.bands.float()).add(MIN_POWER).log()
            if self.centered:
                mels = mels - masked_mean(mels, mask).unsqueeze(1)
            return mels * mask.unsqueeze(-1), mask

    def _count_frames(self, samples: Any) -> Any:
        """Return the number of windows that cover ``samples`` audio samples, an integer or a tensor."""
        rest = samples - self.window
        return 1 + (rest * (rest > 0) + self.hop - 1) // self.hop

    def _power_spectrogram(self, waveform: Float[Tensor, "P N"]) -> Float[Tensor, "P K T"]:
        hann = self.hann.float()
        spectrum = torch.stft(waveform, self.window, self.hop, window=hann, center=False, return_complex=True)
        real, imaginary = torch.view_as_real(spectrum).unbind(-1)
        return real.square().addcmul_(imaginary, imaginary)  # faster than spectrum.abs().square()


class TinyAudio(SmallEncoder):
    """Encode clips by convolutions over their log-mel spectrogram, with one token per 40 ms.

    Args:
        rate: sampling rate to which clips are resampled, in Hz; 8,000 is the rate of telephone audio.
        max_seconds: maximum length of a clip.
        n_mels: number of mel bands.
        num_layers: number of convolutions after the two with stride 2.
        centered: whether to subtract each band's mean over the clip. This removes constant effects of microphone, room
            and voice, so that words generalise to new speakers; it also removes steady tones.
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
        combine: Combine | None = None,
    ) -> None:
        super().__init__(dim, num_layers)
        self.processor = WaveformProcessor(rate, max_seconds)
        self.spectrogram = LogMel(rate, n_mels, centered)
        self.downsample = nn.ModuleList([MaskedConv(n_mels, dim, stride=2), MaskedConv(dim, dim, stride=2)])
        self.layers = nn.ModuleList(MaskedConv(dim, dim) for _ in range(num_layers))
        self._add_pooling([dim] * (1 + num_layers), combine, dropout)

    def forward(self, samples: Float[Tensor, "P N"], lengths: Int[Tensor, " P"]) -> Encoded:  # type: ignore[override]
        """Encode P clips as one token per four frames."""
        mels, mask = self.spectrogram(samples, lengths)
        tokens = mels.to(self.pool.projection.weight.dtype)
        for layer in self.downsample:
            tokens, mask = layer(tokens, mask)
        return self._encode_sequence(tokens, mask)
