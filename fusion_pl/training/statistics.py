"""Statistics of the training samples, which encoders need before training."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lightning.pytorch import Trainer

from fusion_pl.data.base import FusionData
from fusion_pl.encoders.base import Encoder
from fusion_pl.types import UserError


def fit_statistics(encoder: Encoder, name: str, trainer: Trainer | None) -> None:
    """Let the encoder of an input compute its statistics, unless training resumes: a checkpoint contains them.

    Every process opens all training samples, so that all processes compute the same statistics.

    Raises:
        UserError: if the encoder needs statistics, and the data module is no ``FusionData``.
    """
    if trainer is None or trainer.ckpt_path is None:
        encoder.fit_statistics(_training_values(name, getattr(trainer, "datamodule", None)))


def _training_values(name: str, data: Any) -> Iterator[Any]:
    """Yield the values of an input when the encoder asks for them."""
    if not isinstance(data, FusionData):
        raise UserError(
            f"the encoder of {name!r} needs statistics of the training samples of a FusionData: pass a datamodule to "
            "trainer.fit, or set standardise: false"
        )
    yield from data.training_values(name)
