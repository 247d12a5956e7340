"""Data modules, which load the rows of a table, and the files in them, as padded batches."""

from fusion_pl.data.base import FusionData
from fusion_pl.data.demo import Ask, Digits, Keypad, Street
from fusion_pl.data.hub_data import HubData
from fusion_pl.data.hub_stream import HubStream
from fusion_pl.data.manifest import ManifestData
from fusion_pl.data.shard_data import ShardData

__all__ = ["Ask", "Digits", "FusionData", "HubData", "HubStream", "Keypad", "ManifestData", "ShardData", "Street"]
