"""Convert Arrow values to cells of a manifest, see ``fusion_pl.tables.table.Table.cell``."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from typing import Any


def cell_converter(kind: Any) -> Callable[[Any], Any]:
    """Return the function that converts a scalar of an Arrow type, which is not null, to a cell."""
    from pyarrow import types

    converters: list[tuple[Callable[[Any], bool], Callable[[Any], Any]]] = [
        (lambda kind: is_string(kind) or types.is_null(kind), _decode),
        (lambda kind: types.is_integer(kind) or types.is_decimal(kind), lambda scalar: str(scalar.as_py())),
        (types.is_floating, _format_float),
        (types.is_boolean, lambda scalar: "true" if scalar.as_py() else "false"),
        (types.is_temporal, lambda scalar: str(scalar.cast("string"))),
        (is_media, _media_content),
    ]
    return next((convert for is_kind, convert in converters if is_kind(kind)), _python_value)


def convert_array(array: Any) -> list[Any]:
    """Return the cells of an Arrow array."""
    if is_string(array.type):
        with suppress(UnicodeDecodeError):
            return list(array.to_pylist())
    convert = cell_converter(array.type)
    return [convert(scalar) if scalar.is_valid else None for scalar in array]


def is_string(kind: Any) -> bool:
    """Return whether an Arrow type is text."""
    from pyarrow import types

    return bool(types.is_string(kind) or types.is_large_string(kind))


def is_media(kind: Any) -> bool:
    """Return whether an Arrow type is that of images and audio in Hugging Face data sets: bytes, and a text as path."""
    from pyarrow import types

    if not types.is_struct(kind) or sorted(item.name for item in kind) != ["bytes", "path"]:
        return False
    content, path = kind.field("bytes").type, kind.field("path").type
    is_bytes = types.is_binary(content) or types.is_large_binary(content) or types.is_fixed_size_binary(content)
    return (is_bytes or types.is_null(content)) and (is_string(path) or types.is_null(path))


def is_text(kind: Any) -> bool:
    """Return whether all cells of an Arrow type are text, numbers, booleans or dates."""
    return cell_converter(kind) not in (_media_content, _python_value)


def _decode(scalar: Any) -> str:
    """Decode UTF-8; half surrogate pairs, which JSON may contain, and invalid bytes become half surrogate pairs."""
    buffer = scalar.as_buffer()
    try:
        return str(buffer, "utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return str(buffer, "utf-8", "surrogateescape")


def _format_float(scalar: Any) -> str | None:
    """Return the shortest text of a number in its precision; None if it is NaN."""
    value = scalar.as_py()
    return None if math.isnan(value) else str(scalar.type.to_pandas_dtype()(value))


def _media_content(scalar: Any) -> Any:
    content = scalar.as_py()
    return content["path"] if content["bytes"] is None else content["bytes"]


def _python_value(scalar: Any) -> Any:
    return scalar.as_py()
