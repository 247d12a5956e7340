"""A small audio encoder, trained from scratch on log-mel spectrograms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torchaudio.functional import melscale_fbanks

from fusion_pl.encoders.base import Encoder
from fusion_pl.encoders.clips import cut, span
from fusion_pl.encoders.convolution import MaskedConv, MeanMax, check_dim, summed_up
from fusion_pl.encoders.layer_mixing import Combine, build_layer_mixing
from fusion_pl.layers import masked_mean
from fusion_pl.types import Encoded, Kind, UserError

WINDOW, HOP = 0.032, 0.010  # seconds
QUIET = 1e-5  # root mean square under which a clip counts as silence: less than one step of 16 bits
FLOOR = 1e-5  # power, beside the 1 that white noise as loud as the clip has in every band: -50 dB


class Clips:
    """Turn sounds into samples of one rate, padded to the longest; the model makes their spectrograms on its device.

    Args:
        rate: sounds are resampled to this, in Hz.
        max_seconds: longer sounds are cut: somewhere in training, to their middle otherwise.
    """

    kind: Kind = "audio"

    def __init__(self, rate: int, max_seconds: float) -> None:
        if max_seconds < WINDOW:
            raise UserError(f"TinyAudio(max_seconds={max_seconds}): expected at least one window of {WINDOW} seconds")
        if rate < 1000:
            raise UserError(f"TinyAudio(rate={rate}): expected at least 1000 Hz; speech needs 8000")
        self.rate, self.longest = rate, round(max_seconds * rate)

    def crop(self, samples: int, rate: int, training: bool) -> tuple[int, int]:
        """Say which part of a sound is used, so that no more of its file is read."""
        return span(samples, rate, self.rate, self.longest, training)

    def __call__(self, values: Sequence[Any], training: bool = False) -> dict[str, Tensor]:
        """Return ``samples`` (P, N) and their ``lengths`` (P,)."""
        clips = [cut(value, self.rate, self.longest, training) for value in values]
        lengths = torch.tensor([len(clip) for clip in clips])
        return {"samples": nn.utils.rnn.pad_sequence(clips, batch_first=True), "lengths": lengths}


class LogMel(nn.Module):
    """Turn sounds into log-mel spectrograms that do not depend on how loud the recording is.

    Each band's power is relative to what white noise as loud as the clip would have there, so that the logarithms lie
    around 0: with an offset that all bands share, a network may take many epochs to hear anything.

    A clip counts as followed by silence up to the end of its last window, so that padding it to the batch's longest
    adds frames (which the mask hides) and changes none. It is computed in float32 whatever the model's precision.

    Args:
        rate: of the sounds, in Hz.
        n_mels: bands.
        centered: whether each band's mean over the clip is subtracted, which takes away the microphone's colour.
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
        noise = bands.sum(0) * hann.square().sum()  # expected power of white noise of unit power
        self.register_buffer("bands", bands / noise.clamp(min=torch.finfo(noise.dtype).tiny), persistent=False)
        self.register_buffer("hann", hann, persistent=False)

    def forward(
        self, samples: Float[Tensor, "P N"], lengths: Int[Tensor, " P"]
    ) -> tuple[Float[Tensor, "P T K"], Bool[Tensor, "P T"]]:
        """Return a frame for every 10 ms, zeros after a clip's end, and the mask."""
        most = self._frames(max(samples.shape[1], 1))
        mask = torch.arange(most, device=lengths.device) < self._frames(lengths.clamp(min=1)).unsqueeze(1)
        with torch.autocast(samples.device.type, enabled=False):
            sound = nn.functional.pad(samples.float(), (0, self.window + (most - 1) * self.hop - samples.shape[1]))
            loudness = (sound.square().sum(1) / lengths.clamp(min=1)).sqrt().clamp(min=QUIET)
            power = self._power(sound / loudness.unsqueeze(1)).transpose(1, 2)
            mels = (power @ self.bands.float()).add(FLOOR).log()
            if self.centered:
                mels = mels - masked_mean(mels, mask).unsqueeze(1)
            return mels * mask.unsqueeze(-1), mask

    def _frames(self, samples: Any) -> Any:
        """Count the windows that begin before ``samples``, a number or a tensor, are all seen."""
        beyond = samples - self.window
        return 1 + (beyond * (beyond > 0) + self.hop - 1) // self.hop

    def _power(self, sound: Float[Tensor, "P N"]) -> Float[Tensor, "P K T"]:
        hann = self.hann.float()
        spectrum = torch.stft(sound, self.window, self.hop, window=hann, center=False, return_complex=True)
        real, imaginary = torch.view_as_real(spectrum).unbind(-1)
        return real.square().addcmul_(imaginary, imaginary)  # abs() takes a root first, and sum(-1) over two is slow


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
        combine: how all hidden layers after the two that shorten the sequence together become the tokens (see
            ``fusion_pl.encoders.layer_mixing.LayerMixing``); None = the last one alone does.
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
        super().__init__()
        self.dim = check_dim("TinyAudio", dim, num_layers)
        self.processor = Clips(rate, max_seconds)
        self.spectrogram = LogMel(rate, n_mels, centered)
        first = [MaskedConv(n_mels, dim, stride=2), MaskedConv(dim, dim, stride=2)]
        rest = [MaskedConv(dim, dim) for _ in range(num_layers)]
        self.shorten, self.layers = nn.ModuleList(first), nn.ModuleList(rest)
        self.hidden_layers = range(1 + num_layers) if combine else ()
        self.layer_mixing = build_layer_mixing(
            "TinyAudio", self.hidden_layers, combine, [dim] * (1 + num_layers), maps=False
        )
        if self.layer_mixing is not None:
            self.dim = self.layer_mixing.dim
        self.pool = MeanMax(self.dim, dropout)

    def forward(  # type: ignore[override]
        self, samples: Float[Tensor, "P N"], lengths: Int[Tensor, " P"]
    ) -> Encoded:
        """Return a token for every fourth frame."""
        mels, mask = self.spectrogram(samples, lengths)
        tokens = mels.to(self.pool.project.weight.dtype)
        for layer in self.shorten:
            tokens, mask = layer(tokens, mask)
        states = [tokens]
        for layer in self.layers:
            tokens, mask = layer(tokens, mask)
            states.append(tokens)
        return summed_up(states, mask, self.pool, self.layer_mixing)
