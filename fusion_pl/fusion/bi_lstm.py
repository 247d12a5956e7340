"""Fusion by a bidirectional LSTM."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from fusion_pl.attention import TokenProjection
from fusion_pl.fusion.base import Fusion, check_sizes
from fusion_pl.layers import EmbeddingProjection, init_variance_preserving, masked_mean, mlp
from fusion_pl.types import Encoded, Fused, UserError


class BiLSTM(Fusion):
    """Apply a bidirectional LSTM to the sequence of the inputs' embeddings, or of all their tokens.

    ``over: inputs``: the sequence is the embeddings ``u_m = W_m · LayerNorm(x_m) + b_m`` of the present inputs.
    ``over: tokens``: the sequence is all real tokens of all inputs, ``W_m · LayerNorm(token) + e_m``.
    ``h = LSTM(sequence)``, ``h' = LSTM(reversed sequence)``, ``z = mean over the sequence of [h, h']``,
    ``logits = MLP(z)``

    Missing inputs and padding are removed from the sequence.

    Cost: ``16 S F²`` multiply-adds per sample, computed sequentially; S = M, or all tokens.

    Source: "Framewise phoneme classification with bidirectional LSTM", Graves and Schmidhuber 2005.

    Args:
        dims: name of the input -> channels D of its embedding and tokens.
        num_classes: number of classes C.
        over: elements of the sequence: one embedding per input, or all tokens.
        dim: number of channels F per direction; z has 2 F channels.
        dropout: probability that a hidden channel of the classifier is dropped, in training.

    Raises:
        UserError: if ``over``, ``dim`` or the dropout is out of range.
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
        self.over, self.reads_tokens = over, over == "tokens"
        self.projection = EmbeddingProjection(dims, dim) if over == "inputs" else TokenProjection(dims, dim)
        # Two unidirectional LSTMs, so that the padding is at the end of the sequence in both directions.
        self.forwards = nn.LSTM(dim, dim, batch_first=True)
        self.backwards = nn.LSTM(dim, dim, batch_first=True)
        self.classifier = mlp(2 * dim, dim, num_classes, dropout)
        init_variance_preserving(self)

    def forward(self, inputs: dict[str, Encoded]) -> Fused:
        """Fuse B samples; ``embedding`` is z."""
        if self.over == "inputs":
            sequence, mask = self.projection(inputs), self.presence_mask(inputs)
        else:
            sequence = torch.cat(self.projection(inputs), dim=1)
            mask = torch.cat([inputs[name].mask for name in self.names], dim=1)
        sorted_mask = torch.arange(mask.shape[1], device=mask.device) < mask.sum(-1, keepdim=True)
        means = []
        for lstm, order in zip((self.forwards, self.backwards), indices_with_padding_last(mask), strict=True):
            ordered = sequence.gather(1, order.unsqueeze(-1).expand(-1, -1, sequence.shape[-1]))
            means.append(masked_mean(lstm(ordered)[0], sorted_mask))
        embedding: Float[Tensor, "B F2"] = torch.cat(means, dim=-1)
        return Fused(self.classifier(embedding), embedding)


def indices_with_padding_last(mask: Bool[Tensor, "B S"]) -> tuple[Int[Tensor, "B S"], Int[Tensor, "B S"]]:
    """Return the indices that sort a sequence in forward and in reverse order, both with the padding at the end."""
    position = torch.arange(mask.shape[1], device=mask.device)
    padding = mask.shape[1] * (~mask).long()
    return (position + padding).argsort(dim=-1), (position.flip(0) + padding).argsort(dim=-1)
