"""Training loss, optimization, callbacks and loggers."""

from fusion_pl.training.loggers import TensorBoard
from fusion_pl.training.loss import Loss
from fusion_pl.training.optimisation import WarmupCosine

__all__ = ["Loss", "TensorBoard", "WarmupCosine"]
