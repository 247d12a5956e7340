"""What every data set promises: classes, and loaders that open, process and pad in their workers."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sized
from itertools import chain
from typing import Any, Literal, cast

import torch
from lightning.fabric.utilities.data import suggested_max_num_workers
from lightning.pytorch import LightningDataModule
from lightning.pytorch.overrides.distributed import UnrepeatedDistributedSampler
from torch import distributed, nn
from torch.utils.data import DataLoader, Dataset

from fusion_pl.data.collate import Collate
from fusion_pl.data.order import EpochBatches, EpochLoader, EpochSampler, global_seed, identity
from fusion_pl.data.rows import OnBadFile
from fusion_pl.data.splits import Split
from fusion_pl.messages import printable
from fusion_pl.processes import follow_parent
from fusion_pl.types import Batch, Processor, Sample, UserError

MOST_WORKERS = 16  # beyond it the main process, which takes the batches in, is what limits
SHOWN = 3

_log = logging.getLogger(__name__)


class FusionData(LightningDataModule, ABC):
    """Gives batches of aligned inputs. To write your own data set, set ``classes``, ``class_counts`` and ``samples``.

    Args:
        batch_size: samples of a batch, for each process.
        num_workers: processes that open and process files; 0 does it in the main one, None chooses from the cores.
        seed: of drawn splits alone. The order of the training samples, augmentation and input dropout follow
            ``seed_everything``, and in every epoch are others.
        augment: name of the input -> what changes its opened value in training: a PIL image for images (the transforms
            of torchvision.transforms.v2 fit), a ``Waveform`` for sound, ``str`` for text.
        on_bad_file: what to do with a file that cannot be decoded: ``raise``, or treat the input as ``missing`` and
            list the file at the end.
        allow_outside: whether files outside the root may be read.
        drop_empty: whether samples without any of the model's inputs are left out instead of refused; for training on
            some of the inputs. Drawn splits stay what they were.
        input_dropout: name of the input -> probability, in [0, 1), that a training sample loses it; never all of a
            sample's inputs. It teaches the model to do without.

    Raises:
        UserError: where a number is out of its range.
    """

    def __init__(
        self,
        batch_size: int = 32,
        num_workers: int | None = None,
        seed: int = 0,
        augment: dict[str, nn.Module] | None = None,
        on_bad_file: Literal["raise", "missing"] = "raise",
        allow_outside: bool = False,
        drop_empty: bool = False,
        input_dropout: dict[str, float] | None = None,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise UserError(f"batch_size must be 1 or more, got {batch_size}")
        if num_workers is not None and num_workers < 0:
            raise UserError(f"num_workers must be 0 or more, or null to choose it from the cores, got {num_workers}")
        if seed < 0:
            raise UserError(f"seed must be 0 or more, got {seed}")
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.augment = augment or {}
        self.on_bad_file: OnBadFile = on_bad_file
        self.allow_outside = allow_outside
        self.drop_empty = drop_empty
        self.input_dropout = input_dropout or {}
        for name, share in self.input_dropout.items():
            if not 0 <= share < 1:
                raise UserError(f"data.input_dropout of {name} is {share}, expected a probability below 1")
        self._processors: dict[str, Processor] | None = None
        self._bad_files: dict[str, None] = {}  # a set that keeps the order

    @property
    @abstractmethod
    def classes(self) -> list[str]:
        """Names of the classes, in the order of the targets; known as soon as the data set is built."""

    @property
    @abstractmethod
    def class_counts(self) -> list[int]:
        """Training samples of each class, in the order of ``classes``."""

    @abstractmethod
    def samples(self, split: Split | Literal["predict"]) -> Dataset[Sample]:
        """Return the samples of a split as a map-style data set that can be pickled into the loader's workers."""

    @property
    def processors(self) -> Mapping[str, Processor]:
        """Name of the input -> its processor; the model's, assigned after both are built.

        Raises:
            UserError: where nobody has assigned them.
        """
        if self._processors is None:
            raise UserError(
                "the data has no processors yet, so it cannot say what a column holds: assign data.processors = "
                "model.processors first (the fusion-pl command does it by itself)"
            )
        return self._processors

    @processors.setter
    def processors(self, processors: Mapping[str, Processor]) -> None:
        for option, names in (("augment", self.augment.keys()), ("input_dropout", self.input_dropout.keys())):
            for name in sorted(names - processors.keys()):
                raise UserError(
                    f"data.{option} names {name!r}, but the model's inputs are {', '.join(processors)}: leave {name!r} "
                    f"out there (--data.{option} null for none)"
                )
        self._processors = dict(processors)

    @property
    def columns(self) -> dict[str, str]:
        """Name of the input -> where it comes from; the same name, unless the data set maps it."""
        return {name: name for name in self.processors}

    @property
    def workers(self) -> int:
        """Processes that open and process files, chosen from the cores where ``num_workers`` is None."""
        if self.num_workers is not None:
            return self.num_workers
        return min(MOST_WORKERS, suggested_max_num_workers(self.trainer.num_devices if self.trainer else 1))

    def train_dataloader(self) -> DataLoader[Batch]:
        """Give the training samples in a random order, with augmentation and random crops, other ones in every epoch.

        Lightning tells it the epoch; a loop of your own does so by ``loader.sampler.set_epoch(epoch)``.
        """
        samples, seed = self.samples("train"), global_seed()
        collate = Collate(self.processors, training=True, dropout=self.input_dropout)
        batches = EpochBatches(samples, collate, seed)
        sampler = EpochSampler(samples, seed, *_processes())
        return EpochLoader(dataset=batches, sampler=sampler, collate_fn=identity, **self._options(seed))

    def val_dataloader(self) -> DataLoader[Sample]:
        """Give every validation sample once, in order, however many processes share them."""
        return self._loader("val")

    def test_dataloader(self) -> DataLoader[Sample]:
        """Give every test sample once, in order, however many processes share them."""
        return self._loader("test")

    def predict_dataloader(self) -> DataLoader[Sample]:
        """Give every sample once, in order, without targets."""
        return self._loader("predict")

    def _loader(self, split: Literal["val", "test", "predict"]) -> DataLoader[Sample]:
        samples = self.samples(split)
        return DataLoader(
            dataset=samples,
            sampler=_share(samples, split),
            collate_fn=Collate(self.processors),
            **self._options(global_seed()),
        )

    def _options(self, seed: int) -> dict[str, Any]:
        """Return what all loaders have in common."""
        workers = self.workers
        return {
            "batch_size": self.batch_size,
            "num_workers": workers,
            "worker_init_fn": follow_parent,
            "pin_memory": torch.cuda.is_available(),
            "persistent_workers": workers > 0,
            "generator": torch.Generator().manual_seed(seed),  # seeds the workers; the global one is left to the model
        }

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Note which files could not be read: the workers know, but only this process lives until the end."""
        del dataloader_idx
        if isinstance(batch, Batch):
            self._bad_files.update(dict.fromkeys(chain.from_iterable(batch.bad_files)))
        return batch

    def teardown(self, stage: str) -> None:
        """Say which files could not be read."""
        del stage
        bad = list(self._bad_files)
        self._bad_files.clear()
        if bad:
            first = "\n  ".join(bad[:SHOWN]) + (f"\n  … and {len(bad) - SHOWN} more" if len(bad) > SHOWN else "")
            files = "1 file" if len(bad) == 1 else f"{len(bad)} files"
            _log.warning("%s could not be read and counted as missing:\n  %s", files, printable(first))


def _processes() -> tuple[int, int]:
    """Return how many processes train, and which of them this is."""
    together = distributed.is_available() and distributed.is_initialized()
    return (distributed.get_world_size(), distributed.get_rank()) if together else (1, 0)


def _share(samples: Dataset[Sample], split: str) -> UnrepeatedDistributedSampler | None:
    """Deal the samples out to the processes; what Lightning injects would repeat some, and so falsify the metrics."""
    processes, _ = _processes()
    if processes == 1:
        return None
    size = len(cast(Sized, samples))
    if size < processes:
        raise UserError(
            f"{split} has {size} samples for {processes} processes: use trainer.devices={max(size, 1)} or fewer"
        )
    return UnrepeatedDistributedSampler(samples, shuffle=False)
