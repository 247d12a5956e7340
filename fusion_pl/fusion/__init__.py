"""One head per file: from encoded inputs to a decision."""

from fusion_pl.fusion.average import Average
from fusion_pl.fusion.base import Fusion
from fusion_pl.fusion.concat import Concat
from fusion_pl.fusion.cross_attention import CrossAttention
from fusion_pl.fusion.mean import Mean
from fusion_pl.fusion.weighted import Weighted

__all__ = ["Average", "Concat", "CrossAttention", "Fusion", "Mean", "Weighted"]
