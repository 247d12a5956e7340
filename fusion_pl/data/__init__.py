"""Data modules: load a table of files as padded batches."""

from fusion_pl.data.base import FusionData
from fusion_pl.data.demo import Ask, Keypad
from fusion_pl.data.manifest import ManifestData

__all__ = ["Ask", "FusionData", "Keypad", "ManifestData"]
