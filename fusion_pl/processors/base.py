"""Base class of the processors, which run in the workers of the data loader."""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fusion_pl.types import UserError

Source = str | os.PathLike[str] | bytes  # path or content of a file
# A part of an opened value: start and end on each of its axes, such as characters, rows and columns, or seconds.
Span = tuple[tuple[int | float, int | float], ...]
OPEN_ERRORS = (ValueError, OSError, EOFError)  # errors of Processor.open for a value that cannot be opened


class Length(NamedTuple):
    """Length of a value, and the largest length that the encoder reads.

    Attributes:
        value: length of the whole value.
        limit: largest length; the rest of a longer value is cut off.
        unit: unit of both, such as ``tokens``.
    """

    value: float
    limit: float
    unit: str


class Processor(ABC):
    """Open the values of one input, and convert them to keyword arguments of its encoder.

    A subclass may open anything. The package has processors of texts, images and audio; to open other files:

    Example:
        >>> import io, numpy, torch
        >>> class ArrayFile(Processor):
        ...     reads_files = True
        ...
        ...     def open(self, value, training=False):
        ...         return numpy.load(io.BytesIO(value) if isinstance(value, bytes) else value)
        ...
        ...     def placeholder(self):
        ...         return numpy.zeros(3, "float32")
        ...
        ...     def __call__(self, values, training=False):
        ...         return {"vectors": torch.from_numpy(numpy.stack(values))}
        >>> ArrayFile()([ArrayFile().placeholder()])
        {'vectors': tensor([[0., 0., 0.]])}

    Attributes:
        reads_files: whether a ``str`` is the path of a file. The data module resolves the path, and checks that the
            file exists and lies inside the root folder.
        columns_needed: whether an input may be several columns of numbers, whose cell is a list of their texts (None
            for a missing number), and whether it is missing unless ``all`` or ``any`` of its cells are present; None =
            an input is one column.
        spans_are_units: whether each of the ``spans`` is a unit, such as a word; otherwise they are pieces of a
            continuous signal, which ``fusion-pl explain`` leaves out together with their neighbours.
    """

    reads_files: ClassVar[bool] = False
    spans_are_units: ClassVar[bool] = True
    columns_needed: Literal["all", "any"] | None = None

    def is_missing(self, value: Any) -> bool:
        """Return whether a value is a missing input: None, or NaN, which a data frame has in its place.

        Of a table, only lists with null or NaN in them are asked about; an empty cell is missing anyway.
        """
        return value is None or (isinstance(value, (float, np.floating)) and math.isnan(value))

    @abstractmethod
    def open(self, value: Any, training: bool = False) -> Any:
        """Open a cell of a table or a value in memory.

        Args:
            value: cell of the input's column, with an absolute path if the processor reads files; the content of a
                file as bytes, from a table or a shard; or any other value that the processor accepts, such as an array.
            training: whether the value is opened for training, where a part of it may be selected at random.

        Returns:
            An opened value, which ``__call__`` processes.

        Raises:
            UserError: if the value cannot be opened. The caller handles a ``ValueError``, ``OSError`` or ``EOFError``,
                which ``numpy.load`` may raise, in the same way.
        """

    def open_whole(self, value: Any) -> Any:
        """Open a value without selecting a part of it, to check the complete file."""
        return self.open(value)

    def length(self, value: Any) -> Length | None:
        """Return the length of a value that ``open_whole`` returned; None if nothing is cut off."""
        del value
        return None

    def estimate_length(self, value: Any) -> float:
        """Estimate, without opening a value, how long it is once opened, in any unit, for ``data.bucket_by_length``.

        Args:
            value: value that ``open`` takes.

        Returns:
            Length, such as characters or seconds; 0 if it is unknown, or equal for all values.
        """
        del value
        return 0.0

    def spans(self, value: Any, limit: int = 64) -> list[Span]:
        """Return the parts of an opened value whose effects ``fusion-pl explain`` measures; none by default.

        Args:
            value: opened value.
            limit: maximum number of parts.
        """
        del value, limit
        return []

    def occlude(self, value: Any, spans: Sequence[Span]) -> Any:
        """Return a copy of an opened value without some of its ``spans``."""
        raise NotImplementedError(f"{type(self).__name__} has spans, but no method occlude")

    def positions(self, value: Any) -> list[NDArray[np.float64]]:
        """Return which part of an opened value each position of the processed tensor is; empty if it is unknown.

        Returns:
            For each axis of the value, start and end of each position, (positions, 2): of the characters of each token;
            or of the rows and of the columns of the image. A position outside the value has equal start and end.
        """
        del value
        return []

    @abstractmethod
    def placeholder(self) -> Any:
        """Return an opened value for a batch in which no sample has the input; the encoder's output is not used."""

    def examples(self) -> list[Any]:
        """Return a short opened value and a longer one, from which ``fusion-pl export`` finds axes of variable size."""
        return [self.placeholder()]

    def runner_settings(self) -> dict[str, Any]:
        """Return what the runner of an exported model needs to open and process values without torch, as plain data.

        Returns:
            ``kind``, the name of a class of ``fusion_pl/export/preprocess.py``, and its arguments.

        Raises:
            UserError: if the runner cannot process this input.
        """
        raise UserError(
            f"the runner has no preprocessing like that of {type(self).__name__}: use --format torch, or an encoder of "
            "docs/export.md"
        )

    @abstractmethod
    def __call__(self, values: Sequence[Any], training: bool = False) -> dict[str, Tensor]:
        """Process and pad P opened values.

        Args:
            values: P results of ``open``.
            training: whether to apply random crops.
        """


def to_source(value: Any) -> Source | None:
    """Return the path or the bytes of a file, or the content of an open binary file; None for another value."""
    if isinstance(value, (str, os.PathLike, bytes)):
        return value
    content = value.read() if hasattr(value, "read") else None
    return content if isinstance(content, bytes) else None


def describe_source(source: Source, kind: str) -> str:
    """Return the path of a file, or a description of its content, for messages."""
    return f"the {kind} of {len(source)} bytes" if isinstance(source, bytes) else os.fspath(source)


def read_bytes(source: Source) -> bytes:
    """Return the content of a file."""
    return source if isinstance(source, bytes) else Path(source).read_bytes()


def describe_type(value: Any) -> str:
    """Return the type of a value, with shape and element type for arrays, for messages."""
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)  # a memoryview has the first alone
    return type(value).__name__ + (
        "" if dtype is None or shape is None else f" of shape {tuple(shape)} and type {dtype}"
    )


def check_path(name: str, processor: Processor, value: Any, open_paths: bool) -> None:
    """Check a value in memory that may be the path of a file, or contain one.

    Args:
        name: name of the input.
        processor: processor of the input.
        value: value that is to be opened.
        open_paths: whether paths are allowed.

    Raises:
        UserError: if the processor reads files, and the value or one of its parts is a path that is empty or not
            allowed.
    """
    parts = value if isinstance(value, (tuple, list)) else (value,)
    if not processor.reads_files:
        return
    if not open_paths and any(isinstance(part, (str, os.PathLike)) for part in parts):
        raise UserError(f"the input {name!r} may not be a path here: pass the content of the file as bytes")
    if isinstance(value, str) and not value:
        raise UserError(f"the path of the input {name!r} is empty: give a path, or None if it is missing")
