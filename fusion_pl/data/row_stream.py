"""Read the rows of a split one after another, in an order that depends only on seed and epoch.

The main process reads. Its sampler yields rows, with unopened content, in place of indices, so that the order is the
same for any number of loader workers, and a run that is resumed leaves out the rows that it was trained on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import chain, cycle, islice
from queue import Empty, Queue
from threading import Event, Thread
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch.utils.data.distributed import DistributedSampler

from fusion_pl.data.hub_splits import find_class_names, write_class_names
from fusion_pl.messages import error_reason
from fusion_pl.processes import abandon
from fusion_pl.tables.arrow_file import simplify
from fusion_pl.tables.table import Table
from fusion_pl.types import UserError

CHUNK_ROWS = 32  # rows that are read, and passed to the main thread, at once
MAX_SHARDS = 1000  # more files are joined to shards of several files
CHUNKS_AHEAD = 4  # chunks that are read before they are needed

T = TypeVar("T")


class StreamRow(NamedTuple):
    """Row of a stream.

    Attributes:
        epoch: epoch in which it is used.
        shard: number of its shard, from 1; 0 if the stream has only one.
        number: number of the row in its shard, from 1.
        content: its cells, as an Arrow record batch without schema.
    """

    epoch: int
    shard: int
    number: int
    content: bytes

    @property
    def place(self) -> str:
        """Shard and row number, for messages."""
        return f"shard {self.shard}, row {self.number}" if self.shard else f"row {self.number}"

    @property
    def id(self) -> str:
        """Id of a sample without a cell in the column ``id``, which is the same in each epoch."""
        return f"{self.shard}-{self.number}" if self.shard else str(self.number)


class RowStream:
    """Rows of a split of a ``datasets.IterableDataset``, which are read anew in each epoch.

    Args:
        name: data set and split, for messages.
        part: the split.
        columns: columns that are used.
        is_used: function that returns for each row of a table whether it is used.
    """

    def __init__(
        self,
        name: str,
        part: Any,
        columns: list[str],
        is_used: Callable[[Table], NDArray[np.bool_]] | None = None,
    ) -> None:
        self.name, self.columns, self.is_used = name, columns, is_used
        self.part = part.with_format("arrow")  # decodes no images and no audio
        self.class_names = {
            column: names for column, names in find_class_names(part.features).items() if column in columns
        }
        self.schema = self._prepare(part.features.arrow_schema.empty_table()).schema
        self.num_shards = min(int(part.num_shards), MAX_SHARDS)

    def read(self, epoch: int = 0) -> Iterator[StreamRow]:
        """Yield the rows in the stored order.

        Raises:
            UserError: if they cannot be read.
        """
        for shard in range(self.num_shards):
            yield from self._read_shard(shard, epoch)

    def read_shuffled(self, epoch: int, seed: int, buffer_size: int) -> Iterator[StreamRow]:
        """Yield the rows of shards in random order, each drawn from a buffer of the next rows.

        ``IterableDataset.shuffle`` has another order in each version of ``datasets``, does not tell which row it
        yields, and cannot have 2 GiB in its buffer.
        """
        rng = np.random.default_rng([seed, epoch])
        order = rng.permutation(self.num_shards).tolist()
        rows = chain.from_iterable(self._read_shard(shard, epoch) for shard in order)
        buffer = list(islice(rows, buffer_size))
        for row in rows:
            index = int(rng.integers(buffer_size))
            yield buffer[index]
            buffer[index] = row
        for index in rng.permutation(len(buffer)).tolist():
            yield buffer[index]

    def _read_shard(self, shard: int, epoch: int) -> Iterator[StreamRow]:
        number, label = 0, shard + 1 if self.num_shards > 1 else 0
        try:
            for chunk in self.part.shard(self.num_shards, shard).iter(CHUNK_ROWS):
                data = self._prepare(chunk).cast(self.schema)
                slices = (batch.slice(index, 1) for batch in data.to_batches() for index in range(len(batch)))
                for is_used, row in zip(self._find_used(data), slices, strict=True):
                    number += 1
                    if is_used:  # serialized, because a slice would keep all rows of its file in memory
                        yield StreamRow(epoch, label, number, row.serialize().to_pybytes())
        except Exception as error:  # each format and each file system has its own classes of errors
            raise UserError(
                f"{self.name} cannot be read after row {number} of shard {shard + 1} of {self.num_shards} "
                f"({error_reason(error)}): check the connection and the files, then continue (fit: "
                "with --ckpt_path last)"
            ) from error

    def _prepare(self, chunk: Any) -> Any:
        """Return the columns that are used, with plain types and with the names of classes."""
        return write_class_names(simplify(chunk, self.columns), self.class_names)

    def _find_used(self, data: Any) -> NDArray[np.bool_]:
        if self.is_used is None:
            return np.ones(len(data), bool)
        return self.is_used(Table(self.name, data, np.arange(1, len(data) + 1)))


class StreamSampler(DistributedSampler[StreamRow]):
    """Yield the rows of this process: every n-th of an order that n processes have in common.

    Each process reads all rows. Lightning leaves this sampler as it is, because of its base class.

    Args:
        read: function that yields the rows of an epoch in the common order.
        name: data set and split, for messages.
        num_processes: number of processes.
        rank: index of this process.
        count_trained: function that returns the number of rows of the epoch that this process trained on before the run
            was stopped, which are left out.
        repeats: whether the processes get equally many rows, by repeating the first ones of the epoch.
    """

    def __init__(
        self,
        read: Callable[[int], Iterator[StreamRow]],
        name: str,
        num_processes: int = 1,
        rank: int = 0,
        count_trained: Callable[[], int] = lambda: 0,
        repeats: bool = True,
    ) -> None:
        self.read, self.name, self.count_trained, self.repeats = read, name, count_trained, repeats
        self.num_replicas, self.rank, self.epoch = num_processes, rank, 0

    def __len__(self) -> int:
        """Raise a ``TypeError``, as a sampler without a length does."""
        raise TypeError(f"the number of rows of {self.name} is unknown")

    def __iter__(self) -> Iterator[StreamRow]:
        yield from islice(self._own_rows(), self.count_trained(), None)

    def _own_rows(self) -> Iterator[StreamRow]:
        rows, first = read_ahead(self.read(self.epoch)), list[StreamRow]()
        while step := list(islice(rows, self.num_replicas)):
            first = first or step
            if len(step) < self.num_replicas and self.repeats:
                step = list(islice(chain(step, cycle(first)), self.num_replicas))
            if self.rank < len(step):
                yield step[self.rank]
        if len(first) < (1 if self.repeats else self.num_replicas):
            fix = f"use trainer.devices={len(first)} or fewer" if first else "a split needs rows that have an input"
            raise UserError(f"{self.name} has {len(first)} rows for {self.num_replicas} process(es): {fix}")


def read_ahead(items: Iterator[T]) -> Iterator[T]:
    """Yield items that a background thread takes from an iterator, a few chunks in advance.

    Its errors are raised here. The thread ends after this iterator; it does not delay the end of the process, because
    ``datasets`` tries a broken connection for minutes.
    """
    chunks: Queue[list[T] | Exception] = Queue(CHUNKS_AHEAD)
    is_closed = Event()

    def read() -> None:
        try:
            while (chunk := list(islice(items, CHUNK_ROWS))) and not is_closed.is_set():
                chunks.put(chunk)
            chunks.put([])
        except Exception as error:  # the main thread raises it
            chunks.put(error)

    thread = Thread(target=read, name="read-ahead", daemon=True)
    thread.start()
    try:
        while chunk := chunks.get():
            if isinstance(chunk, Exception):
                raise chunk
            yield from chunk
    finally:
        is_closed.set()
        with suppress(Empty):  # the thread may wait for space
            while True:
                chunks.get_nowait()
        abandon(thread)
