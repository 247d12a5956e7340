"""What training minimises."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fusion_pl.types import UserError


@dataclass(frozen=True)
class Loss:
    """Cross-entropy of the fused decision, and if wanted of each input's own.

    Args:
        label_smoothing: share of the target spread over all classes, in [0, 1).
        class_weights: one number a class, or ``balanced`` (inverse frequency in training).
        inputs: weight of the sum of the inputs' own losses, 0 or more. Each encoder then also learns to decide by
            itself (a linear classifier on its vector, used in training only), instead of leaving the work to the
            input that learns fastest.
            Source: the multi-task form of "What Makes Training Multi-modal Classification Networks Hard?",
            arXiv:1905.12681, with one weight for all instead of estimated ones.

    Raises:
        UserError: where a number is out of its range.
    """

    label_smoothing: float = 0.0
    class_weights: Literal["balanced"] | list[float] | None = None
    inputs: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise UserError(f"model.loss.label_smoothing must be at least 0 and below 1, not {self.label_smoothing}")
        if self.inputs < 0:
            raise UserError(f"model.loss.inputs must be 0 or more, not {self.inputs}")

    def check(self, classes: list[str]) -> None:
        """Refuse weights that do not fit the classes."""
        weights = self.class_weights
        if isinstance(weights, list) and len(weights) != len(classes):
            raise UserError(f"model.loss.class_weights has {len(weights)} numbers, expected one for each of {classes}")
