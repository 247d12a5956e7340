"""Combine the samples of concurrent requests to batches."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from fusion_pl.messages import is_failure
from fusion_pl.types import Prediction, Sample

Predict = Callable[[Sequence[Sample]], list[Prediction]]


class BatchFailedError(Exception):
    """The function that predicts a batch has failed; the cause is its error."""


class Batcher:
    """Predict the samples of concurrent requests in batches, in one thread.

    A batch starts as soon as the thread is free and the batch is full, or no other accepted request is still being
    read and opened, or ``max_wait`` is over. A single client therefore never waits for others.

    Args:
        predict: function that returns one prediction per sample.
        batch_size: largest number of samples per batch.
        max_wait: seconds that a sample waits for others.
    """

    def __init__(self, predict: Predict, batch_size: int, max_wait: float) -> None:
        self.predict_batch = predict
        self.batch_size = batch_size
        self.max_wait = max_wait
        self._opening = 0  # accepted requests whose samples are not in the queue yet
        self._queue: deque[tuple[Sample, asyncio.Future[Prediction]]] = deque()
        self._changed = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, "inference")

    @contextmanager
    def opening(self) -> Iterator[None]:
        """Let batches wait for the samples of a request while its values are read and opened."""
        self._opening += 1
        try:
            yield
        finally:
            self._opening -= 1
            self._changed.set()

    async def predict(self, samples: Sequence[Sample]) -> list[Prediction]:
        """Return one prediction per sample."""
        loop = asyncio.get_running_loop()
        futures: list[asyncio.Future[Prediction]] = [loop.create_future() for _ in samples]
        self._queue.extend(zip(samples, futures, strict=True))
        self._changed.set()
        return list(await asyncio.gather(*futures))

    async def run(self) -> None:
        """Predict batches until the task is cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await self._wait_for_batch()
            batch = [self._queue.popleft() for _ in range(min(self.batch_size, len(self._queue)))]
            samples = [sample for sample, _ in batch]
            try:
                predictions = await loop.run_in_executor(self._thread, self.predict_batch, samples)
            except BaseException as error:  # the requests of this batch fail, the next batch is predicted
                if not is_failure(error):
                    raise
                for _, future in batch:
                    if not future.done():  # the request may have been cancelled
                        failed = BatchFailedError()
                        failed.__cause__ = error
                        future.set_exception(failed)
                continue
            for (_, future), prediction in zip(batch, predictions, strict=True):
                if not future.done():  # the request may have been cancelled
                    future.set_result(prediction)

    async def _wait_for_batch(self) -> None:
        loop = asyncio.get_running_loop()
        while not self._queue:
            self._changed.clear()
            await self._changed.wait()
        deadline = loop.time() + self.max_wait
        while len(self._queue) < self.batch_size and self._opening and loop.time() < deadline:
            self._changed.clear()
            try:
                async with asyncio.timeout_at(deadline):
                    await self._changed.wait()
            except TimeoutError:
                return

    def close(self) -> None:
        """End the thread after its current batch."""
        self._thread.shutdown()
