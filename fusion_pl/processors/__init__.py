"""Processors, which open the values of an input and convert them to tensors for its encoder."""

from fusion_pl.processors.audio import AudioProcessor
from fusion_pl.processors.base import Length, Processor
from fusion_pl.processors.features import FeatureProcessor
from fusion_pl.processors.image import ImageProcessor
from fusion_pl.processors.text import TextProcessor

__all__ = ["AudioProcessor", "FeatureProcessor", "ImageProcessor", "Length", "Processor", "TextProcessor"]
