"""Feature extraction and masks for audio models; one class per model family."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

Clips = Sequence[np.ndarray]


class FeatureExtraction(ABC):
    """Base of the feature extraction for a family of audio models.

    Args:
        extractor: a feature extractor from transformers.
        min_samples: number of audio samples that one token needs; shorter clips are padded with silence.
        max_samples: maximum number of audio samples; None = no limit.

    Attributes:
        rate: sampling rate, in Hz.
    """

    def __init__(self, extractor: Any, min_samples: int, max_samples: int | None = None) -> None:
        self.extractor = extractor
        self.rate = int(extractor.sampling_rate)
        self.min_samples = min_samples
        self.max_samples = max_samples

    @abstractmethod
    def __call__(self, clips: Clips) -> dict[str, Tensor]:
        """Return the ``values`` and ``mask`` tensors of P clips."""

    def _extract(self, clips: Clips, **options: Any) -> Any:
        return self.extractor(list(clips), sampling_rate=self.rate, return_tensors="pt", **options)


def _length_mask(counts: Sequence[int], width: int | None = None) -> Bool[Tensor, "P T"]:
    return torch.arange(width or max(counts))[None] < torch.tensor(counts)[:, None]


class WaveformFeatures(FeatureExtraction):
    """Wav2Vec2, HuBERT, WavLM: waveforms, padded to the longest clip, with a mask of audio samples."""

    def __call__(self, clips: Clips) -> dict[str, Tensor]:
        """Normalise each clip, then pad the batch."""
        # Without return_attention_mask, some extractors return no mask and include the padding in the normalisation.
        features = self._extract(clips, padding=True, return_attention_mask=True)
        return {"values": features["input_values"].float(), "mask": features["attention_mask"].bool()}


class WhisperFeatures(FeatureExtraction):
    """Whisper: the spectrogram of a window of fixed length (30 s), with a mask of tokens (two frames each)."""

    def __init__(self, extractor: Any) -> None:
        super().__init__(extractor, min_samples=2 * int(extractor.hop_length), max_samples=int(extractor.n_samples))

    def __call__(self, clips: Clips) -> dict[str, Tensor]:
        """Pad clips to the window with silence, and compute spectrograms."""
        counts = [math.ceil(len(clip) / self.min_samples) for clip in clips]
        return {"values": self._extract(clips)["input_features"].float(), "mask": _length_mask(counts)}


class AstFeatures(FeatureExtraction):
    """AST: the filter bank of a window of fixed length (10 s), with a mask of two class tokens and overlapping patches.

    Args:
        patch: frames per patch.
        stride: frames between the starts of patches.
        frequency_patches: number of patches along frequency.
    """

    def __init__(self, extractor: Any, patch: int, stride: int, frequency_patches: int) -> None:
        rate, frames = int(extractor.sampling_rate), int(extractor.max_length)
        window, self.hop = rate // 40, rate // 100  # Kaldi's filter bank: complete windows of 25 ms every 10 ms
        super().__init__(extractor, window, max_samples=(frames - 1) * self.hop + window)
        self.stride = stride
        self.frequency_patches = frequency_patches
        self.time_patches = (frames - patch) // stride + 1  # number of patches along time

    def __call__(self, clips: Clips) -> dict[str, Tensor]:
        """Pad clips to the window; patches that start before the end of the clip are real."""
        frames = [1 + (len(clip) - self.min_samples) // self.hop for clip in clips]
        patches = _length_mask([math.ceil(count / self.stride) for count in frames], self.time_patches)
        class_tokens = torch.ones(len(clips), 2, dtype=torch.bool)
        mask = torch.cat([class_tokens, patches.repeat(1, self.frequency_patches)], dim=1)
        return {"values": self._extract(clips)["input_values"].float(), "mask": mask}


class ClapFeatures(FeatureExtraction):
    """CLAP: the spectrogram of a window of fixed length (10 s), filled with repetitions of the clip.

    Args:
        time_tokens: number of tokens along time.
        frequency_tokens: number of tokens along frequency.
    """

    def __init__(self, extractor: Any, time_tokens: int, frequency_tokens: int) -> None:
        self.window = int(extractor.nb_max_samples)
        super().__init__(extractor, min_samples=int(extractor.hop_length), max_samples=self.window)
        self.time_tokens = time_tokens
        self.frequency_tokens = frequency_tokens

    def __call__(self, clips: Clips) -> dict[str, Tensor]:
        """Fill the window with repetitions of each clip; the tokens of all repetitions are real."""
        counts = [math.ceil(self._filled_length(len(clip)) * self.time_tokens / self.window) for clip in clips]
        # Clips fit into the window, so the four spectrograms for CLAP's "fusion" models are equal, and one is enough.
        values = self._extract(clips)["input_features"][:, :1].float()
        return {"values": values, "mask": _length_mask(counts, self.time_tokens).repeat(1, self.frequency_tokens)}

    def _filled_length(self, num_samples: int) -> int:
        """Return the number of audio samples of a clip and its repetitions."""
        if self.extractor.padding == "repeat":
            return self.window
        return num_samples * (self.window // num_samples) if self.extractor.padding == "repeatpad" else num_samples


class MaskedWav2Vec2FeatureEncoder(nn.Module):
    """Feature encoder of Wav2Vec2, HuBERT and WavLM, whose group norm ignores the padding.

    The first layer of wav2vec2-base and HuBERT-base has a group norm that normalises each channel over time. In
    transformers, the padding changes its mean and variance, even with an attention mask.

    Args:
        layers: convolutional layers of the model's feature encoder.
        has_group_norm: whether the first layer has a group norm.
    """

    def __init__(self, layers: nn.ModuleList, has_group_norm: bool) -> None:
        super().__init__()
        self.conv_layers = layers
        self.has_group_norm = has_group_norm

    def forward(self, waveforms_and_mask: Float[Tensor, "2 B N"]) -> Float[Tensor, "B D T"]:
        """Encode P waveforms.

        Args:
            waveforms_and_mask: audio samples, and a mask with 1 for real samples and 0 for padding; in one tensor,
                because the model passes one tensor to its feature encoder.
        """
        hidden, real = waveforms_and_mask[0].unsqueeze(1), waveforms_and_mask[1]
        layers: list[Any] = list(self.conv_layers)
        if self.has_group_norm:
            first, *layers = layers
            hidden = first.conv(hidden)
            num_frames = (real.sum(-1).long() - first.conv.kernel_size[0]) // first.conv.stride[0] + 1
            hidden = first.activation(_normalise_over_time(hidden, num_frames, first.layer_norm))
        for layer in layers:
            hidden = layer(hidden)
        return hidden


def _normalise_over_time(
    hidden: Float[Tensor, "B D T"], num_frames: Int[Tensor, " B"], norm: nn.GroupNorm
) -> Float[Tensor, "B D T"]:
    """Normalise each channel over the first ``num_frames`` frames of a sample, which are its real frames.

    ``y = (x - μ) / sqrt(σ² + ε) · weight + bias``, as Wav2Vec2 (arXiv:2006.11477) does for a clip without padding.
    """
    values = hidden.float()
    real = (torch.arange(hidden.shape[-1], device=hidden.device) < num_frames[:, None]).unsqueeze(1)
    count = num_frames.clamp(min=1)[:, None, None]
    centred = values - (values * real).sum(-1, keepdim=True) / count
    variance = (centred * real).square().sum(-1, keepdim=True) / count
    scale = (variance + norm.eps).rsqrt() * norm.weight[:, None]
    return (centred * scale + norm.bias[:, None]).to(hidden.dtype)
