"""How a run goes: optimisation configs and callbacks, one file each."""

from fusion_pl.training.loggers import TensorBoard
from fusion_pl.training.loss import Loss
from fusion_pl.training.optimisation import WarmupCosine

__all__ = ["Loss", "TensorBoard", "WarmupCosine"]
