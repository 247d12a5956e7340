"""From files to batches."""

from fusion_pl.data.base import FusionData
from fusion_pl.data.demo import Keypad
from fusion_pl.data.manifest import ManifestData

__all__ = ["FusionData", "Keypad", "ManifestData"]
