"""Open vectors and sequences of vectors, and standardise them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from fusion_pl.processors.array_files import read_array, to_tensor
from fusion_pl.processors.base import Length, Processor, Span, describe_source, describe_type, to_source
from fusion_pl.types import UserError

MAX_MAGNITUDE = torch.finfo(torch.float32).max


class FeatureProcessor(Processor):
    """Open vectors or sequences of vectors, and standardise them: ``(x - mean) / std``.

    The encoder sets mean and standard deviation. The values are standardised here, in double precision, because a lower
    one would lose small differences of large numbers.

    Args:
        features: number of numbers F per vector.
        max_tokens: maximum number of vectors; longer sequences are truncated.
        key: name of the array in files with several arrays.
        missing_numbers: ``input``: a vector of which a number is missing is a missing input. ``flag``: the number is
            replaced by the mean, and F numbers that are 1 if a number is missing, else 0, are added to each vector.

    Attributes:
        mean: mean of each number.
        std: standard deviation of each number, not 0.
    """

    reads_files = True

    def __init__(
        self, features: int, max_tokens: int, key: str | None, missing_numbers: Literal["input", "flag"]
    ) -> None:
        self.features = features
        self.max_tokens = max_tokens
        self.key = key
        self.has_flags = missing_numbers == "flag"
        self.columns_needed = "any" if self.has_flags else "all"
        self.mean = torch.zeros(features, dtype=torch.float64)
        self.std = torch.ones(features, dtype=torch.float64)

    @property
    def width(self) -> int:
        """Number of numbers per vector that the encoder reads, flags included."""
        return 2 * self.features if self.has_flags else self.features

    def is_missing(self, value: Any) -> bool:
        """Return whether a value is a missing input: None, NaN, or a list some or all of whose numbers are."""
        if not isinstance(value, (list, tuple)):
            return super().is_missing(value)
        rows = [row if isinstance(row, (list, tuple)) else [row] for row in value]
        missing = [Processor.is_missing(self, number) for row in rows for number in row]
        return any(missing) and (all(missing) or not self.has_flags)

    def open(self, value: Any, training: bool = False) -> Float[Tensor, "*T F"]:
        """Open one vector (F,) or a sequence of vectors (T, F).

        Args:
            value: path, bytes or open binary file of an .npy, .npz, .pt or .safetensors file; an array or a tensor; a
                list of F numbers, or of their texts, or of T such lists. A missing number is None or NaN in a list.
            training: not used.

        Returns:
            A floating-point tensor; missing numbers are NaN. Of an .npy file, ``max_tokens`` vectors are read.

        Raises:
            UserError: if a file cannot be read, the shape is wrong, a number is infinite, or one is NaN in an array.
        """
        del training
        return self._open(value, self.max_tokens)

    def open_whole(self, value: Any) -> Float[Tensor, "*T F"]:
        """Open all vectors of a sequence."""
        return self._open(value, None)

    def _open(self, value: Any, max_rows: int | None) -> Float[Tensor, "*T F"]:
        source = to_source(value)
        missing: Tensor | None = None
        name = "the input"
        if source is not None:
            name = describe_source(source, "array")
            numbers = read_array(source, self.key, max_rows)
        elif isinstance(value, Tensor):
            numbers = value.detach().cpu()
        elif isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
            numbers = to_tensor(value)
        elif isinstance(value, (list, tuple, int, float)):
            numbers, missing = _parse_numbers(value if isinstance(value, (list, tuple)) else [value])
        else:
            raise UserError(f"a feature input takes a path, bytes, an array or a list, got {describe_type(value)}")
        if not numbers.is_floating_point() or numbers.dtype.itemsize < 4:
            numbers = numbers.to(torch.float32 if numbers.dtype.itemsize < 4 else torch.float64)
        self._check_shape(numbers, name)
        self._check_finite(numbers, missing, name)
        return numbers

    def _check_shape(self, numbers: Tensor, name: str) -> None:
        shape, features = tuple(numbers.shape), self.features
        if len(shape) not in (1, 2) or shape[-1] != features:
            expected = f"expected {features} numbers, or T vectors of {features} numbers"
            fix = f"correct it, or set features of the FeatureEncoder to {shape[-1]}" if shape else "correct it"
            what = f"{shape[0]} numbers" if len(shape) == 1 else f"the shape {shape}"
            raise UserError(f"{name} has {what}, {expected}: {fix}")
        if not shape[0]:
            raise UserError(f"{name} has no vectors: replace it or leave this input out")

    def _check_finite(self, numbers: Tensor, missing: Tensor | None, name: str) -> None:
        wrong = ~(numbers.abs() <= MAX_MAGNITUDE)  # also NaN, and with it missing numbers
        if not bool(wrong.any()):
            return
        if missing is not None:
            if bool(missing.any()) and not self.has_flags:
                raise UserError(
                    f"{name} lacks number {_position(missing)}: leave the whole input out, or train with "
                    "missing_numbers: flag"
                )
            wrong &= ~missing
        if bool(wrong.any()):
            number = float(numbers[wrong][0])
            raise UserError(
                f"{name} has {number:g} as number {_position(wrong)}, expected a finite number in single precision: "
                "correct it or leave it out"
            )

    def length(self, value: Tensor) -> Length | None:
        """Return the number of vectors of a sequence, and the largest one that is read."""
        return Length(len(value), self.max_tokens, "vectors") if value.dim() == 2 else None

    def spans(self, value: Tensor, limit: int = 64) -> list[Span]:
        """Return each number of a vector, or each vector of a sequence; several each if there are too many."""
        starts = range(0, len(value), math.ceil(len(value) / limit))
        return [((start, end),) for start, end in pairwise([*starts, len(value)])]

    def occlude(self, value: Tensor, spans: Sequence[Span]) -> Tensor:
        """Return the vector or the sequence with the means of the training in place of some numbers or vectors."""
        occluded = value.clone()
        for ((start, end),) in spans:
            rows = slice(int(start), int(end))
            occluded[rows] = (self.mean[rows] if value.dim() == 1 else self.mean).to(value.dtype)
        return occluded

    def placeholder(self) -> Float[Tensor, " F"]:
        """Return the mean."""
        return self.mean

    def examples(self) -> list[Float[Tensor, "T F"]]:
        """Return one vector, and a sequence of three if sequences are possible."""
        return [self.mean.repeat(length, 1) for length in (1, 3)]

    def runner_settings(self) -> dict[str, Any]:
        """Return the settings of the runner."""
        moments = {"mean": self.mean.tolist(), "std": self.std.tolist()}
        return {"kind": "Vectors", "max_tokens": self.max_tokens, "key": self.key, "flags": self.has_flags} | moments

    def __call__(self, values: Sequence[Any], training: bool = False) -> dict[str, Tensor]:
        """Return standardised ``vectors`` (P, T, F or 2 F with flags), zeros in the padding, and ``mask`` (P, T)."""
        del training
        sequences = [value.reshape(-1, self.features)[: self.max_tokens] for value in values]
        lengths = torch.tensor([len(sequence) for sequence in sequences])
        padded = pad_sequence([sequence.double() for sequence in sequences], batch_first=True)
        mask = torch.arange(padded.shape[1]) < lengths.unsqueeze(1)
        return {"vectors": self.standardise(padded).float().masked_fill(~mask.unsqueeze(-1), 0), "mask": mask}

    def standardise(self, vectors: Float[Tensor, "P T F"]) -> Float[Tensor, "P T F2"]:
        """Subtract the mean, divide by the standard deviation and, if missing numbers have flags, add the flags."""
        vectors = (vectors - self.mean) / self.std
        if not self.has_flags:
            return vectors
        missing: Bool[Tensor, "P T F"] = vectors.isnan()
        return torch.cat([vectors.masked_fill(missing, 0), missing.to(vectors.dtype)], dim=-1)


def _parse_numbers(value: Sequence[Any]) -> tuple[Tensor, Tensor]:
    """Return the numbers of a list, or of a list of lists, and a mask of the missing ones, which are NaN."""
    try:
        numbers = np.array(value, dtype=np.float64)
    except (ValueError, TypeError, OverflowError) as error:
        rows = value if all(isinstance(row, (list, tuple)) for row in value) else [value]
        for row in rows:
            for position, number in enumerate(row, start=1):
                _check_number(number, position)
        raise UserError("the input is a list of lists of different lengths, expected T lists of one length") from error
    missing = np.zeros(numbers.shape, bool)
    if np.isnan(numbers).any():
        is_text = np.vectorize(lambda number: isinstance(number, str), otypes=[bool])
        missing = np.isnan(numbers) & ~is_text(np.array(value, dtype=object))
    return torch.from_numpy(numbers), torch.from_numpy(missing)


def _check_number(number: Any, position: int) -> None:
    if number is None:
        return
    try:
        float(number)
    except (ValueError, TypeError, OverflowError) as error:
        raise UserError(f"the input has {number!r} as number {position}, expected a number") from error


def _position(mask: Tensor) -> str:
    """Return the position of the first true element, counted from 1."""
    *vector, number = (int(index) + 1 for index in mask.nonzero()[0])
    return f"{number} of vector {vector[0]}" if vector else str(number)
