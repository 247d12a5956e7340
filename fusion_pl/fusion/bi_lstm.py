"""Fusion by a recurrent network."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from fusion_pl.attention import TokenProjection
from fusion_pl.fusion.base import Fusion, check_sizes
from fusion_pl.layers import EmbeddingProjection, keep_variance, masked_mean, mlp
from fusion_pl.types import Encoded, Fused, UserError


class BiLSTM(Fusion):
    """Read the inputs one after the other, forwards and backwards, by a recurrent network.

    ``over: inputs``: the sequence is the vectors ``u_m = W_m · LayerNorm(x_m) + b_m`` of the present inputs.
    ``over: tokens``: the sequence is all real tokens of all inputs, ``W_m · LayerNorm(token) + e_m``.
    ``h = LSTM(sequence)``, ``h' = LSTM(reversed sequence)``, ``z = mean over the sequence of [h, h']``,
    ``logits = MLP(z)``

    What is missing or padding is taken out before the network reads: it steps from one real entry to the next.

    Cost: ``16 S F²`` multiply-adds a sample, one step after the other; S = M, or all tokens.

    Source: "Framewise phoneme classification with bidirectional LSTM", Graves and Schmidhuber 2005.

    Args:
        dims: name of the input -> channels D.
        num_classes: C.
        over: what the sequence consists of.
        dim: channels F of each direction; z has twice as many.
        dropout: probability with which hidden channels are dropped in training.

    Raises:
        UserError: where ``over``, a size or the dropout is out of range.
    """

    def __init__(
        self,
        dims: dict[str, int],
        num_classes: int,
        over: Literal["inputs", "tokens"] = "inputs",
        dim: int = 64,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(dims, num_classes)
        check_sizes("BiLSTM", dropout, dim=dim)
        if over not in {"inputs", "tokens"}:
            raise UserError(f"BiLSTM was given over={over!r}, expected inputs or tokens")
        self.over = over
        self.project = EmbeddingProjection(dims, dim) if over == "inputs" else TokenProjection(dims, dim)
        # Two of one direction, not one of two: each reads its sequence from the left, so padding always comes last.
        self.forwards = nn.LSTM(dim, dim, batch_first=True)
        self.backwards = nn.LSTM(dim, dim, batch_first=True)
        self.classify = mlp(2 * dim, dim, num_classes, dropout)
        keep_variance(self)

    def forward(self, inputs: dict[str, Encoded]) -> Fused:
        """Fuse B samples; ``embedding`` is z."""
        if self.over == "inputs":
            sequence, mask = self.project(inputs), self.present(inputs)
        else:
            sequence = torch.cat(self.project(inputs), dim=1)
            mask = torch.cat([inputs[name].mask for name in self.names], dim=1)
        there, back = orders(mask)
        read = [
            masked_mean(network(_ordered(sequence, order))[0], mask.sort(dim=-1, descending=True, stable=True).values)
            for network, order in ((self.forwards, there), (self.backwards, back))
        ]
        vector = torch.cat(read, dim=-1)
        return Fused(self.classify(vector), vector)


def orders(mask: Bool[Tensor, "B S"]) -> tuple[Int[Tensor, "B S"], Int[Tensor, "B S"]]:
    """Return where to find the real entries in their order, and in reverse order; blanks come last in both."""
    place = torch.arange(mask.shape[1], device=mask.device)
    blank = mask.shape[1] * (~mask).long()
    return (place + blank).argsort(dim=-1), (place.flip(0) + blank).argsort(dim=-1)


def _ordered(sequence: Float[Tensor, "B S F"], order: Int[Tensor, "B S"]) -> Float[Tensor, "B S F"]:
    return sequence.gather(1, order.unsqueeze(-1).expand(-1, -1, sequence.shape[-1]))
