"""What travels through fusion-pl, in the order in which it travels.

Shape letters mean the same everywhere: B samples of a batch, P of them that have an input, T tokens, D channels of an
input, M inputs, F fused channels, C classes, N audio samples. Every mask is **True = real**.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

SMALL = 2**20  # bytes of a tensor up to which a copy through a pipe takes less time than sharing its memory
Kind = Literal["text", "image", "audio"]


class UserError(ValueError):
    """Something the user can fix: the message says what is wrong, where, and what to do."""


class MissingFileError(UserError, FileNotFoundError):
    """A file or folder that the user named and that is not there."""


class Waveform(NamedTuple):
    """Sound as read from disk.

    Attributes:
        samples: mono, in [-1, 1].
        rate: samples a second, in Hz.
    """

    samples: Float[Tensor, " N"]
    rate: int


@dataclass(frozen=True)
class Sample:
    """One aligned example; an input it lacks is a key that ``inputs`` lacks.

    Attributes:
        id: the user's name for it, or its row.
        inputs: name of the input -> ``str``, ``PIL.Image.Image`` or ``Waveform``.
        target: index of the class, or None where it is not known.
        bad_files: what could not be read, one sentence each.
    """

    id: str
    inputs: dict[str, Any]
    target: int | None = None
    bad_files: tuple[str, ...] = field(default=())


class Batch(NamedTuple):
    """B samples, ready for the model.

    Attributes:
        inputs: name -> keyword arguments of that input's encoder. Their P rows are the samples that *have* the input,
            in the order of the batch (one blank row where none has it), so nothing is computed for a missing input.
        present: name -> which of the B samples have it.
        target: class indices, or None when predicting.
        ids: B names.
        bad_files: B times what could not be read of that sample, one sentence each.
        id_hashes: ``hash_ids`` of the ids, made by the loader; None in a batch that was put together by hand.
    """

    inputs: dict[str, dict[str, Tensor]]
    present: dict[str, Bool[Tensor, " B"]]
    target: Int[Tensor, " B"] | None
    ids: list[str]
    bad_files: list[tuple[str, ...]]
    id_hashes: Int[Tensor, " B"] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Let small tensors travel from a worker as bytes: to share memory for each costs the loader far more."""
        return _arrived, tuple(_changed(self, _packed))


def _changed(batch: Batch, change: Callable[[Any], Any]) -> Batch:
    inputs = {name: {key: change(value) for key, value in given.items()} for name, given in batch.inputs.items()}
    present = {name: change(mask) for name, mask in batch.present.items()}
    changed = {"target": change(batch.target), "id_hashes": change(batch.id_hashes)}
    return batch._replace(inputs=inputs, present=present, **changed)


def _packed(value: Tensor | None) -> Tensor | NDArray[Any] | None:
    if value is None or value.device.type != "cpu" or value.nbytes > SMALL or value.dtype == torch.bfloat16:
        return value
    return value.detach().numpy()


def _arrived(*parts: Any) -> Batch:
    return _changed(Batch(*parts), lambda value: torch.from_numpy(value) if isinstance(value, np.ndarray) else value)


def hash_ids(ids: Sequence[str]) -> Int[Tensor, " B"]:
    """Return the CRC-32 of each id, to choose samples by that are the same ones in every epoch, process and run."""
    return torch.tensor([zlib.crc32(name.encode("utf-8", "surrogatepass")) for name in ids], dtype=torch.long)


class Encoded(NamedTuple):
    """One input after its encoder.

    Attributes:
        tokens: the sequence; zeros where ``mask`` is False.
        mask: True = real token; a row of False = the sample lacks this input.
        embedding: one vector a sample; zeros where the input is missing.
        layer_weights: how much each hidden layer counted, zeros where the input is missing (None where the encoder
            does not weigh them).
    """

    tokens: Float[Tensor, "B T D"]
    mask: Bool[Tensor, "B T"]
    embedding: Float[Tensor, "B D"]
    layer_weights: Float[Tensor, "B L"] | None = None


class Fused(NamedTuple):
    """What a fusion head returns.

    Attributes:
        logits: of the classes.
        embedding: of all inputs together (None for decision-level heads).
        weights: how much each input counted, summing to 1 over the present ones (None where the head does not know).
        input_logits: each input's own decision, where the head makes them.
        extra: what only the head's own loss reads.
    """

    logits: Float[Tensor, "B C"]
    embedding: Float[Tensor, "B F"] | None = None
    weights: Float[Tensor, "B M"] | None = None
    input_logits: dict[str, Float[Tensor, "B C"]] = {}  # noqa: RUF012 - a NamedTuple default, never mutated
    extra: dict[str, Tensor] = {}  # noqa: RUF012


@runtime_checkable
class Processor(Protocol):
    """Turns opened values of one input into its encoder's keyword arguments; runs in the loader's workers.

    One of sounds may have ``crop(samples, rate, training) -> (first, end)``, which says what part of a sound it uses;
    no more of a file is read then.
    """

    kind: Kind

    def __call__(self, values: Sequence[Any], training: bool = False) -> dict[str, Tensor]:
        """Process and pad P values.

        Args:
            values: P times ``str``, ``PIL.Image.Image`` or ``Waveform``, by ``kind``.
            training: whether random crops are wanted.
        """
        ...
