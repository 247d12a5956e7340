"""A small text encoder over bytes, trained from scratch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from numpy.typing import NDArray
from torch import Tensor, nn

from fusion_pl.encoders.convolution import MaskedConv, SmallEncoder
from fusion_pl.encoders.layer_mixing import Combine
from fusion_pl.processors import Length, TextProcessor
from fusion_pl.types import Encoded, UserError

BEGIN_TOKEN = 256  # id of the begin token; with it, an empty text has one token


class ByteTokenizer(TextProcessor):
    """Tokenize texts into UTF-8 bytes, which needs no vocabulary.

    Args:
        max_tokens: maximum length of a sequence, the begin token included; longer texts are truncated.
    """

    def __init__(self, max_tokens: int) -> None:
        if max_tokens < 1:
            raise UserError(f"TinyText(max_tokens={max_tokens}): expected at least 1, for the begin token")
        self.max_tokens = max_tokens

    def length(self, value: str) -> Length:
        """Return the number of tokens of a text."""
        return Length(1 + len(value.encode()), self.max_tokens, "tokens")

    def positions(self, value: str) -> list[NDArray[np.float64]]:
        """Return the character of each byte; the begin token has none."""
        ends = [(i, i + 1) for i, character in enumerate(value) for _ in character.encode()]
        return [np.array([(0, 0), *ends][: self.max_tokens], np.float64)]

    def runner_settings(self) -> dict[str, Any]:
        """Return the settings of the runner."""
        return {"kind": "ByteText", "max_tokens": self.max_tokens, "begin": BEGIN_TOKEN}

    def __call__(self, values: Sequence[Any], training: bool = False) -> dict[str, Tensor]:
        """Return ``ids`` and ``mask``, both (P, T)."""
        del training
        texts = [str(text).encode()[: self.max_tokens - 1] for text in values]
        lengths = torch.tensor([1 + len(text) for text in texts])
        ids = torch.zeros(len(texts), int(lengths.max()), dtype=torch.long)
        ids[:, 0] = BEGIN_TOKEN
        padded = b"".join(text.ljust(ids.shape[1] - 1, b"\0") for text in texts)
        if padded:  # one tensor for all texts, which is much faster than one per text
            ids[:, 1:] = torch.frombuffer(bytearray(padded), dtype=torch.uint8).view(len(texts), -1)
        return {"ids": ids, "mask": torch.arange(ids.shape[1]) < lengths.unsqueeze(1)}


class TinyText(SmallEncoder):
    """Encode texts by convolutions over their bytes; suited to short texts and their spelling rather than meaning.

    Args:
        num_layers: number of convolutions; each extends the receptive field by two bytes on both sides.
        max_tokens: maximum number of tokens: the begin token and one token per byte.
    """

    def __init__(
        self,
        dim: int = 64,
        num_layers: int = 2,
        max_tokens: int = 256,
        dropout: float = 0.1,
        combine: Combine | None = None,
    ) -> None:
        super().__init__(dim, num_layers)
        self.processor = ByteTokenizer(max_tokens)
        self.embedding = nn.Embedding(BEGIN_TOKEN + 1, dim)
        self.layers = nn.ModuleList(MaskedConv(dim, dim) for _ in range(num_layers))
        self._add_pooling([dim] * (1 + num_layers), combine, dropout)

    def differentiable_input(self) -> nn.Module:
        """Return the module that embeds bytes."""
        return self.embedding

    def forward(self, ids: Int[Tensor, "P T"], mask: Bool[Tensor, "P T"]) -> Encoded:  # type: ignore[override]
        """Encode P texts as one token per byte."""
        return self._encode_sequence(self.embedding(ids) * mask.unsqueeze(-1), mask)
