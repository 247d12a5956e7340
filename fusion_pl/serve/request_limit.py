"""Limit the number of requests that wait for an answer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from fusion_pl.serve.requests import RequestError


class RequestLimit:
    """Count the accepted requests while their bodies are read and opened and their answers are computed.

    Args:
        maximum: largest number of accepted requests that are not answered yet.
    """

    def __init__(self, maximum: int) -> None:
        self.maximum = maximum
        self._accepted = 0

    @contextmanager
    def accept(self) -> Iterator[None]:
        """Count a request as accepted within the context.

        Raises:
            RequestError: if the largest number of requests is accepted already.
        """
        if self._accepted >= self.maximum:
            raise RequestError(429, "too many requests wait for an answer: try again", {"Retry-After": "1"})
        self._accepted += 1
        try:
            yield
        finally:
            self._accepted -= 1
