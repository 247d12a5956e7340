"""What an encoder promises."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from fusion_pl.recipe import Recorded
from fusion_pl.types import Encoded, Processor


class Encoder(Recorded, nn.Module, ABC):
    """Turns one input into tokens and a vector. To write your own, set two attributes and ``forward``.

    A constructor takes plain data only (text, numbers, lists, dictionaries): it is what the checkpoint carries.

    Attributes:
        dim: channels D of tokens and vector.
        processor: turns opened values into keyword arguments of ``forward``; its ``kind`` says how a file is opened.
        pretrained_weights: whether ``load_pretrained`` has weights to load; such an encoder learns at a lower rate.
        levels: the depths whose hidden states it combines or hands on.
    """

    dim: int
    processor: Processor
    pretrained_weights: bool = False
    levels: Sequence[int] = ()

    @abstractmethod
    def forward(self, **inputs: Tensor) -> Encoded:
        """Encode P rows, as ``processor`` makes them."""

    def load_pretrained(self) -> None:
        """Load pretrained weights; called once, before training, and never for a model that comes from a checkpoint."""

    def files(self) -> dict[str, bytes]:
        """Return what the checkpoint must carry besides weights and arguments: file name -> content."""
        return {}

    @classmethod
    def from_files(cls, init_args: dict[str, Any], folder: str) -> Encoder:
        """Build the encoder from a checkpoint's arguments and ``files``, without a hub and without weights.

        Args:
            init_args: the constructor's.
            folder: a temporary folder that holds ``files``.
        """
        del folder
        return cls(**init_args)
