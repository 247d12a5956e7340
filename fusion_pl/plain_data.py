"""Traversal of nested plain data from untrusted files, with limits on depth and size."""

from __future__ import annotations

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
