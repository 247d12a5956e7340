"""Limit the memory of the opened images and sounds of all requests together: a small file may contain a large image."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from fusion_pl.serve.requests import RequestError


class OpenedMemory:
    """Memory that the opened values of the accepted requests share, and the threads that open them.

    Args:
        limit: number of bytes.
        threads: number of threads, which wait if there is no room.
    """

    def __init__(self, limit: int, threads: int) -> None:
        self.limit = limit
        self.threads = ThreadPoolExecutor(threads, "decoding")
        self._used = 0
        self._is_closed = False
        self._changed = threading.Condition()

    @contextmanager
    def reservation(self) -> Iterator[Reservation]:
        """Yield a reservation of nothing, which ends when the request is answered."""
        reservation = Reservation(self)
        try:
            yield reservation
        finally:
            reservation.end()

    def add(self, size: int) -> None:
        """Wait until there is room, and take it; a negative size gives it back.

        Raises:
            RequestError: if the server stops meanwhile.
        """
        with self._changed:
            self._changed.wait_for(lambda: size <= 0 or self._is_closed or self._used + size <= self.limit)
            if self._is_closed and size > 0:
                raise RequestError(503, "the server stops")
            self._used += size
            self._changed.notify_all()

    def close(self) -> None:
        """End the threads; none of them waits any longer."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        self.threads.shutdown()


class Reservation:
    """Memory of the values of one request.

    Attributes:
        memory: memory of which it is a part.
        size: reserved bytes.
    """

    def __init__(self, memory: OpenedMemory) -> None:
        self.memory = memory
        self.size = 0

    def reserve(self, size: int) -> None:
        """Reserve memory once; wait until other requests are answered, if there is too little.

        Raises:
            RequestError: if the request needs more than all requests together may have.
        """
        if size > self.memory.limit:
            needed, limit = (f"{number / 1e6:.0f} MB" for number in (size, self.memory.limit))
            message = (
                f"the images and sounds of the request take {needed} once they are opened, expected at most {limit}"
            )
            raise RequestError(422, f"{message}: send fewer samples, or smaller ones")
        self.memory.add(size)
        self.size = size

    def end(self) -> None:
        """Give the memory back."""
        self.memory.add(-self.size)
        self.size = 0
