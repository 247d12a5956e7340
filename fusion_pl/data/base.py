"""Base class of all data modules. The workers of the data loaders open files, run processors and pad batches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import torch
from lightning.fabric.utilities.data import suggested_max_num_workers
from lightning.pytorch import LightningDataModule
from lightning.pytorch.overrides.distributed import UnrepeatedDistributedSampler
from torch import nn
from torch.utils.data import DataLoader, Dataset, Sampler

from fusion_pl.data.bad_files import log_bad_files
from fusion_pl.data.collate import Collate
from fusion_pl.data.feature_rows import FeatureRows, has_only_features
from fusion_pl.data.order import (
    EpochBatches,
    EpochLoader,
    EpochSampler,
    global_seed,
    identity_collate,
    world_size_and_rank,
)
from fusion_pl.data.rows import ManifestRows, OnBadFile
from fusion_pl.data.sampling import Sampling
from fusion_pl.data.workers import BAR_MIN_ITEMS, iterate_in_workers, worker_options
from fusion_pl.processors import Processor
from fusion_pl.tables.splits import Split
from fusion_pl.tasks import MultiClass, Task
from fusion_pl.types import Batch, Sample, UserError

MAX_WORKERS = 16  # with more workers, the main process, which receives the batches, is the bottleneck


class FusionData(LightningDataModule, ABC):
    """Base class of data modules with several inputs; subclasses define ``classes``, ``class_counts`` and ``samples``.

    Args:
        batch_size: number of samples per batch and process.
        num_workers: number of processes that load files; 0 = files are loaded in the main process, None = a number
            that depends on the number of cores.
        seed: random seed of drawn splits only. The order of the training samples, augmentation and input dropout depend
            on ``seed_everything`` and on the epoch.
        augment: dictionary from input name to a transform that is applied to the input's value in training: to a PIL
            image (such as a transform of torchvision.transforms.v2), a ``Waveform`` or a ``str``. The key of a
            transform that draws once for several inputs is their names joined by ``+``, such as ``left+right``: it gets
            a dictionary from input name to value, without missing inputs, and returns one, as the transforms of
            torchvision.transforms.v2 do; it is applied after the transforms of single inputs.
        on_bad_file: handling of a file that cannot be decoded: ``raise`` an error, or treat the input as ``missing``
            and list the file at the end.
        allow_outside: whether files outside the root folder may be read.
        drop_empty: whether samples without any of the model's inputs are left out, for training on a subset of the
            inputs; if not, they are refused. The splits of the other samples stay the same.
        input_dropout: dictionary from input name to the probability, in [0, 1), of dropping it from a training sample
            (modality dropout); at least one input of each sample remains.
        task: how labels are read; by default ``MultiClass``. On the command line it is ``model.task``.

    Raises:
        UserError: if a number is out of range.
    """

    is_stream: ClassVar[bool] = False  # whether samples are read one after another, and their number is unknown
    cached_by_processors: ClassVar[tuple[str, ...]] = ()  # cached properties that depend on the processors

    def __init__(  # noqa: PLR0913 - the options of one class in a configuration
        self,
        batch_size: int = 32,
        num_workers: int | None = None,
        seed: int = 0,
        augment: dict[str, nn.Module] | None = None,
        on_bad_file: Literal["raise", "missing"] = "raise",
        allow_outside: bool = False,
        drop_empty: bool = False,
        input_dropout: dict[str, float] | None = None,
        *,
        task: Task | None = None,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise UserError(f"batch_size must be 1 or more, got {batch_size}")
        if num_workers is not None and num_workers < 0:
            raise UserError(f"num_workers must be 0 or more, or null to choose it from the cores, got {num_workers}")
        if seed < 0:
            raise UserError(f"seed must be 0 or more, got {seed}")
        self.batch_size, self.num_workers, self.seed = batch_size, num_workers, seed
        self.augment, self.input_dropout = augment or {}, input_dropout or {}
        self.on_bad_file: OnBadFile = on_bad_file
        self.allow_outside, self.drop_empty = allow_outside, drop_empty
        self.task = task or MultiClass()
        for name, probability in self.input_dropout.items():
            if not 0 <= probability < 1:
                raise UserError(f"data.input_dropout of {name} is {probability}, expected a probability below 1")
        # Returns the samples of a split with features in place of inputs; assigned by the model.
        self.feature_source: Callable[[Split], Dataset[Sample]] | None = None
        self._processors: dict[str, Processor] | None = None
        self._bad_files: dict[str, None] = {}  # an ordered set

    @property
    @abstractmethod
    def classes(self) -> list[str]:
        """Names of the classes, in the order of the targets; known when the data module is built."""

    @property
    def files(self) -> list[Path]:
        """Files of the table, whose content identifies the samples; empty if there is no table."""
        return []

    @property
    @abstractmethod
    def class_counts(self) -> list[int] | None:
        """Number of training samples per class, in the order of ``classes``; None if it is unknown."""

    @property
    def train_sampling(self) -> Sampling | None:
        """How the training samples of an epoch are drawn; None = every sample once, in random order."""
        return None

    @abstractmethod
    def samples(self, split: Split | Literal["predict"]) -> Dataset[Sample]:
        """Return the samples of a split as a map-style data set that can be pickled for the loader's workers.

        A stream returns an iterable, and overrides the loaders.
        """

    @property
    def processors(self) -> Mapping[str, Processor]:
        """Dictionary from input name to its processor; assign ``model.processors`` before use.

        Raises:
            UserError: if the processors are not assigned.
        """
        if self._processors is None:
            raise UserError(
                "the data has no processors yet, so its inputs cannot be opened: assign data.processors = "
                "model.processors first (the fusion-pl command does so)"
            )
        return self._processors

    @processors.setter
    def processors(self, processors: Mapping[str, Processor]) -> None:
        augmented = {name for key in self.augment for name in _names_of_key(key, processors)}
        for option, names in (("augment", augmented), ("input_dropout", self.input_dropout.keys())):
            for name in sorted(names - processors.keys()):
                raise UserError(
                    f"data.{option} has the input {name!r}, but the model's inputs are {', '.join(processors)}: remove "
                    f"{name!r} from data.{option}, or give --data.{option} null"
                )
        self._processors = dict(processors)
        for name in self.cached_by_processors:
            self.__dict__.pop(name, None)

    @property
    def joint_augment(self) -> dict[tuple[str, ...], nn.Module]:
        """Dictionary from the names of several inputs to a transform of all of them."""
        keys = [key for key in self.augment if key not in self.processors]
        return {tuple(_names_of_key(key, self.processors)): self.augment[key] for key in keys}

    @property
    def columns(self) -> dict[str, str | list[str]]:
        """Dictionary from input name to its column or columns; by default both names are equal."""
        return {name: name for name in self.processors}

    @property
    def num_loader_workers(self) -> int:
        """Number of worker processes per loader: ``num_workers``, or a number that depends on the number of cores."""
        if self.num_workers is not None:
            return self.num_workers
        return min(MAX_WORKERS, suggested_max_num_workers(self.trainer.num_devices if self.trainer else 1))

    def training_values(self, name: str) -> Iterator[Any]:
        """Yield the opened values of an input in all training samples, for statistics."""
        samples = self.samples("train")
        workers = 0
        if isinstance(samples, ManifestRows):
            samples = samples.select_input(name)
            has_many_files = samples.columns[0].reads_paths and len(samples) >= BAR_MIN_ITEMS
            workers = self.num_loader_workers if has_many_files else 0
        for sample in iterate_in_workers(samples, workers, f"Statistics of {name}"):
            if name in sample.inputs:
                yield sample.inputs[name]

    def train_dataloader(self) -> DataLoader[Batch]:
        """Return a loader of the training samples; order, augmentation and random crops differ in each epoch.

        Lightning sets the epoch. A training loop without Lightning must call ``loader.sampler.set_epoch(epoch)``.
        """
        samples, seed = self._loader_samples("train"), global_seed()
        collate = self._collate(samples, training=True)
        sampler = EpochSampler(
            samples, seed, *world_size_and_rank(), self._count_trained, self.train_sampling, self.batch_size
        )
        batches, num_workers = EpochBatches(samples, collate, seed), self._num_workers(samples)
        return self._build_loader(batches, sampler, identity_collate, num_workers, EpochLoader)

    def _count_trained(self) -> int:
        """Return the number of samples of the epoch in which a run was stopped that this process trained on; else 0."""
        loop = self.trainer.fit_loop if self.trainer else None
        return loop.epoch_loop.batch_progress.current.ready * self.batch_size if loop and loop.is_resuming else 0

    def val_dataloader(self) -> DataLoader[Sample]:
        """Return a loader of every validation sample once, in order, on any number of processes."""
        return self._build_sequential_loader("val")

    def test_dataloader(self) -> DataLoader[Sample]:
        """Return a loader of every test sample once, in order, on any number of processes."""
        return self._build_sequential_loader("test")

    def predict_dataloader(self, start: int = 0, stop: int | None = None) -> Iterable[Any]:
        """Return a loader of the samples from ``start`` up to ``stop`` once, in order, without targets."""
        if (start, stop) == (0, None):
            return self._build_sequential_loader("predict")
        samples = self.samples("predict")
        rows = range(len(cast(Sized, samples)))[start:stop]
        return self._build_loader(samples, rows, self._collate(samples), self._num_workers(samples))

    def _build_sequential_loader(self, split: Literal["val", "test", "predict"]) -> DataLoader[Sample]:
        samples = self.samples(split) if split == "predict" else self._loader_samples(split)
        sampler = None
        if (world_size := world_size_and_rank()[0]) > 1:  # Lightning's own sampler would repeat samples
            size = len(cast(Sized, samples))
            if size < world_size:
                fix = f"use trainer.devices={max(size, 1)} or fewer"
                raise UserError(f"{split} has {size} samples for {world_size} processes: {fix}")
            sampler = UnrepeatedDistributedSampler(samples, shuffle=False)
        return self._build_loader(samples, sampler, self._collate(samples), self._num_workers(samples))

    def statistics_loader(self, max_samples: int) -> Iterable[Batch]:
        """Return batches of drawn training samples, opened as in validation; a share per process, none of a stream."""
        if self.is_stream:
            return []
        samples = self.samples("train") if self.feature_source is None else self.feature_source("train")
        if isinstance(samples, ManifestRows):
            samples = FeatureRows.wrap(samples.without_augmentation())
        order = torch.randperm(len(cast(Sized, samples)), generator=torch.Generator().manual_seed(0))
        world_size, rank = world_size_and_rank()
        rows = order[:max_samples].sort().values[rank::world_size].tolist()
        return self._build_loader(samples, rows, self._collate(samples), self._num_workers(samples))

    def _loader_samples(self, split: Split) -> Dataset[Sample]:
        samples = self.samples(split) if self.feature_source is None else self.feature_source(split)
        return samples if split == "train" and self.input_dropout else FeatureRows.wrap(samples)

    def _collate(self, samples: Dataset[Sample], training: bool = False) -> Callable[[Any], Batch]:
        if isinstance(samples, FeatureRows):
            return identity_collate
        processors = samples.processors if isinstance(samples, ManifestRows) else {}
        return Collate({**self.processors, **processors}, training, self.input_dropout if training else None)

    def _num_workers(self, samples: Dataset[Sample]) -> int:
        """Return the number of loader workers; by default none if all inputs are features, which is faster."""
        return 0 if self.num_workers is None and has_only_features(samples) else self.num_loader_workers

    def _build_loader(
        self,
        dataset: Dataset[Any],
        sampler: Sampler[Any] | Sequence[int] | None,
        collate: Callable[[Any], Batch],
        num_workers: int,
        loader_class: type[DataLoader[Any]] = DataLoader,
    ) -> DataLoader[Any]:
        return loader_class(
            dataset,
            sampler=sampler,
            collate_fn=collate,
            batch_size=self.batch_size,
            **worker_options(num_workers),
            pin_memory=torch.cuda.is_available(),
            persistent_workers=num_workers > 0,
            generator=torch.Generator().manual_seed(global_seed()),  # leaves the model's random numbers as they are
        )

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Collect the messages about unreadable files in a batch."""
        del dataloader_idx
        if isinstance(batch, Batch):
            self._bad_files.update(dict.fromkeys(chain.from_iterable(batch.bad_files)))
        return batch

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move the tensors of a batch; Lightning would look for tensors in every id."""
        if isinstance(batch, Batch):
            return batch.to(device)
        return super().transfer_batch_to_device(batch, device, dataloader_idx)

    def teardown(self, stage: str) -> None:
        """Log the messages about files that could not be read."""
        del stage
        log_bad_files(self._bad_files)
        self._bad_files.clear()


def _names_of_key(key: str, processors: Mapping[str, Processor]) -> list[str]:
    """Return the input names in a key of ``augment``; an input's own name may contain the separator."""
    return [key] if key in processors else key.split("+")
