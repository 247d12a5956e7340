"""An encoder of vectors: extracted features, columns of a table, or sequences of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from fusion_pl.encoders.convolution import MaskedConv, SmallEncoder
from fusion_pl.encoders.moments import Moments
from fusion_pl.processors.features import FeatureProcessor
from fusion_pl.types import Encoded, UserError

CHUNK_VECTORS = 4096  # number of vectors whose moments are computed at once


class FeatureEncoder(SmallEncoder):
    """Encode vectors, or sequences of vectors, by a residual MLP over each vector; one token per vector.

    The input is a file (.npy, .npz, .pt, .safetensors), a column of lists, or several columns of numbers
    (``data.inputs: {sensors: [temperature, humidity]}``). Each number is standardised with its mean and standard
    deviation in the training rows, ``(x - mean) / std``, which the checkpoint contains; a constant number becomes 0.

    Args:
        features: number of numbers F per vector.
        dim: number of channels D, a multiple of 8.
        num_layers: number of layers after the linear projection.
        width: number of consecutive vectors that a layer reads, odd; 1 = the order of the vectors has no effect.
        max_tokens: maximum number of vectors; longer sequences are truncated.
        dropout: probability that a pooled channel is dropped, in training.
        key: name of the array in files with several arrays.
        missing_numbers: ``input``: if a number is missing, the whole input is missing. ``flag``: the mean replaces the
            number, and a flag per number tells the encoder whether it is missing.
        standardise: whether to standardise; if not, a missing number is replaced by 0.
    """

    processor: FeatureProcessor

    def __init__(  # noqa: PLR0913, PLR0917 - the options of one class in a configuration
        self,
        features: int,
        dim: int = 64,
        num_layers: int = 2,
        width: int = 1,
        max_tokens: int = 512,
        dropout: float = 0.1,
        key: str | None = None,
        missing_numbers: Literal["input", "flag"] = "input",
        standardise: bool = True,
    ) -> None:
        super().__init__(dim, num_layers)
        for name, number in (("features", features), ("max_tokens", max_tokens)):
            if number < 1:
                raise UserError(f"FeatureEncoder({name}={number}): expected 1 or more")
        if width < 1 or width % 2 == 0:
            raise UserError(f"FeatureEncoder(width={width}): expected an odd number, such as 1 or 5")
        self.standardise = standardise
        self.processor = FeatureProcessor(features, max_tokens, key, missing_numbers)
        self.projection = nn.Linear(self.processor.width, dim)
        self.layers = nn.ModuleList(MaskedConv(dim, dim, width) for _ in range(num_layers))
        self._add_pooling([dim] * (1 + num_layers), None, dropout)

    def fit_statistics(self, values: Iterable[Tensor]) -> None:
        """Compute mean and standard deviation of the training values; missing numbers do not count."""
        if not self.standardise:
            return
        processor, moments, chunk, size = self.processor, Moments(self.processor.features), list[Tensor](), 0
        for value in values:
            chunk.append(value.reshape(-1, processor.features)[: processor.max_tokens].double())
            size += len(chunk[-1])
            if size >= CHUNK_VECTORS:
                moments.update(torch.cat(chunk))
                chunk, size = [], 0
        if chunk:
            moments.update(torch.cat(chunk))
        processor.mean, processor.std = moments.mean, moments.std

    def forward(  # type: ignore[override]
        self, vectors: Float[Tensor, "P T F"], mask: Bool[Tensor, "P T"]
    ) -> Encoded:
        """Encode P sequences of standardised vectors as one token per vector."""
        tokens = self.projection(vectors.to(self.projection.weight.dtype))
        return self._encode_sequence(tokens * mask.unsqueeze(-1), mask)

    def get_extra_state(self) -> Float[Tensor, "2 F"]:
        """Return mean and standard deviation for the checkpoint.

        They are no buffers, because a model in half precision would round them.
        """
        return torch.stack([self.processor.mean, self.processor.std])

    def set_extra_state(self, state: Any) -> None:
        """Restore mean and standard deviation.

        Raises:
            UserError: if they are damaged.
        """
        shape = (2, self.processor.features)
        if not (isinstance(state, Tensor) and state.shape == shape and state.isfinite().all() and (state[1] > 0).all()):
            raise UserError(f"mean and standard deviation of a FeatureEncoder are damaged: expected {shape} numbers")
        self.processor.mean, self.processor.std = state.double().cpu().clone().unbind()
