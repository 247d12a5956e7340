"""From clips to what an audio model takes, with the mask that is true; one class per family of models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

Clips = Sequence[np.ndarray]


@runtime_checkable
class Features(Protocol):
    """What a processor needs to know of a model.

    Attributes:
        rate: in Hz.
        shortest: samples below which a clip is lengthened with silence: what one token needs.
        longest: samples that the model can take; None = any number.
    """

    rate: int
    shortest: int

    @property
    def longest(self) -> int | None: ...  # noqa: D102

    def __call__(self, clips: Clips) -> dict[str, Tensor]:
        """Return ``values`` and ``mask`` of P clips."""
        ...


def _mask(counts: Sequence[int], width: int | None = None) -> Bool[Tensor, "P T"]:
    return torch.arange(width or max(counts))[None] < torch.tensor(counts)[:, None]


@dataclass
class Samples:
    """Wav2Vec2, HuBERT, WavLM: the samples themselves, padded to the longest clip; the mask counts samples."""

    extractor: Any
    shortest: int
    longest: int | None = None

    def __post_init__(self) -> None:
        self.rate = int(self.extractor.sampling_rate)

    def __call__(self, clips: Clips) -> dict[str, Tensor]:
        """Normalise each clip by its own samples and pad."""
        # The mask is asked for even where the folder says no: without it the padding takes part in the normalisation.
        made = self.extractor(
            list(clips), sampling_rate=self.rate, padding=True, return_attention_mask=True, return_tensors="pt"
        )
        return {"values": made["input_values"].float(), "mask": made["attention_mask"].bool()}


@dataclass
class Whisper:
    """Whisper: the spectrogram of a window of fixed length (30 s); the mask counts tokens, two frames each."""

    extractor: Any

    def __post_init__(self) -> None:
        self.rate = int(self.extractor.sampling_rate)
        self.shortest = 2 * int(self.extractor.hop_length)
        self.longest = int(self.extractor.n_samples)

    def __call__(self, clips: Clips) -> dict[str, Tensor]:
        """Fill the window with silence."""
        made = self.extractor(list(clips), sampling_rate=self.rate, return_tensors="pt")
        counts = [-(-len(clip) // self.shortest) for clip in clips]
        return {"values": made["input_features"].float(), "mask": _mask(counts)}


@dataclass
class Patches:
    """AST: the filter bank of a window of fixed length (10 s) in overlapping patches; two class tokens come first.

    Attributes:
        patch: frames a patch spans.
        stride: frames from patch to patch.
        across: patches along frequency.
    """

    extractor: Any
    patch: int
    stride: int
    across: int

    def __post_init__(self) -> None:
        self.rate = int(self.extractor.sampling_rate)
        self.hop = self.rate // 100  # Kaldi's filter bank: windows of 25 ms every 10 ms, none beyond the end
        self.shortest = self.rate // 40
        self.longest = (int(self.extractor.max_length) - 1) * self.hop + self.shortest

    def __call__(self, clips: Clips) -> dict[str, Tensor]:
        """Fill the window with blank frames; a patch is real that begins before the clip's end."""
        made = self.extractor(list(clips), sampling_rate=self.rate, return_tensors="pt")
        frames = [1 + (len(clip) - self.shortest) // self.hop for clip in clips]
        width = (int(self.extractor.max_length) - self.patch) // self.stride + 1
        patches = _mask([min(width, -(-count // self.stride)) for count in frames], width)
        mask = torch.cat([torch.ones(len(clips), 2, dtype=torch.bool), patches.repeat(1, self.across)], dim=1)
        return {"values": made["input_values"].float(), "mask": mask}


@dataclass
class Repeated:
    """CLAP: the spectrogram of a window of fixed length (10 s) in which the clip is said again as often as it fits.

    Attributes:
        times: tokens along time.
        across: tokens along frequency.
    """

    extractor: Any
    times: int
    across: int

    def __post_init__(self) -> None:
        self.rate = int(self.extractor.sampling_rate)
        self.shortest = int(self.extractor.hop_length)
        self.longest = int(self.extractor.nb_max_samples)

    def __call__(self, clips: Clips) -> dict[str, Tensor]:
        """Fill the window; tokens are real as far as repetitions reach, for each of them holds sound of the clip."""
        made = self.extractor(list(clips), sampling_rate=self.rate, return_tensors="pt")
        counts = [-(-self._filled(len(clip)) * self.times // self.longest) for clip in clips]
        # A crop never exceeds the window, so the three further spectrograms of the "fusion" models are copies.
        values = made["input_features"][:, :1].float()
        return {"values": values, "mask": _mask(counts, self.times).repeat(1, self.across)}

    def _filled(self, samples: int) -> int:
        if self.extractor.padding == "repeat":
            return self.longest
        return samples * (self.longest // samples) if self.extractor.padding == "repeatpad" else samples


class MaskedFeatures(nn.Module):
    """The convolutions under Wav2Vec2 and its kin, normalised over the real frames only.

    The base models' first convolution normalises each channel over time. With zeros padded on, mean and variance change
    with the padding, whatever the attention mask; here they are those of the clip alone, as if it had come by itself.

    Args:
        layers: of the model's own feature encoder; their names in the state dictionary stay.
        over_time: whether the first layer normalises over time.
    """

    def __init__(self, layers: nn.ModuleList, over_time: bool) -> None:
        super().__init__()
        self.conv_layers = layers
        self.over_time = over_time

    def forward(self, packed: Float[Tensor, "2 B N"]) -> Float[Tensor, "B D T"]:
        """Encode samples.

        Args:
            packed: the samples, and 1 where they are real (one tensor, because the model passes one on).
        """
        hidden, real = packed[0].unsqueeze(1), packed[1]
        layers: list[Any] = list(self.conv_layers)
        if self.over_time:
            first, *layers = layers
            hidden = first.conv(hidden)
            frames = (real.sum(-1).long() - first.conv.kernel_size[0]) // first.conv.stride[0] + 1
            hidden = first.activation(_normalise(hidden, frames, first.layer_norm))
        for layer in layers:
            hidden = layer(hidden)
        return hidden


def _normalise(hidden: Float[Tensor, "B D T"], frames: Tensor, norm: nn.GroupNorm) -> Float[Tensor, "B D T"]:
    """Normalise each channel over the first ``frames`` of time.

    y = (x - μ) / sqrt(σ² + ε) · weight + bias, as Wav2Vec2 does over a clip that is not padded.
    Source: arXiv:2006.11477.
    """
    wide = hidden.float()
    real = (torch.arange(hidden.shape[-1], device=hidden.device) < frames[:, None]).unsqueeze(1)
    count = frames.clamp(min=1)[:, None, None]
    centred = wide - (wide * real).sum(-1, keepdim=True) / count
    variance = (centred * real).square().sum(-1, keepdim=True) / count
    scale = (variance + norm.eps).rsqrt() * norm.weight[:, None]
    return (centred * scale + norm.bias[:, None]).to(hidden.dtype)
