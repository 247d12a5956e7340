"""Pretrained audio encoders."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from fusion_pl.encoders import audio_features
from fusion_pl.encoders.audio_features import FeatureExtraction
from fusion_pl.encoders.clips import ClipProcessor
from fusion_pl.encoders.hub import read_pretrained, serialize_files
from fusion_pl.encoders.layer_mixing import Combine, as_tokens
from fusion_pl.encoders.pretrained import Freeze, Pooling, PretrainedEncoder
from fusion_pl.types import Encoded, UserError, Waveform

WAVEFORM_MODELS = ("wav2vec2", "hubert", "wavlm")
EXTRACTOR_LABEL = "feature extractor (preprocessor_config.json)"
SUPPORTED = (*WAVEFORM_MODELS, "whisper", "audio-spectrogram-transformer", "clap")


class FeatureExtractor(ClipProcessor):
    """Crop, resample and pad clips, and compute the input of the model.

    Args:
        features: feature extraction for the model family.
        max_seconds: maximum length of a clip.
    """

    def __init__(self, features: FeatureExtraction, max_seconds: float) -> None:
        max_samples = math.ceil(max_seconds * features.rate)
        super().__init__(features.rate, min(max_samples, features.max_samples or max_samples))
        self.features = features

    def __call__(self, values: Sequence[Waveform], training: bool = False) -> dict[str, Tensor]:
        """Process P clips."""
        return self.features([self._crop_and_pad(clip, training).numpy() for clip in values])

    def runner_settings(self) -> dict[str, Any]:
        """Return the settings of the runner; it has no spectrograms."""
        if not isinstance(self.features, audio_features.WaveformFeatures):
            return super().runner_settings()
        normalise = bool(self.features.extractor.do_normalize)
        return self.clip_settings(["values", "mask"], min_samples=self.features.min_samples, normalise=normalise)

    def _crop_and_pad(self, clip: Waveform, training: bool) -> Float[Tensor, " N"]:
        samples = self.crop_and_resample(clip, training)
        return F.pad(samples, (0, max(0, self.features.min_samples - len(samples))))


class AudioEncoder(PretrainedEncoder):
    """Encode audio with a pretrained model: Wav2Vec2, HuBERT, WavLM, Whisper's encoder, AST or CLAP's audio tower.

    The hidden layers of CLAP cannot be combined.

    Args:
        pooling: how tokens are pooled: mean, max, or cls (the class token, AST only).
        max_seconds: maximum length of a clip; a model with a window of fixed length uses at most that length.
    """

    tower_path = ("audio_model", "audio_encoder")
    config_attribute = "audio_config"
    example_value = Waveform(torch.zeros(16_000), 16_000)
    required_files = ("config.json", "preprocessor_config.json")

    def __init__(
        self,
        pretrained: str,
        weights: bool = True,
        freeze: Freeze = "none",
        pooling: Pooling = "mean",
        max_seconds: float = 10.0,
        hidden_layers: list[int] | None = None,
        combine: Combine | None = None,
    ) -> None:
        super().__init__(pretrained, weights, freeze, pooling, hidden_layers, combine)
        if max_seconds <= 0:
            raise UserError(f"max_seconds is {max_seconds}, expected a number of seconds above 0, such as 10")
        self.processor = FeatureExtractor(self._load_feature_extraction(), max_seconds)
        if self.config.model_type == "clap":
            audio = self.config.audio_config
            self.dim = audio.patch_embeds_hidden_size * 2 ** (len(audio.depths) - 1)
            if hidden_layers:
                raise UserError(
                    "hidden_layers: the feature maps of CLAP have no time axis, so they cannot be combined: remove "
                    "hidden_layers"
                )
        has_class_token = self.config.model_type == "audio-spectrogram-transformer"
        self._finish_setup(has_class_token, [self.dim] * (len(self._find_blocks()[1]) + 1))

    def _build_model(self) -> nn.Module:
        config = self.config
        if config.model_type not in SUPPORTED:
            raise UserError(
                f"pretrained: {self.source} is a {config.model_type!r} model; AudioEncoder supports "
                f"{', '.join(SUPPORTED)}: choose a model of one of these types"
            )
        # With these options, some parameters would have no gradient in some or all steps.
        if config.model_type in WAVEFORM_MODELS:
            config.apply_spec_augment = False
            config.layerdrop = 0.0
            config.add_adapter = False
        elif config.model_type == "whisper":
            config.encoder_layerdrop = 0.0
        elif config.model_type == "clap":
            config.audio_config.enable_fusion = False  # CLAP's "fusion" combines several crops of a clip
        return super()._build_model()

    def _prepare_model(self, model: Any) -> nn.Module:
        if self.config.model_type in WAVEFORM_MODELS:
            layers, group_norm = model.feature_extractor.conv_layers, self.config.feat_extract_norm == "group"
            model.feature_extractor = audio_features.MaskedWav2Vec2FeatureEncoder(layers, group_norm)
        return super()._prepare_model(model)

    def _load_feature_extraction(self) -> FeatureExtraction:
        from transformers import AutoFeatureExtractor

        extractor = read_pretrained(AutoFeatureExtractor.from_pretrained, self.source, EXTRACTOR_LABEL)
        self._file_contents |= serialize_files(extractor)
        config: Any = self.config
        if config.model_type == "whisper":
            return audio_features.WhisperFeatures(extractor)
        if config.model_type == "clap":
            audio = config.audio_config
            side = audio.spec_size // audio.patch_stride[0] // 2 ** (len(audio.depths) - 1)
            fold = audio.spec_size // audio.num_mel_bins
            return audio_features.ClapFeatures(extractor, time_tokens=side * fold, frequency_tokens=side // fold)
        if config.model_type == "audio-spectrogram-transformer":
            frequency_patches = (config.num_mel_bins - config.patch_size) // config.frequency_stride + 1
            return audio_features.AstFeatures(extractor, config.patch_size, config.time_stride, frequency_patches)
        min_samples = 1
        for kernel, stride in zip(reversed(config.conv_kernel), reversed(config.conv_stride), strict=True):
            min_samples = (min_samples - 1) * stride + kernel
        return audio_features.WaveformFeatures(extractor, min_samples)

    def forward(self, values: Tensor, mask: Bool[Tensor, "B T"]) -> Encoded:  # type: ignore[override]
        """Encode P clips.

        Args:
            values: waveforms or spectrograms, depending on the model.
            mask: True = real audio sample (Wav2Vec2, HuBERT, WavLM) or real token (other models).
        """
        model_type = self.config.model_type
        if model_type in WAVEFORM_MODELS:
            with warnings.catch_warnings():  # WavLM's attention combines a Boolean and a float mask, which works
                warnings.filterwarnings("ignore", message="Support for mismatched key_padding_mask")
                packed = torch.stack([values, mask.to(values.dtype)])
                out = self._run_model(input_values=packed, attention_mask=mask.long())
            return self._to_encoded(out.last_hidden_state, self._token_mask(mask), out.hidden_states)
        name = "input_values" if model_type == "audio-spectrogram-transformer" else "input_features"
        inputs: dict[str, Any] = {name: values}
        out = self._run_model(**inputs)
        width = mask.shape[1]  # of Whisper's 1500 tokens, drop those after the longest clip of the batch
        tokens = as_tokens(out.last_hidden_state)[:, :width]
        return self._to_encoded(tokens, mask, [state[:, :width] for state in out.hidden_states or ()])

    def _token_mask(self, mask: Bool[Tensor, "B N"]) -> Bool[Tensor, "B T"]:
        """Return the token mask that corresponds to a mask of audio samples."""
        width, lengths = mask.shape[1], mask.sum(-1)
        for kernel, stride in zip(self.config.conv_kernel, self.config.conv_stride, strict=True):
            width, lengths = (width - kernel) // stride + 1, (lengths - kernel) // stride + 1
        return torch.arange(width, device=mask.device) < lengths[:, None]
