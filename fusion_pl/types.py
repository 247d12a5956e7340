"""Data types, in the order of the data flow.

Shape letters have the same meaning everywhere: B samples of a batch, P of them that have an input, T tokens, D channels
of an input, M inputs, F fused channels, C classes, N audio samples. In every mask **True = real**.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

MAX_PIPED_BYTES = 2**20  # up to this size, copying a tensor through a pipe is faster than shared memory


class UserError(ValueError):
    """An error that the user can fix: the message says what is wrong, where, and what to do."""


class MissingFileError(UserError, FileNotFoundError):
    """A file or folder that the user gave does not exist."""


class Waveform(NamedTuple):
    """A mono audio clip.

    Attributes:
        samples: N audio samples in [-1, 1].
        rate: sampling rate in Hz.
    """

    samples: Float[Tensor, " N"]
    rate: int


@dataclass(frozen=True)
class Sample:
    """One multimodal sample.

    Attributes:
        id: value of the table's id column, or the row number.
        inputs: name of the input -> value opened by its processor, such as a ``str``, ``PIL.Image.Image`` or
            ``Waveform``; missing inputs have no key.
        target: index of the class; or per class 1, 0 or -1 (unknown); None in prediction.
        bad_files: one message per file that could not be read.
    """

    id: str
    inputs: dict[str, Any]
    target: int | list[int] | None = None
    bad_files: tuple[str, ...] = ()


class Batch(NamedTuple):
    """A batch of B samples, as input of the model.

    Attributes:
        inputs: name of the input -> keyword arguments of its encoder, or the encoder's output. Their P rows are the
            samples that have the input, in the order of the batch (one placeholder row if no sample has it), so that
            encoders skip missing inputs.
        present: name of the input -> presence mask, True for samples that have the input.
        target: class indices; or per class 1, 0 or -1 (unknown); None in prediction.
        ids: ids of the B samples.
        bad_files: one tuple of messages about unreadable files per sample.
        id_hashes: ``hash_ids`` of the ids, computed by the loader; None in batches from other sources.
    """

    inputs: dict[str, dict[str, Tensor] | Encoded]
    present: dict[str, Bool[Tensor, " B"]]
    target: Int[Tensor, "B *K"] | None
    ids: list[str]
    bad_files: list[tuple[str, ...]]
    id_hashes: Int[Tensor, " B"] | None = None

    def to(self, device: torch.device) -> Batch:
        """Return the batch with its tensors on a device; ids and messages stay."""
        non_blocking = device.type not in ("cpu", "mps")
        return _map_tensors(
            self, lambda tensor: None if tensor is None else tensor.to(device, non_blocking=non_blocking)
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle small tensors as bytes, which is much faster than a shared memory block per tensor."""
        return _from_numpy, tuple(_map_tensors(self, _to_numpy))


def _map_tensors(batch: Batch, function: Callable[[Any], Any]) -> Batch:
    return batch._replace(
        inputs={name: _map_input(value, function) for name, value in batch.inputs.items()},
        present={name: function(mask) for name, mask in batch.present.items()},
        target=function(batch.target),
        id_hashes=function(batch.id_hashes),
    )


def _map_input(value: dict[str, Tensor] | Encoded, function: Callable[[Any], Any]) -> dict[str, Any] | Encoded:
    if isinstance(value, Encoded):
        return Encoded(*map(function, value))
    return {key: function(tensor) for key, tensor in value.items()}


def _to_numpy(value: Tensor | None) -> Tensor | NDArray[Any] | None:
    if value is None or value.device.type != "cpu" or value.nbytes > MAX_PIPED_BYTES or value.dtype == torch.bfloat16:
        return value
    return value.detach().numpy()


def _from_numpy(*fields: Any) -> Batch:
    return _map_tensors(
        Batch(*fields), lambda value: torch.from_numpy(value) if isinstance(value, np.ndarray) else value
    )


def hash_ids(ids: Sequence[str]) -> Int[Tensor, " B"]:
    """Return the CRC-32 of each id, to select the same samples in every epoch, process and run."""
    return torch.tensor([zlib.crc32(name.encode("utf-8", "surrogatepass")) for name in ids], dtype=torch.long)


class Encoded(NamedTuple):
    """Output of an encoder.

    Attributes:
        tokens: sequence of tokens; zeros where ``mask`` is False.
        mask: True = real token; all False if the sample does not have the input.
        embedding: pooled embedding; zeros if the input is missing.
        layer_weights: weight of each mixed hidden layer, zeros if the input is missing; None without such weights.
    """

    tokens: Float[Tensor, "B T D"]
    mask: Bool[Tensor, "B T"]
    embedding: Float[Tensor, "B D"]
    layer_weights: Float[Tensor, "B L"] | None = None


class Fused(NamedTuple):
    """Output of a fusion head.

    Attributes:
        logits: class logits.
        embedding: fused embedding (None for decision-level heads).
        weights: input weights, which sum to 1 over the present inputs (None if the head returns none).
        input_logits: name of the input -> logits of its unimodal classifier; empty if the head has none.
        extra: name -> further tensor that the loss of the head needs.
    """

    logits: Float[Tensor, "B C"]
    embedding: Float[Tensor, "B F"] | None = None
    weights: Float[Tensor, "B M"] | None = None
    input_logits: dict[str, Float[Tensor, "B C"]] = {}  # noqa: RUF012 - a NamedTuple default, never mutated
    extra: dict[str, Tensor] = {}  # noqa: RUF012


@dataclass(frozen=True)
class Prediction:
    """The class that the model predicts for one sample.

    Attributes:
        id: id of the sample.
        label: name of the predicted class; None if there is an ``error``, or if the task decides for several labels.
        probability: probability of the predicted class.
        labels: names of the predicted labels, if the task decides for several.
        probabilities: class name -> probability.
        set: names of the classes in the prediction set; None without ``coverage``.
        abstained: whether the model has too much doubt for a label; None without ``abstain``.
        outlier_p_values: input name -> p-value, near 0 if the input is unlike the data of the training, None if it
            is missing; and all names joined by ``+`` -> p-value of the fused embedding. None without ``outliers``.
        embedding: fused embedding of the sample; None unless it was asked for.
        weights: input name -> input weight; None if the fusion head returns none. A missing input has weight 0, unless
            the model was trained with ``missing: token``, which gives its learned embedding a weight.
        error: message that says why there is no prediction; None if there is a prediction.
    """

    id: str
    label: str | None = None
    probability: float | None = None
    labels: list[str] | None = None
    probabilities: dict[str, float] | None = None
    set: list[str] | None = None
    abstained: bool | None = None
    outlier_p_values: dict[str, float | None] | None = None
    embedding: list[float] | None = None
    weights: dict[str, float] | None = None
    error: str | None = None

    @property
    def names(self) -> list[str]:
        """Names of the predicted class or labels; empty if there is an ``error``."""
        return self.labels if self.labels is not None else [self.label] if self.label is not None else []
