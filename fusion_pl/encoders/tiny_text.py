"""A small text encoder, trained from scratch on bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from fusion_pl.encoders.base import Encoder
from fusion_pl.encoders.convolution import MaskedConv, MeanMax, check_dim, summed_up
from fusion_pl.encoders.layer_mixing import Combine, build_layer_mixing
from fusion_pl.types import Encoded, Kind, UserError

BEGIN = 256  # the one token that is not a byte; it makes the empty text a sequence too


class Utf8Bytes:
    """Turn texts into bytes: every language and emoji, and no vocabulary to store.

    Args:
        max_tokens: longest sequence, the begin token included; what comes later is cut.
    """

    kind: Kind = "text"

    def __init__(self, max_tokens: int) -> None:
        if max_tokens < 1:
            raise UserError(f"TinyText(max_tokens={max_tokens}): expected at least 1, for the begin token")
        self.max_tokens = max_tokens

    def __call__(self, values: Sequence[Any], training: bool = False) -> dict[str, Tensor]:
        """Return ``ids`` and ``mask``, both (P, T)."""
        del training
        texts = [str(text).encode()[: self.max_tokens - 1] for text in values]
        lengths = torch.tensor([1 + len(text) for text in texts])
        ids = torch.zeros(len(texts), int(lengths.max()), dtype=torch.long)
        ids[:, 0] = BEGIN
        padded = b"".join(text.ljust(ids.shape[1] - 1, b"\0") for text in texts)
        if padded:  # one tensor for all: a tensor for each text takes longer than all the rest
            ids[:, 1:] = torch.frombuffer(bytearray(padded), dtype=torch.uint8).view(len(texts), -1)
        return {"ids": ids, "mask": torch.arange(ids.shape[1]) < lengths.unsqueeze(1)}


class TinyText(Encoder):
    """Encode texts by convolutions over their bytes; good for short texts and for spelling, not for meaning.

    Args:
        dim: channels D.
        num_layers: convolutions; each sees two bytes further, either way.
        max_tokens: longest text in bytes, plus one.
        dropout: probability that a channel of the vector is dropped.
        combine: how all its hidden layers together become the tokens (see
            ``fusion_pl.encoders.layer_mixing.LayerMixing``); None = the last one alone does.
    """

    def __init__(
        self,
        dim: int = 64,
        num_layers: int = 2,
        max_tokens: int = 256,
        dropout: float = 0.1,
        combine: Combine | None = None,
    ) -> None:
        super().__init__()
        self.dim = check_dim("TinyText", dim, num_layers)
        self.processor = Utf8Bytes(max_tokens)
        self.embed = nn.Embedding(BEGIN + 1, dim)
        self.layers = nn.ModuleList(MaskedConv(dim, dim) for _ in range(num_layers))
        self.hidden_layers = range(1 + num_layers) if combine else ()
        self.layer_mixing = build_layer_mixing(
            "TinyText", self.hidden_layers, combine, [dim] * (1 + num_layers), maps=False
        )
        if self.layer_mixing is not None:
            self.dim = self.layer_mixing.dim
        self.pool = MeanMax(self.dim, dropout)

    def forward(self, ids: Int[Tensor, "P T"], mask: Bool[Tensor, "P T"]) -> Encoded:  # type: ignore[override]
        """Return a token per byte."""
        tokens = self.embed(ids) * mask.unsqueeze(-1)
        states = [tokens]
        for layer in self.layers:
            tokens, mask = layer(tokens, mask)
            states.append(tokens)
        return summed_up(states, mask, self.pool, self.layer_mixing)
