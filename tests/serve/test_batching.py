"""When a batch starts, and which samples it has."""

from __future__ import annotations

import asyncio
import threading
from contextlib import asynccontextmanager, suppress

import pytest

from fusion_pl.serve.batching import Batcher
from fusion_pl.types import Prediction, Sample


@asynccontextmanager
async def running(predict, batch_size=4, max_wait=60.0):
    batcher = Batcher(predict, batch_size, max_wait)
    task = asyncio.create_task(batcher.run())
    async with asyncio.timeout(30):  # below max_wait
        yield batcher
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    batcher.close()


def samples(*names):
    return [Sample(name, {}) for name in names]


def echo(sizes):
    def predict(batch):
        sizes.append(len(batch))
        return [Prediction(sample.id) for sample in batch]

    return predict


def test_samples_of_concurrent_requests_share_batches():
    entered, release, sizes = threading.Event(), threading.Event(), []

    def predict(batch):
        entered.set()
        release.wait(30)
        return echo(sizes)(batch)

    async def run():
        async with running(predict) as batcher:
            first = asyncio.create_task(batcher.predict(samples("a")))
            await asyncio.to_thread(entered.wait, 30)
            others = [asyncio.create_task(batcher.predict(samples(*names))) for names in ("bcd", "ef")]
            await asyncio.sleep(0)
            release.set()
            return [[one.id for one in await task] for task in (first, *others)]

    assert asyncio.run(run()) == [["a"], ["b", "c", "d"], ["e", "f"]]
    assert sizes == [1, 4, 1]


def test_a_single_client_does_not_wait_for_others():
    async def run():
        async with running(echo([])) as batcher:
            with batcher.opening():
                pass
            return await batcher.predict(samples("a"))

    assert asyncio.run(run()) == [Prediction("a")]


@pytest.mark.parametrize(("max_wait", "expected"), [(60.0, [2]), (0.01, [1, 1])])
def test_a_batch_waits_for_requests_on_their_way_but_not_longer_than_max_wait(max_wait, expected):
    sizes = []

    async def run():
        async with running(echo(sizes), max_wait=max_wait) as batcher:

            async def request():
                with batcher.opening():  # until the first sample is answered, or, if it waits, for a moment
                    await asyncio.wait([first], timeout=0.2 if max_wait == 60 else 30)
                return await batcher.predict(samples("b"))

            second = asyncio.create_task(request())
            first = asyncio.create_task(batcher.predict(samples("a")))
            await asyncio.gather(first, second)

    asyncio.run(run())
    assert sizes == expected


def test_a_failing_batch_with_a_cancelled_request_does_not_end_the_predictions():
    entered, release = threading.Event(), threading.Event()

    def predict(batch):
        if batch[0].id == "b":
            return echo([])(batch)
        entered.set()
        release.wait(30)
        raise RuntimeError

    async def run():
        async with running(predict) as batcher:
            cancelled = asyncio.create_task(batcher.predict(samples("a")))
            await asyncio.to_thread(entered.wait, 30)
            cancelled.cancel()
            await asyncio.sleep(0)
            release.set()
            return await batcher.predict(samples("b"))

    assert asyncio.run(run()) == [Prediction("b")]
