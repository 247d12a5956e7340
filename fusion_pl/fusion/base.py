"""What a fusion head promises."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from fusion_pl.recipe import Recorded
from fusion_pl.types import Encoded, Fused, UserError


class Fusion(Recorded, nn.Module, ABC):
    """Joins any number of encoded inputs into a decision. A head is one file: a constructor and ``forward``.

    A missing input must not change the result: its mask is False and its tensors are zeros. Every parameter must take
    part in every forward pass, whichever inputs a batch holds, so that several processes stay in step.

    Args:
        dims: name of the input -> channels D of its tokens; the order is the order of ``Fused.weights``.
        num_classes: C.

    Raises:
        UserError: where there is no input.
    """

    def __init__(self, dims: dict[str, int], num_classes: int) -> None:
        super().__init__()
        if not dims:
            raise UserError("a fusion head needs at least one input: name one under model.encoders")
        self.names = list(dims)
        self.num_classes = num_classes

    @abstractmethod
    def forward(self, inputs: dict[str, Encoded]) -> Fused:
        """Fuse B samples.

        Args:
            inputs: exactly the names of ``dims``.
        """

    def present(self, inputs: dict[str, Encoded]) -> Bool[Tensor, "B M"]:
        """Return which sample has which input, in the order of ``dims``."""
        return torch.stack([inputs[name].mask.any(-1) for name in self.names], dim=-1)
