"""Traverse nested plain data: of untrusted files, with limits on depth and size, and for JSON, which lacks NaN."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import repeat
from typing import Any


class NestingError(ValueError):
    """Data is nested too deeply, or has too many values."""


def walk(value: Any, max_depth: int, max_values: int) -> Iterator[tuple[Any, Any]]:
    """Yield every value of nested dictionaries, lists and tuples with its key; items of a list have the list's key.

    Args:
        value: the outermost value, whose key is ``""``.
        max_depth: maximum depth of nested containers.
        max_values: maximum number of values, including containers.

    Raises:
        NestingError: if a limit is exceeded, as for a list that contains itself.

    Example:
        >>> list(walk({"a": [1, 2]}, max_depth=2, max_values=10))
        [('', {'a': [1, 2]}), ('a', [1, 2]), ('a', 1), ('a', 2)]
    """
    stack: list[Iterator[tuple[Any, Any]]] = [iter([("", value)])]
    count = 0
    while stack:
        item = next(stack[-1], None)
        if item is None:
            stack.pop()
            continue
        count += 1
        if count > max_values or len(stack) > max_depth + 1:
            raise NestingError("the data is nested too deeply, or has too many values")
        yield item
        key, content = item
        if isinstance(content, dict):
            stack.append(iter(content.items()))
        elif isinstance(content, (list, tuple)):
            stack.append(zip(repeat(key), content))  # no strict: repeat is infinite


def replace_non_finite(value: Any) -> Any:
    """Return plain data with None in place of NaN and infinite numbers, which JSON lacks.

    Example:
        >>> replace_non_finite({"coverage": float("nan"), "interval": (0.5, float("inf"))})
        {'coverage': None, 'interval': [0.5, None]}
    """
    if isinstance(value, dict):
        return {key: replace_non_finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [replace_non_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
