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


def check_sizes(head: str, dropout: float, **sizes: int) -> None:
    """Refuse arguments that no layer can be built from.

    Args:
        head: its class name, for the message.
        dropout: a probability.
        **sizes: name of an argument -> its value, a whole number of at least 1.

    Raises:
        UserError: at the first one that is out of range.
    """
    for name, size in sizes.items():
        if size < 1:
            raise UserError(f"{head} was given {name}={size}, expected a whole number of at least 1")
    if not 0 <= dropout < 1:
        raise UserError(f"{head} was given dropout={dropout}, expected a probability: at least 0 and below 1")
