"""Encoders, which convert the tensors of a processor to tokens, a mask and a pooled embedding."""

from fusion_pl.encoders.audio import AudioEncoder
from fusion_pl.encoders.base import Encoder
from fusion_pl.encoders.features import FeatureEncoder
from fusion_pl.encoders.image import ImageEncoder
from fusion_pl.encoders.text import TextEncoder
from fusion_pl.encoders.tiny_audio import TinyAudio
from fusion_pl.encoders.tiny_image import TinyImage
from fusion_pl.encoders.tiny_text import TinyText

__all__ = [
    "AudioEncoder",
    "Encoder",
    "FeatureEncoder",
    "ImageEncoder",
    "TextEncoder",
    "TinyAudio",
    "TinyImage",
    "TinyText",
]
