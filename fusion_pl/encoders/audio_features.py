"""Feature extraction and masks of audio models; one class per family of models."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

Clips = Sequence[np.ndarray]


class Features(ABC):
    """Feature extraction of a family of models.

    Args:
        extractor: a feature extractor of transformers.
        shortest: minimum number of samples, those of one token; shorter clips are padded with silence.
        longest: maximum number of samples; None = any number.

    Attributes:
        rate: sampling rate, in Hz.
    """

    def __init__(self, extractor: Any, shortest: int, longest: int | None = None) -> None:
        self.extractor = extractor
        self.rate = int(extractor.sampling_rate)
        self.shortest = shortest
        self.longest = longest

    @abstractmethod
    def __call__(self, clips: Clips) -> dict[str, Tensor]:
        """Return ``values`` and ``mask`` of P clips."""

    def _extract(self, clips: Clips, **options: Any) -> Any:
        return self.extractor(list(clips), sampling_rate=self.rate, return_tensors="pt", **options)


def _mask(counts: Sequence[int], width: int | None = None) -> Bool[Tensor, "P T"]:
    return torch.arange(width or max(counts))[None] < torch.tensor(counts)[:, None]


class Samples(Features):
    """Wav2Vec2, HuBERT, WavLM: samples, padded to the longest clip, with a mask of samples."""

    def __call__(self, clips: Clips) -> dict[str, Tensor]:
        """Normalise each clip without its padding, and pad."""
        # Without a mask, the default of some models, the padding would take part in the normalisation.
        features = self._extract(clips, padding=True, return_attention_mask=True)
        return {"values": features["input_values"].float(), "mask": features["attention_mask"].bool()}


class Whisper(Features):
    """Whisper: the spectrogram of a window of fixed length (30 s), with a mask of tokens (two frames each)."""

    def __init__(self, extractor: Any) -> None:
        super().__init__(extractor, shortest=2 * int(extractor.hop_length), longest=int(extractor.n_samples))

    def __call__(self, clips: Clips) -> dict[str, Tensor]:
        """Pad to the window with silence."""
        counts = [math.ceil(len(clip) / self.shortest) for clip in clips]
        return {"values": self._extract(clips)["input_features"].float(), "mask": _mask(counts)}


class Patches(Features):
    """AST: the filter bank of a window of fixed length (10 s), with a mask of two class tokens and overlapping patches.

    Args:
        patch: frames per patch.
        stride: frames between the starts of patches.
        across: number of patches along frequency.
    """

    def __init__(self, extractor: Any, patch: int, stride: int, across: int) -> None:
        rate, frames = int(extractor.sampling_rate), int(extractor.max_length)
        window, self.hop = rate // 40, rate // 100  # Kaldi's filter bank: complete windows of 25 ms every 10 ms
        super().__init__(extractor, window, longest=(frames - 1) * self.hop + window)
        self.stride = stride
        self.across = across
        self.along = (frames - patch) // stride + 1  # number of patches along time

    def __call__(self, clips: Clips) -> dict[str, Tensor]:
        """Pad to the window; patches that start before the end of the clip are real."""
        frames = [1 + (len(clip) - self.shortest) // self.hop for clip in clips]
        patches = _mask([math.ceil(count / self.stride) for count in frames], self.along)
        mask = torch.cat([torch.ones(len(clips), 2, dtype=torch.bool), patches.repeat(1, self.across)], dim=1)
        return {"values": self._extract(clips)["input_values"].float(), "mask": mask}


class Repeated(Features):
    """CLAP: the spectrogram of a window of fixed length (10 s), filled with repetitions of the clip.

    Args:
        times: number of tokens along time.
        across: number of tokens along frequency.
    """

    def __init__(self, extractor: Any, times: int, across: int) -> None:
        self.window = int(extractor.nb_max_samples)
        super().__init__(extractor, shortest=int(extractor.hop_length), longest=self.window)
        self.times = times
        self.across = across

    def __call__(self, clips: Clips) -> dict[str, Tensor]:
        """Fill the window; tokens of all repetitions are real."""
        counts = [math.ceil(self._filled_samples(len(clip)) * self.times / self.window) for clip in clips]
        # Crops fit into the window, so the other three spectrograms of the "fusion" models are copies.
        values = self._extract(clips)["input_features"][:, :1].float()
        return {"values": values, "mask": _mask(counts, self.times).repeat(1, self.across)}

    def _filled_samples(self, samples: int) -> int:
        if self.extractor.padding == "repeat":
            return self.window
        return samples * (self.window // samples) if self.extractor.padding == "repeatpad" else samples


class MaskedFeatures(nn.Module):
    """The convolutional feature encoder of Wav2Vec2, HuBERT and WavLM, normalised over real frames only.

    The first convolution of the base models normalises each channel over time. In transformers its mean and variance
    depend on the padding, whatever the attention mask; here they are those of the clip without its padding.

    Args:
        layers: layers of the model's feature encoder, whose names in the state dict stay unchanged.
        over_time: whether the first layer normalises over time.
    """

    def __init__(self, layers: nn.ModuleList, over_time: bool) -> None:
        super().__init__()
        self.conv_layers = layers
        self.over_time = over_time

    def forward(self, packed: Float[Tensor, "2 B N"]) -> Float[Tensor, "B D T"]:
        """Encode samples.

        Args:
            packed: the samples, and 1 where they are real, else 0 (in one tensor, because the model takes one).
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

    y = (x - μ) / sqrt(σ² + ε) · weight + bias, as in Wav2Vec2 for a clip without padding.
    Source: arXiv:2006.11477.
    """
    values = hidden.float()
    real = (torch.arange(hidden.shape[-1], device=hidden.device) < frames[:, None]).unsqueeze(1)
    count = frames.clamp(min=1)[:, None, None]
    centred = values - (values * real).sum(-1, keepdim=True) / count
    variance = (centred * real).square().sum(-1, keepdim=True) / count
    scale = (variance + norm.eps).rsqrt() * norm.weight[:, None]
    return (centred * scale + norm.bias[:, None]).to(hidden.dtype)
