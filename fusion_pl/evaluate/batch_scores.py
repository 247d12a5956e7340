"""Logits of a batch without some of its inputs, or with other values of an input."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fusion_pl.encoders import Encoder
from fusion_pl.layers import keep_rows, scatter_rows
from fusion_pl.predict import Predictor
from fusion_pl.types import Batch, Encoded


@dataclass(frozen=True)
class BatchScores:
    """Calibrated logits of a batch, whose inputs are encoded once.

    Attributes:
        predictor: trained model.
        batch: batch on the device of the model.
        encoded: output of each encoder.
    """

    predictor: Predictor
    batch: Batch
    encoded: dict[str, Encoded]

    @classmethod
    def encode(cls, predictor: Predictor, batch: Batch) -> BatchScores:
        """Encode the inputs of a batch."""
        batch = batch.to(predictor.device)
        with torch.inference_mode():
            return cls(predictor, batch, predictor.model.encode(batch))

    def of_selection(self, kept: Bool[Tensor, "B M"]) -> Float[Tensor, "B L"]:
        """Return the logits if each sample has only the inputs that it keeps."""
        masks = dict(zip(self.encoded, kept.to(self.predictor.device).unbind(1), strict=True))
        with torch.inference_mode():
            inputs = {
                name: value if torch.equal(masks[name], self.batch.present[name]) else keep_rows(value, masks[name])
                for name, value in self.encoded.items()
            }
            return self.predictor.model.calibrated_logits(inputs, masks).cpu()

    def of_values(self, name: str, tensors: Mapping[str, Tensor]) -> Float[Tensor, "B L"]:
        """Return the logits with other values of one input.

        Args:
            name: name of the input.
            tensors: output of its processor, for the samples that have the input.
        """
        encoder, present = self.predictor.model.encoders[name], self.batch.present
        assert isinstance(encoder, Encoder)
        with torch.inference_mode():
            rows = encoder(**{key: tensor.to(self.predictor.device) for key, tensor in tensors.items()})
            inputs = self.encoded | {name: scatter_rows(rows, present[name])}
            return self.predictor.model.calibrated_logits(inputs, present).cpu()
