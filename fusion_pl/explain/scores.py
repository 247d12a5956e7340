"""Scores of one sample without some of its inputs, or with another value of an input."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor

from fusion_pl.data.collate import Collate, process_values
from fusion_pl.encoders import Encoder
from fusion_pl.predict import Predictor
from fusion_pl.types import Encoded, Sample, Waveform

MAX_ROWS = 64  # number of rows that an encoder or a head gets at once
MAX_BYTES = 2**28  # memory of opened values that are processed at once


@dataclass(frozen=True)
class SampleScores:
    """Logits of one sample, for any subset of its inputs or other values of one input; the others are encoded once.

    Attributes:
        predictor: trained model.
        sample: opened values of the sample.
        encoded: output of each encoder, one row.
        names: names of the inputs that the sample has.
    """

    predictor: Predictor
    sample: Sample
    encoded: dict[str, Encoded]
    names: list[str]

    @classmethod
    def encode(cls, predictor: Predictor, sample: Sample) -> SampleScores:
        """Encode the inputs of a sample."""
        batch = Collate(predictor.processors)([sample]).to(predictor.device)
        with torch.no_grad():
            encoded = predictor.model.encode(batch)
        return cls(predictor, sample, encoded, [name for name in predictor.processors if name in sample.inputs])

    def encoder(self, name: str) -> Encoder:
        """Return the encoder of an input."""
        encoder = self.predictor.model.encoders[name]
        assert isinstance(encoder, Encoder)
        return encoder

    def of_subsets(self, subsets: Bool[Tensor, "S M"]) -> Float[Tensor, "S L"]:
        """Return the logits with subsets of the inputs ``names``, True = the head gets the input."""
        logits = []
        for start in range(0, len(subsets), MAX_ROWS):
            rows = subsets[start : start + MAX_ROWS].to(self.predictor.device)
            given = dict(zip(self.names, rows.unbind(1), strict=True))
            present = {name: given.get(name, rows.new_zeros(len(rows))) for name in self.encoded}
            with torch.no_grad():
                inputs = {name: _repeat(value, present[name]) for name, value in self.encoded.items()}
                logits.append(self.predictor.model.calibrated_logits(inputs, present).cpu())
        return torch.cat(logits)

    def of_values(self, name: str, values: Iterable[Any]) -> Float[Tensor, "S L"]:
        """Return the logits with other opened values of one input, which are as large as that of the sample."""
        logits, processor = [], self.predictor.processors[name]
        size, remaining = max(1, num_bytes(self.sample.inputs[name])), iter(values)
        rows_at_once = min(MAX_ROWS, max(1, MAX_BYTES // size))
        while chunk := list(islice(remaining, rows_at_once)):
            rows: Any = process_values(processor, name, chunk, [self.sample.id])
            tensors = {key: tensor.to(self.predictor.device) for key, tensor in rows.items()}
            with torch.no_grad():
                replaced = self.encoder(name)(**tensors)
                logits.append(self.fuse_with(name, replaced).cpu())
        return torch.cat(logits)

    def fuse_with(self, name: str, replaced: Encoded) -> Float[Tensor, "S L"]:
        """Return the logits with S outputs of the encoder of one input."""
        rows = torch.ones(len(replaced.embedding), dtype=torch.bool, device=replaced.embedding.device)
        present = {other: rows & (other in self.names) for other in self.encoded}
        inputs = {other: _repeat(value, present[other]) for other, value in self.encoded.items()}
        return self.predictor.model.calibrated_logits(inputs | {name: replaced}, present)

    def log_odds(self, logits: Float[Tensor, "S L"], index: int) -> Float[Tensor, " S"]:
        """Return the log-odds of a class, on the CPU: an Apple GPU has no double precision."""
        return self.predictor.task.log_odds(logits.cpu(), index)


def num_bytes(value: Any) -> int:
    """Return the memory of an opened picture or sound; other values are small."""
    if isinstance(value, Image.Image):
        return value.width * value.height * len(value.getbands())
    return value.samples.nbytes if isinstance(value, Waveform) else 0


def _repeat(encoded: Encoded, keep: Bool[Tensor, " S"]) -> Encoded:
    """Repeat one row of an encoder's output, as a missing input where ``keep`` is False."""

    def repeat(rows: Tensor) -> Tensor:
        shape = [1] * (rows.dim() - 1)
        return rows.expand(len(keep), *rows.shape[1:]).masked_fill(~keep.view(-1, *shape), 0)

    tokens, mask, embedding, weights = encoded
    return Encoded(repeat(tokens), repeat(mask), repeat(embedding), None if weights is None else repeat(weights))
