"""What a fusion head promises."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from fusion_pl.config import Configurable
from fusion_pl.types import Batch, Encoded, Fused, UserError


@runtime_checkable
class CrossEntropy(Protocol):
    """The cross-entropy of a batch, smoothed and weighted as the configuration asks."""

    def __call__(self, logits: Float[Tensor, "B C"], mask: Bool[Tensor, " B"] | None = None) -> Float[Tensor, ""]:
        """Return the mean over the batch; samples that are not ``among`` count as 0."""
        ...


class Fusion(Configurable, nn.Module, ABC):
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

    def loss(self, fused: Fused, batch: Batch, cross_entropy: CrossEntropy) -> Float[Tensor, ""]:
        """Return what training minimises: the cross-entropy of the decision, unless a head's method asks for more.

        Args:
            fused: what ``forward`` made of the batch.
            batch: with its targets.
            cross_entropy: the cross-entropy to use.
        """
        del batch
        return cross_entropy(fused.logits)

    def held_out(self, batch: Batch) -> Bool[Tensor, " B"] | None:
        """Return which samples the encoders must not learn from, where the head keeps some for itself."""
        del batch
        return None

    def present(self, inputs: dict[str, Encoded]) -> Bool[Tensor, "B M"]:
        """Return which sample has which input, in the order of ``dims``."""
        return torch.stack([inputs[name].mask.any(-1) for name in self.names], dim=-1)

    def named(self, decisions: Float[Tensor, "B M C"]) -> dict[str, Float[Tensor, "B C"]]:
        """Return each input's own decision by its name, as ``Fused.input_logits`` has it."""
        return dict(zip(self.names, decisions.unbind(1), strict=True))


def check_sizes(head: str, dropout: float, **sizes: int) -> None:
    """Refuse arguments that no layer can be built from.

    Args:
        head: its class name, for the message.
        dropout: a probability.
        **sizes: name of an argument -> its value, a whole number of at least 1; of ``num_heads`` dim is a multiple.

    Raises:
        UserError: at the first one that is out of range.
    """
    for name, size in sizes.items():
        if size < 1:
            raise UserError(f"{head} was given {name}={size}, expected a whole number of at least 1")
    if not 0 <= dropout < 1:
        raise UserError(f"{head} was given dropout={dropout}, expected a probability: at least 0 and below 1")
    if "num_heads" in sizes and sizes["dim"] % sizes["num_heads"]:
        raise UserError(
            f"{head} was given dim={sizes['dim']} and num_heads={sizes['num_heads']}: the heads share the channels "
            "equally, so dim must be a multiple of num_heads"
        )
