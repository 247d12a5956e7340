"""Read a checkpoint that may be damaged or malicious, and build its model."""

from fusion_pl.checkpoint.archive import read_checkpoint
from fusion_pl.checkpoint.build import build_model

__all__ = ["build_model", "read_checkpoint"]
