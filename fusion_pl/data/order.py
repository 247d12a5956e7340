"""The order of the training samples, and what is drawn for each: functions of the seed, the epoch and the sample."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Sized
from contextlib import contextmanager, nullcontext
from typing import Any, cast

import numpy as np
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch.utils.data import DataLoader, Dataset, get_worker_info
from torch.utils.data.distributed import DistributedSampler

from fusion_pl.data.keys import stable_hash
from fusion_pl.types import Batch, Sample


def global_seed() -> int:
    """Return what ``seed_everything`` was given last; 0 where it never was."""
    return int(os.environ.get("PL_GLOBAL_SEED", "0"))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Let torch, numpy and random draw by this seed, and afterwards go on where they were.

    A loader's worker draws for nothing else, so there the old state, which is slow to keep, is not restored.

    Example:
        >>> with seeded(1):
        ...     first = torch.rand(1)
        >>> with seeded(1):
        ...     first == torch.rand(1)
        tensor([True])
    """
    with nullcontext() if get_worker_info() else isolate_rng(include_cuda=False):
        torch.default_generator.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)
        yield


class EpochSampler(DistributedSampler[Sample]):
    """Deal the samples out to the processes in an order that follows from the seed and the epoch, which Lightning sets.

    An index says its epoch too, as ``epoch * size + row``: a worker that lives on into the next epoch learns from
    nowhere else which one it is.

    Args:
        samples: a map-style data set of ``size`` samples.
        seed: of the run. The orders of two seeds have no epoch in common.
        processes: that share the samples.
        rank: of this process.
    """

    def __init__(self, samples: Dataset[Sample], seed: int, processes: int = 1, rank: int = 0) -> None:
        super().__init__(samples, processes, rank, seed=stable_hash(f"order {seed}"))

    def __iter__(self) -> Iterator[int]:  # type: ignore[override]  # torch's says samples, and means indices
        start = self.epoch * len(cast(Sized, self.dataset))
        return (start + cast(int, row) for row in super().__iter__())


class EpochBatches(Dataset[Batch]):
    """Batches whose augmentation, crops and input dropout are the same for any number of workers, and after a resume.

    What is drawn follows from the seed, the epoch and the row that a batch begins with.

    Args:
        samples: a map-style data set.
        collate: makes a batch of samples.
        seed: of the run.
    """

    def __init__(self, samples: Dataset[Sample], collate: Callable[[list[Sample]], Batch], seed: int) -> None:
        self.samples, self.collate, self.seed = samples, collate, seed

    def __len__(self) -> int:
        return len(cast(Sized, self.samples))

    def __getitems__(self, indices: list[int]) -> Batch:
        """Open the samples of a batch and join them.

        Args:
            indices: as ``EpochSampler`` gives them.
        """
        epoch, first = divmod(indices[0], len(self))
        rows = [index % len(self) for index in indices]
        together: Any = getattr(self.samples, "__getitems__", None)
        with seeded(stable_hash(f"batch {self.seed} {epoch} {first}")):
            return self.collate(together(rows) if together else [self.samples[row] for row in rows])


def made(batch: Any) -> Any:
    """Return a batch as ``EpochBatches`` made it: nothing is left to collate."""
    return batch


class EpochLoader(DataLoader[Batch]):
    """Loads ``EpochBatches``, and asks the sampler for indices when the first batch is wanted.

    Lightning starts a loader before it restores the epoch of a run that goes on, and torch's workers would already be
    sent the first indices then: those of epoch 0.
    """

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        yield from super().__iter__()
