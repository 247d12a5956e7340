"""Classify samples that combine text, images and audio."""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"
__all__ = ["FusionClassifier", "Predictor", "__version__"]


def __getattr__(name: str) -> Any:
    """Import the main classes on first access, so that ``fusion-pl --help`` does not import torch."""
    if name == "Predictor":
        from fusion_pl.predict import Predictor

        return Predictor
    if name == "FusionClassifier":
        from fusion_pl.module import FusionClassifier

        return FusionClassifier
    raise AttributeError(f"module 'fusion_pl' has no attribute {name!r}")
