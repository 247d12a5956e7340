"""Tensor parts that encoders and heads share; each knows what a mask is."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fusion_pl.types import Encoded


def masked_mean(values: Float[Tensor, "*B T D"], mask: Bool[Tensor, "*B T"]) -> Float[Tensor, "*B D"]:
    """Average over the real entries of the second-to-last axis; zeros where there is none.

    Example:
        >>> masked_mean(torch.tensor([[[1.0], [3.0], [9.0]]]), torch.tensor([[True, True, False]]))
        tensor([[2.]])
    """
    kept = values.masked_fill(~mask.unsqueeze(-1), 0.0)
    return kept.sum(-2) / mask.sum(-1, keepdim=True).clamp(min=1)


def masked_max(values: Float[Tensor, "*B T D"], mask: Bool[Tensor, "*B T"]) -> Float[Tensor, "*B D"]:
    """Take the maximum over the real entries of the second-to-last axis; zeros where there is none."""
    lowest = torch.finfo(values.dtype).min
    top = values.masked_fill(~mask.unsqueeze(-1), lowest).amax(-2)
    return top.masked_fill(~mask.any(-1, keepdim=True), 0.0)


def masked_softmax(scores: Float[Tensor, "*B M"], mask: Bool[Tensor, "*B M"]) -> Float[Tensor, "*B M"]:
    """Softmax over the real entries of the last axis; zeros where there is none.

    Example:
        >>> masked_softmax(torch.zeros(1, 3), torch.tensor([[True, False, True]]))
        tensor([[0.5000, 0.0000, 0.5000]])
    """
    lowest = torch.finfo(scores.dtype).min
    return scores.masked_fill(~mask, lowest).softmax(-1).masked_fill(~mask, 0.0)


def spread(encoded: Encoded, present: Bool[Tensor, " B"]) -> Encoded:
    """Give the P rows that an encoder computed their places among the B samples of the batch; the others become zeros.

    A gather with fixed B, so that nothing waits for the GPU to count; the result does not depend on what a blank row held.

    Args:
        encoded: P rows, in the order of the present samples.
        present: which of the B samples they are.
    """
    row = (present.cumsum(0) - 1).clamp(min=0)

    def place(rows: Tensor) -> Tensor:
        return rows[row].masked_fill(~present.view(-1, *[1] * (rows.dim() - 1)), 0)

    return Encoded(
        place(encoded.tokens), place(encoded.mask), place(encoded.pooled), tuple(place(level) for level in encoded.levels)
    )
