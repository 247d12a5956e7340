"""Tiny models with random weights, saved as Hugging Face saves them; each family with the traits that matter here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import transformers as hf
from tokenizers import Tokenizer, models, pre_tokenizers, processors

WORDS = ["a", "the", "cat", "dog", "sat", "ran", "on", "mat", "fast", "red", "blue", "sky", "is", "not", "very", "old"]
SPECIAL = {f"{name}_token": f"[{name.upper()}]" for name in ("cls", "sep", "pad", "unk", "mask")}
PAD = 1  # not 0, and what RoBERTa's position numbers begin after
WIDTH = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
TEXT = {"vocab_size": 64, "max_position_embeddings": 40, "pad_token_id": PAD}
PICTURE = {"image_size": 32, "patch_size": 8}
SOUND = {
    "conv_dim": (16, 16, 16),
    "conv_kernel": (10, 3, 2),
    "conv_stride": (5, 2, 2),
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
    "mask_time_prob": 0.05,
    "layerdrop": 0.9,
}
TWO_TOWERS = {"text_config": {**WIDTH, **TEXT}, "projection_dim": 16}


def tokenizer(classes: bool = True) -> hf.PreTrainedTokenizerFast:
    names = ["[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]", *WORDS]
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(names)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    single = "[CLS] $A [SEP]" if classes else "$A [SEP]"
    made.post_processor = processors.TemplateProcessing(single=single, special_tokens=[("[CLS]", 0), ("[SEP]", 2)])
    special = {k: v for k, v in SPECIAL.items() if classes or k in {"pad_token", "unk_token"}}
    return hf.PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=40, **special)


def clip(config: type, model: type, **extra: object) -> hf.PreTrainedModel:
    return model(config(vision_config={**WIDTH, **PICTURE}, **TWO_TOWERS, **extra))


TEXTS: dict[str, Callable[[], hf.PreTrainedModel]] = {
    "bert": lambda: hf.BertModel(hf.BertConfig(**WIDTH, **TEXT)),
    "distilbert": lambda: hf.DistilBertModel(
        hf.DistilBertConfig(dim=16, n_layers=2, n_heads=2, hidden_dim=32, **TEXT)
    ),
    "roberta": lambda: hf.RobertaModel(hf.RobertaConfig(**WIDTH, **{**TEXT, "max_position_embeddings": 42})),
    "deberta-v2": lambda: hf.DebertaV2Model(
        hf.DebertaV2Config(
            **WIDTH, **TEXT, relative_attention=True, pos_att_type=["p2c", "c2p"], position_biased_input=False,
            position_buckets=8, norm_rel_ebd="layer_norm", share_att_key=True, conv_kernel_size=3, conv_act="gelu",
        )
    ),
    "modernbert": lambda: hf.ModernBertModel(
        hf.ModernBertConfig(
            **WIDTH, **TEXT, local_attention=4, global_attn_every_n_layers=2, cls_token_id=0, sep_token_id=2,
            bos_token_id=0, eos_token_id=2,
        )
    ),
    "mpnet": lambda: hf.MPNetModel(hf.MPNetConfig(**WIDTH, **{**TEXT, "max_position_embeddings": 42})),
    "t5": lambda: hf.T5Model(
        hf.T5Config(vocab_size=64, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, pad_token_id=PAD)
    ),
    "clip-text": lambda: clip(hf.CLIPConfig, hf.CLIPModel),
}  # fmt: skip

IMAGES: dict[str, tuple[Callable[[], hf.PreTrainedModel], type]] = {
    "vit": (lambda: hf.ViTModel(hf.ViTConfig(**WIDTH, **PICTURE)), hf.ViTImageProcessor),
    "dinov2": (lambda: hf.Dinov2Model(hf.Dinov2Config(**WIDTH, **PICTURE)), hf.BitImageProcessor),
    "swin": (
        lambda: hf.SwinModel(
            hf.SwinConfig(image_size=32, patch_size=4, embed_dim=8, depths=[1, 2], num_heads=[2, 2], window_size=4)
        ),
        hf.ViTImageProcessor,
    ),
    "convnext": (
        lambda: hf.ConvNextModel(hf.ConvNextConfig(hidden_sizes=[8, 12, 16, 20], depths=[1, 1, 1, 1])),
        hf.ConvNextImageProcessor,
    ),
    "resnet": (
        lambda: hf.ResNetModel(
            hf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 2], layer_type="basic")
        ),
        hf.ConvNextImageProcessor,
    ),
    "clip": (lambda: clip(hf.CLIPConfig, hf.CLIPModel), hf.CLIPImageProcessor),
    "siglip": (lambda: clip(hf.SiglipConfig, hf.SiglipModel), hf.SiglipImageProcessor),
    "mobilenet-v2": (
        lambda: hf.MobileNetV2Model(hf.MobileNetV2Config(depth_multiplier=0.1, min_depth=4, image_size=32)),
        hf.MobileNetV2ImageProcessor,
    ),
}

AUDIOS: dict[str, Callable[[], hf.PreTrainedModel]] = {
    "wav2vec2-group": lambda: hf.Wav2Vec2Model(hf.Wav2Vec2Config(**WIDTH, **SOUND, feat_extract_norm="group")),
    "wav2vec2-layer": lambda: hf.Wav2Vec2Model(
        hf.Wav2Vec2Config(**WIDTH, **SOUND, feat_extract_norm="layer", do_stable_layer_norm=True, conv_bias=True)
    ),
    "hubert": lambda: hf.HubertModel(hf.HubertConfig(**WIDTH, **SOUND, feat_extract_norm="group")),
    "wavlm": lambda: hf.WavLMModel(hf.WavLMConfig(**WIDTH, **SOUND, feat_extract_norm="group")),
    "ast": lambda: hf.ASTModel(hf.ASTConfig(**WIDTH, num_mel_bins=32, max_length=64)),
    "whisper": lambda: hf.WhisperModel(
        hf.WhisperConfig(
            vocab_size=64, d_model=16, encoder_layers=2, decoder_layers=1, encoder_attention_heads=2, pad_token_id=PAD,
            decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, num_mel_bins=20, encoder_layerdrop=0.9,
            max_source_positions=50, decoder_start_token_id=2, bos_token_id=0, eos_token_id=2,
        )
    ),
    "clap": lambda: hf.ClapModel(
        hf.ClapConfig(
            text_config={**WIDTH, **TEXT},
            audio_config={
                "window_size": 4, "num_mel_bins": 16, "spec_size": 64, "patch_embeds_hidden_size": 8, "depths": [1, 1],
                "num_attention_heads": [2, 2], "hidden_size": 16, "enable_fusion": True, "fusion_type": "aff_2d",
            },
        )
    ),
}  # fmt: skip

EXTRACTORS: dict[str, Callable[[], hf.FeatureExtractionMixin]] = {
    "wav2vec2-group": lambda: hf.Wav2Vec2FeatureExtractor(sampling_rate=16000, return_attention_mask=False),
    "ast": lambda: hf.ASTFeatureExtractor(num_mel_bins=32, max_length=64),
    "whisper": lambda: hf.WhisperFeatureExtractor(feature_size=20, chunk_length=1),
    "clap": lambda: hf.ClapFeatureExtractor(
        feature_size=16, sampling_rate=16000, hop_length=160, max_length_s=1, fft_window_size=512, frequency_max=8000
    ),
}
SAMPLED = ("wav2vec2-group", "wav2vec2-layer", "hubert", "wavlm")


def _rough(model: hf.PreTrainedModel) -> hf.PreTrainedModel:
    """Make every parameter matter: fresh models start with zeros and ones, behind which faults hide."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


def save_text(name: str, folder: Path) -> None:
    _rough(TEXTS[name]()).save_pretrained(folder)
    tokenizer(classes=name != "t5").save_pretrained(folder)


def save_image(name: str, folder: Path) -> None:
    model, processor = IMAGES[name]
    _rough(model()).save_pretrained(folder)
    edge, square = {"shortest_edge": 32}, {"height": 32, "width": 32}
    if processor in {hf.BitImageProcessor, hf.CLIPImageProcessor, hf.MobileNetV2ImageProcessor}:
        made = processor(size={"shortest_edge": 36}, crop_size=square, do_center_crop=True)
    else:
        made = processor(size=edge if processor is hf.ConvNextImageProcessor else square)
    made.save_pretrained(folder)


def save_audio(name: str, folder: Path) -> None:
    _rough(AUDIOS[name]()).save_pretrained(folder)
    EXTRACTORS["wav2vec2-group" if name in SAMPLED else name]().save_pretrained(folder)
