"""Features of frozen encoders, which are computed once and stand in for the inputs in all epochs, heads and runs."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import BaseFinetuning
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.seed import isolate_rng
from numpy.typing import NDArray
from torch import distributed, nn
from torch.utils.data import Dataset

from fusion_pl.data.base import FusionData
from fusion_pl.data.features import FeatureStore, StoredCells, bytes_per_value, write_features
from fusion_pl.data.manifest import REQUIRED_SPLITS
from fusion_pl.data.rows import LoadError, ManifestRows
from fusion_pl.data.shards import Shards, folder_bytes, unique_keys
from fusion_pl.data.splits import Split
from fusion_pl.encoders.base import Encoder, is_frozen
from fusion_pl.files import cache_folder
from fusion_pl.messages import join_names
from fusion_pl.processors import AudioProcessor
from fusion_pl.training.cache_keys import encoder_key
from fusion_pl.training.encoding import EncodingPass, InputValues
from fusion_pl.types import Encoded, Sample, UserError

DEFAULT_SHARE = 0.1  # of the free disk
NUM_MEASURED = 8  # values that are encoded to estimate the size of all features
logger = logging.getLogger(__name__)
_requires_grad = attrgetter("requires_grad")


@dataclass(frozen=True)
class CacheOptions:
    """Where and how features are stored.

    Attributes:
        folder: folder of the features of all encoders.
        max_bytes: maximum size of the folder in bytes; None = 10 % of the free disk.
        dtype: type of the stored numbers.
    """

    folder: Path
    max_bytes: int | None = None
    dtype: torch.dtype = torch.float32


class FeatureCache:
    """Samples of a run whose inputs with a frozen encoder are features.

    The features of values that lack them are computed when the samples are first used, after the weights are restored
    and moved to the device. Several processes share the work.

    Args:
        options: where and how features are stored.
        trainer: Trainer of the run.
        encoders: name of the input -> encoder.
        reads_tokens: whether the fusion head reads tokens; if not, only embeddings are stored.
    """

    def __init__(
        self, options: CacheOptions, trainer: Trainer, encoders: dict[str, Encoder], reads_tokens: bool
    ) -> None:
        self.options, self.trainer, self.encoders, self.reads_tokens = options, trainer, encoders, reads_tokens
        self.data: FusionData = trainer.datamodule  # type: ignore[attr-defined]
        self.parameters: dict[str, tuple[nn.Parameter, ...]] = {}  # of the encoders whose output is stored

    def __call__(self, split: Split) -> Dataset[Sample]:
        """Return the samples of a split."""
        return self.samples[split] if split in self.samples else self.data.samples(split)

    @property
    def stage(self) -> str:
        """``fit``, ``validate`` or ``test``."""
        assert self.trainer.state.fn is not None
        return self.trainer.state.fn.value

    def check_frozen(self, name: str) -> None:
        """Check that an encoder is still frozen.

        Raises:
            UserError: if a parameter requires a gradient, so that the stored features would be out of date.
        """
        if any(map(_requires_grad, self.parameters.get(name, ()))):
            raise UserError(
                f"the encoder of {name!r} was unfrozen during the run, but its input was replaced by features that "
                "were computed before: give --cache null"
            )

    @cached_property
    def samples(self) -> dict[Split, Dataset[Sample]]:
        """Split -> samples with features; only splits with features.

        Raises:
            LoadError: if a value cannot be opened (unless ``on_bad_file`` is ``missing``).
        """
        encoders = self._frozen_encoders()
        if not encoders:
            return {}
        with isolate_rng():
            samples = {split: self.data.samples(split) for split in self._complete_splits()}
            rows = {split: rows for split, rows in samples.items() if isinstance(rows, ManifestRows)}
            if len(rows) < len(samples):
                _log_not_stored(f"{type(self.data).__name__} has no table of values")
                return {}
            inputs = [one for name in encoders if (one := self._describe_input(name, rows)) is not None]
            inputs = self._select_inputs(inputs)
            for one in inputs:
                if one.encode_missing():
                    self.parameters[one.name] = tuple(one.encoder.parameters())
                    rows = one.replace_columns(rows)
        return dict(rows)

    def _frozen_encoders(self) -> dict[str, Encoder]:
        frozen = {name: encoder for name, encoder in self.encoders.items() if is_frozen(encoder)}
        callbacks: list[Any] = self.trainer.callbacks  # type: ignore[attr-defined]
        finetuning = [type(one).__name__ for one in callbacks if isinstance(one, BaseFinetuning)]
        reason = None
        if not frozen:
            if self.options.folder != cache_folder():
                _log_not_stored("no encoder is frozen (freeze: all)")
        elif finetuning and self.stage == "fit":
            reason = f"{finetuning[0]} may unfreeze encoders"
        elif self.trainer.strategy.restore_checkpoint_after_setup:
            reason = f"{type(self.trainer.strategy).__name__} distributes the weights of the encoders"
        else:
            try:
                self.options.folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                reason = f"{self.options.folder} cannot be written ({error})"
        if reason is not None:
            _log_not_stored(reason)
            return {}
        return frozen

    def _complete_splits(self) -> list[Split]:
        """Return the splits of which the run reads every sample; for others, encoding all values could take longer."""
        trainer = self.trainer
        limits = {"train": trainer.limit_train_batches, "val": trainer.limit_val_batches}
        limits["test"] = trainer.limit_test_batches
        # The integer 1 is one batch, the float 1.0 all batches.
        splits = [split for split in REQUIRED_SPLITS[self.stage] if isinstance(limits[split], float)]
        splits = [split for split in splits if limits[split] == 1]
        if trainer.max_steps > 0 and "train" in splits:
            step = self.data.batch_size * trainer.world_size * trainer.accumulate_grad_batches
            if trainer.max_steps * step < sum(self.data.class_counts):
                splits.remove("train")
        return splits

    def _describe_input(self, name: str, rows: dict[Split, ManifestRows]) -> StoredInput | None:
        """Compute the keys of the values of an input; None if it has no values, or all are augmented."""
        parts = {
            split: column
            for split, samples in rows.items()
            for column in samples.columns
            if column.input == name and not samples.is_augmented(column)
        }
        if not parts:
            return None
        values = InputValues([(rows[split], column) for split, column in parts.items()])
        # The other processes use the hashes of files that the first one has remembered.
        if not self.trainer.is_global_zero:
            self.trainer.strategy.barrier()
        values.compute_keys(self.options.folder)
        if self.trainer.is_global_zero:
            self.trainer.strategy.barrier()
        if not len(values):
            return None
        encoder = self.encoders[name]
        fields = "tokens" if self.reads_tokens else "embeddings"
        key = encoder_key(encoder, str(self.trainer.precision), str(self.options.dtype), fields)
        encoding = EncodingPass(self.trainer, name, encoder, self.data.batch_size, self.data.num_loader_workers)
        return StoredInput(self, encoding, values, list(parts), self.options.folder / key)

    def _select_inputs(self, inputs: list[StoredInput]) -> list[StoredInput]:
        """Return the inputs whose features fit into the folder, and log what is stored."""
        used = float(folder_bytes(self.options.folder))
        selected, lines = [], []
        for one in inputs:
            needed = one.num_missing * one.value_bytes
            if one.num_missing and used + needed > self.max_bytes:
                lines.append(
                    f"Cache: the features of {one.name} are not stored, because they would need {_format(needed)}, and "
                    f"{self.options.folder} has {_format(used)} of {_format(self.max_bytes)} (--cache_limit)"
                )
            else:
                used += needed
                selected.append(one)
        names: list[str] = self.trainer.strategy.broadcast([one.name for one in selected])
        selected = [one for one in inputs if one.name in names]
        if selected:
            sizes = [f"{one.name} ({one.num_values:,} values, {_format(one.total_bytes)})" for one in selected]
            missing = sum(one.num_missing for one in selected)
            crops = [one.name for one in selected if isinstance(one.encoder.processor, AudioProcessor)]
            line = f"Cache: features of frozen encoders stand in for {join_names(sizes)}"
            line += f"; {missing:,} are computed first" if missing else ""
            line += f"; long clips of {join_names(crops)} are cropped to their centre" if crops else ""
            lines.append(f"{line}. Folder: {self.options.folder} (--cache null to disable).")
        for line in lines:
            rank_zero_info(line)
        return selected

    @cached_property
    def max_bytes(self) -> int:
        """Maximum size of the folder in bytes."""
        if self.options.max_bytes is not None:
            return self.options.max_bytes
        return int(DEFAULT_SHARE * (shutil.disk_usage(self.options.folder).free + folder_bytes(self.options.folder)))


class FullError(Exception):
    """The features of an input cannot be written."""


class StoredInput:
    """An input whose values have features, or get them.

    Args:
        cache: cache of the run.
        encoding: pass of the encoder over values.
        values: values of the input in all splits, with keys.
        splits: splits of the values.
        folder: folder of the features of the encoder.
    """

    def __init__(
        self, cache: FeatureCache, encoding: EncodingPass, values: InputValues, splits: Sequence[Split], folder: Path
    ) -> None:
        self.cache, self.encoding, self.values, self.splits, self.folder = cache, encoding, values, splits, folder
        self.name, self.encoder = encoding.name, encoding.encoder
        assert values.keys is not None
        self.keys = values.keys.keys
        self.first, self.inverse = unique_keys(self.keys)  # the distinct values
        self._open_shards()

    def _open_shards(self) -> None:
        self.shards = Shards(self.folder)
        self.rows = self.shards.find(self.keys[self.first])  # of the distinct values; -1 if they have no features

    @property
    def num_values(self) -> int:
        """Number of distinct values."""
        return len(self.first)

    @property
    def num_missing(self) -> int:
        """Number of distinct values without features."""
        return int((self.rows < 0).sum())

    @cached_property
    def value_bytes(self) -> float:
        """Mean size of the features of a value in bytes, from stored values or a few that are encoded."""
        if len(self.shards):
            return folder_bytes(self.folder) / len(self.shards)
        step = max(1, self.num_values // NUM_MEASURED)
        some = self.encoding.encode(self.values, self.first[::step][:NUM_MEASURED])
        sizes = [self._bytes_per_value(encoded) for _, encoded in some]
        return float(np.mean(sizes)) if sizes else 0.0

    def _bytes_per_value(self, encoded: Encoded) -> float:
        return bytes_per_value(encoded, self.cache.options.dtype, self.cache.reads_tokens)

    @property
    def total_bytes(self) -> float:
        """Size of the features of all values in bytes."""
        return self.num_values * self.value_bytes

    def encode_missing(self) -> bool:
        """Encode the values without features, and return whether all values have features afterwards.

        Raises:
            LoadError: if a value cannot be opened (unless ``on_bad_file`` is ``missing``).
        """
        trainer, error = self.cache.trainer, None
        shares = [(trainer.global_rank, trainer.world_size)]
        if trainer.num_nodes > 1:  # the folder may be another one on each node
            shares.append((trainer.local_rank, trainer.num_devices))
        for rank, size in shares:
            is_bad = np.isin(self.first, list(self.encoding.errors))
            missing = self.first[(self.rows < 0) & ~is_bad]
            if not self._any(len(missing) > 0):
                break
            try:
                self.encoding.write(self.values, missing[rank::size], self._write)
            except LoadError as load_error:
                error = load_error
            except FullError as full:
                logger.warning("Cache: the features of %s are not stored, because %s", self.name, full)
            for errors, message in _gather((self.encoding.errors, error and str(error))):
                self.encoding.errors |= errors
                if message is not None:
                    raise error or LoadError(message)
            self._open_shards()
        is_bad = np.isin(self.first, list(self.encoding.errors))
        return not self._any(bool(((self.rows < 0) & ~is_bad).any())) and len(self.shards) > 0

    def _any(self, decision: bool) -> bool:
        return self.cache.trainer.strategy.reduce_boolean_decision(decision, all=False)

    def _write(self, positions: Int[NDArray[Any], " N"], encoded: Sequence[Encoded]) -> None:
        """Write the features of values at some positions.

        Raises:
            FullError: if the folder or the disk is full, or the numbers exceed the range of their type.
        """
        dtype, cache = self.cache.options.dtype, self.cache
        size = sum(len(batch.mask) * self._bytes_per_value(batch) for batch in encoded)
        used = folder_bytes(cache.options.folder)
        if used + size > cache.max_bytes:
            raise FullError(f"{cache.options.folder} has {_format(used)} of {_format(cache.max_bytes)} (--cache_limit)")
        tensors = [x for batch in encoded for x in (batch.embedding, batch.tokens if cache.reads_tokens else None)]
        largest = max((float(x.abs().max()) for x in tensors if x is not None and x.numel()), default=0.0)
        if torch.finfo(dtype).max < largest < torch.inf:
            raise FullError(f"{largest:g} exceeds the range of {dtype} (--cache_dtype bfloat16)")
        try:
            write_features(self.folder, self.keys[positions], encoded, dtype, cache.reads_tokens)
        except OSError as error:
            raise FullError(f"{self.folder} cannot be written ({error})") from error

    def replace_columns(self, samples: dict[Split, ManifestRows]) -> dict[Split, ManifestRows]:
        """Return samples in which features stand in for the values of this input."""
        store = FeatureStore(self.shards)
        stored = {split: np.full(len(samples[split]), -1, np.int64) for split in self.splits}
        errors: dict[Split, dict[int, str]] = {split: {} for split in self.splits}
        parts, indices = np.array(self.values.places).T
        for part, split in enumerate(self.splits):
            stored[split][indices[parts == part]] = self.rows[self.inverse[parts == part]].clip(min=0)
        bad = self.inverse[list(self.encoding.errors)]
        for position in np.flatnonzero(np.isin(self.inverse, bad)).tolist():
            # Files with the same content have different messages.
            found = self.encoding.errors | self.values.__getitems__([position]).errors
            errors[self.splits[parts[position]]][int(indices[position])] = found[position]
        replaced = dict(samples)
        for split in self.splits:
            rows = samples[split]
            columns = [
                replace(column, processor=store, cells=StoredCells(stored[split], errors[split]))
                if column.input == self.name
                else column
                for column in rows.columns
            ]
            replaced[split] = replace(rows, columns=columns)
        return replaced


def _gather(value: Any) -> list[Any]:
    """Return the values of all processes."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return [value]
    values: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(values, value)
    return values


def _log_not_stored(reason: str) -> None:
    rank_zero_info(f"Cache: features of frozen encoders are not stored, because {reason}.")


def _format(size: float | int) -> str:
    if size >= 2**30:
        return f"{size / 2**30:.1f} GiB"
    return f"{size / 2**20:.1f} MiB" if size >= 2**20 else f"{size / 2**10:.1f} KiB"
