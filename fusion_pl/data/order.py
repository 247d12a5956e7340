"""Reproducible order and augmentation of the training samples, which depend only on seed, epoch and sample."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Sized
from contextlib import contextmanager, nullcontext
from itertools import islice
from typing import Any, cast

import numpy as np
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import distributed
from torch.utils.data import DataLoader, Dataset, get_worker_info
from torch.utils.data.distributed import DistributedSampler

from fusion_pl.data.sampling import Sampling
from fusion_pl.tables.hashes import stable_hash
from fusion_pl.types import Batch, Sample


def global_seed() -> int:
    """Return the seed of the last call of ``seed_everything``; 0 if it was not called."""
    return int(os.environ.get("PL_GLOBAL_SEED", "0"))


def seed_generators(seed: int, device: torch.device | None = None) -> None:
    """Seed numpy, random, and torch on the CPU and a device; ``torch.manual_seed`` is 200 times slower."""
    torch.default_generator.manual_seed(seed)
    if device is not None and device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


@contextmanager
def temporary_seed(seed: int) -> Iterator[None]:
    """Seed torch, numpy and random, and restore their states afterwards.

    In loader workers, which use no other random numbers, the states are not restored, because that would be slow.

    Example:
        >>> with temporary_seed(1):
        ...     first = torch.rand(1)
        >>> with temporary_seed(1):
        ...     first == torch.rand(1)
        tensor([True])
    """
    with nullcontext() if get_worker_info() else isolate_rng(include_cuda=False):
        seed_generators(seed)
        yield


class EpochSampler(DistributedSampler[Sample]):
    """Distribute the samples to the processes in an order given by the seed and the epoch.

    The indices are ``epoch * len(samples) + row``, because persistent workers get the epoch in no other way. Two seeds
    have different orders in every epoch.

    Args:
        count_trained: function that returns the number of samples of the epoch that this process trained on before
            the run was stopped. They are left out, and their files are not opened.
        sampling: how the samples of an epoch are drawn; None = every sample once, in random order.
        batch_size: number of samples per batch and process.
    """

    def __init__(
        self,
        samples: Dataset[Sample],
        seed: int,
        num_processes: int = 1,
        rank: int = 0,
        count_trained: Callable[[], int] = lambda: 0,
        sampling: Sampling | None = None,
        batch_size: int = 1,
    ) -> None:
        super().__init__(samples, num_processes, rank, seed=stable_hash(f"order {seed}"))
        self.count_trained, self.sampling, self.batch_size = count_trained, sampling, batch_size

    def __iter__(self) -> Iterator[int]:  # type: ignore[override]  # torch annotates samples, but yields indices
        start = self.epoch * len(cast(Sized, self.dataset))
        rows = super().__iter__() if self.sampling is None else iter(self._draw_rows(self.sampling))
        return (start + cast(int, row) for row in islice(rows, self.count_trained(), None))

    def _draw_rows(self, sampling: Sampling) -> list[Any]:
        """Return the rows of this process; each step of all processes has consecutive rows of the common order."""
        size, rng = len(cast(Sized, self.dataset)), np.random.default_rng([self.seed, self.epoch])
        rows = sampling.draw(size, self.total_size, self.batch_size * self.num_replicas, rng)
        return list(rows[self.rank :: self.num_replicas].tolist())


class EpochBatches(Dataset[Batch]):
    """Data set of training batches that are the same for any number of workers, and after a run is resumed.

    The random generators for augmentation, crops and input dropout are seeded with the seed of the run, the epoch and
    the rows of the batch.
    """

    def __init__(self, samples: Dataset[Sample], collate: Callable[[list[Sample]], Batch], seed: int) -> None:
        self.samples, self.collate, self.seed = samples, collate, seed

    def __len__(self) -> int:
        return len(cast(Sized, self.samples))

    def __getitems__(self, indices: list[int]) -> Batch:
        """Load and collate the samples of one batch; the indices come from ``EpochSampler``."""
        epoch = indices[0] // len(self)
        rows = [index % len(self) for index in indices]
        getitems: Any = getattr(self.samples, "__getitems__", None)
        with temporary_seed(stable_hash(f"batch {self.seed} {epoch} {rows}")):
            return self.collate(getitems(rows) if getitems else [self.samples[row] for row in rows])


def identity_collate(batch: Any) -> Any:
    """Return a batch unchanged; the data set has already collated its samples."""
    return batch


class EpochLoader(DataLoader[Batch]):
    """Data loader for ``EpochBatches`` that draws the indices of an epoch only when the first batch is requested.

    When Lightning resumes a run, it creates the iterator before it restores the epoch and the number of batches that
    were trained on, and ``DataLoader`` would send the first indices of epoch 0 to the workers.
    """

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        yield from super().__iter__()

    def state_dict(self) -> dict[str, int]:
        """Return what the number of batches in a checkpoint refers to: batch size per process, and processes."""
        assert self.batch_size is not None
        return {"batch_size": self.batch_size, "processes": world_size_and_rank()[0]}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Do nothing, because ``EpochSampler.count_trained`` reads Lightning's number of batches.

        Lightning calls this method only if the loader is built after the checkpoint was read.
        """


def world_size_and_rank() -> tuple[int, int]:
    """Return world size and rank."""
    is_distributed = distributed.is_available() and distributed.is_initialized()
    return (distributed.get_world_size(), distributed.get_rank()) if is_distributed else (1, 0)
