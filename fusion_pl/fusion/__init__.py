"""One head per file: from encoded inputs to a decision."""

from fusion_pl.fusion.base import Fusion

__all__ = ["Fusion"]
