"""An input whose values are replaced by the stored output of its frozen encoder."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import distributed

from fusion_pl.data.feature_shards import FeatureShards, find_shards, folder_bytes, unique_keys
from fusion_pl.data.features import FeatureStore, StoredCells, bytes_per_value, write_features
from fusion_pl.data.rows import LoadError, ManifestRows
from fusion_pl.tables.splits import Split
from fusion_pl.training.encoding import EncodingPass, InputValueDataset
from fusion_pl.types import Encoded, UserError

NUM_MEASURED = 8  # values that are encoded to estimate the size of all features
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Storage:
    """Where and how the features of a run are stored.

    Attributes:
        folder: folder of the features of all encoders.
        max_bytes: maximum size of the folder in bytes.
        dtype: type of the stored numbers.
        with_tokens: whether tokens are stored; if not, only embeddings.
    """

    folder: Path
    max_bytes: int
    dtype: torch.dtype
    with_tokens: bool

    def describe_space(self, used: float) -> str:
        """Return a text about the used bytes and the limit of the folder."""
        return f"{self.folder} has {format_bytes(used)} of {format_bytes(self.max_bytes)} (--cache_limit)"


class FullError(Exception):
    """The features of an input cannot be written."""


class StoredInput:
    """An input whose values have features, or get them.

    Args:
        storage: where and how features are stored.
        encoding: pass of the encoder over values.
        values: values of the input in all splits, with keys.
        splits: splits of the values.
        folder: folder of the features of the encoder.
    """

    def __init__(
        self, storage: Storage, encoding: EncodingPass, values: InputValueDataset, splits: Sequence[Split], folder: Path
    ) -> None:
        self.storage, self.encoding, self.values, self.splits, self.folder = storage, encoding, values, splits, folder
        self.name, self.encoder = encoding.name, encoding.encoder
        assert values.keys is not None
        self.keys = values.keys.keys
        self.first, self.inverse = unique_keys(self.keys)  # the distinct values
        self.shards = FeatureShards(folder, [])
        self._open_shards()

    def _open_shards(self) -> None:
        """Open the shards; on each node, the first process reads and checks those that are new."""
        trainer = self.encoding.trainer
        names = find_shards(self.folder, self.shards.names) if trainer.local_rank == 0 else None
        of_nodes = {node: names for node, names in _gather_objects((trainer.node_rank, names)) if names is not None}
        self.shards = FeatureShards(self.folder, of_nodes[trainer.node_rank])
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
        return bytes_per_value(encoded, self.storage.dtype, self.storage.with_tokens)

    @property
    def total_bytes(self) -> float:
        """Size of the features of all values in bytes."""
        return self.num_values * self.value_bytes

    def encode_missing(self) -> bool:
        """Encode the values without features, and return whether all values have features afterwards.

        Raises:
            LoadError: if a value cannot be opened (unless ``on_bad_file`` is ``missing``), or is refused.
            RuntimeError: if another process has failed.
        """
        trainer, error = self.encoding.trainer, None
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
            except FullError as full:
                logger.warning("Cache: the features of %s are not stored, because %s", self.name, full)
            except Exception as any_error:  # the other processes would wait for this one
                error = any_error
            for errors, failure in _gather_objects((self.encoding.errors, error and _describe_failure(error))):
                self.encoding.errors |= errors
                if failure is not None:
                    raise error or failure
            self._open_shards()
        is_bad = np.isin(self.first, list(self.encoding.errors))
        return not self._any(bool(((self.rows < 0) & ~is_bad).any())) and len(self.shards) > 0

    def _any(self, decision: bool) -> bool:
        return self.encoding.trainer.strategy.reduce_boolean_decision(decision, all=False)

    def _write(self, positions: Int[NDArray[Any], " N"], encoded: Sequence[Encoded]) -> None:
        """Write the features of values at some positions.

        Raises:
            FullError: if the folder or the disk is full, or the numbers exceed the range of their type.
        """
        dtype, storage = self.storage.dtype, self.storage
        size = sum(len(batch.mask) * self._bytes_per_value(batch) for batch in encoded)
        used = folder_bytes(storage.folder)
        if used + size > storage.max_bytes:
            raise FullError(storage.describe_space(used))
        tensors = [x for batch in encoded for x in (batch.embedding, batch.tokens if storage.with_tokens else None)]
        largest = max((float(x.abs().max()) for x in tensors if x is not None and x.numel()), default=0.0)
        if torch.finfo(dtype).max < largest < torch.inf:
            raise FullError(f"{largest:g} exceeds the range of {dtype} (--cache_dtype bfloat16)")
        try:
            write_features(self.folder, self.keys[positions], encoded, dtype, storage.with_tokens)
        except OSError as error:
            raise FullError(f"{self.folder} cannot be written ({error})") from error

    def use_features(self, samples: dict[Split, ManifestRows]) -> dict[Split, ManifestRows]:
        """Return samples in which features stand in for the values of this input."""
        store = FeatureStore(self.shards)
        stored = {split: np.full(len(samples[split]), -1, np.int64) for split in self.splits}
        errors: dict[Split, dict[int, str]] = {split: {} for split in self.splits}
        parts, indices = np.array(self.values.places).T
        for part, split in enumerate(self.splits):
            stored[split][indices[parts == part]] = self.rows[self.inverse[parts == part]].clip(min=0)
        bad = {int(self.inverse[position]): message for position, message in self.encoding.errors.items()}
        for position in np.flatnonzero(np.isin(self.inverse, list(bad))).tolist():
            message = self.encoding.errors.get(position)
            if message is None:  # a file with the same content as another one, whose message contains another path
                message = self.values.find_error(position) or bad[int(self.inverse[position])]
            errors[self.splits[parts[position]]][int(indices[position])] = message
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


def _describe_failure(error: Exception) -> Exception:
    """Return the error to raise in the other processes, which can always be pickled."""
    if isinstance(error, UserError):
        return LoadError(str(error))
    return RuntimeError(f"another process has failed: {type(error).__name__}: {error}")


def _gather_objects(value: Any) -> list[Any]:
    """Return the values of all processes."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return [value]
    values: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(values, value)
    return values


def format_bytes(size: float | int) -> str:
    """Return a size with a unit.

    Example:
        >>> format_bytes(1536)
        '1.5 KiB'
    """
    if size >= 2**30:
        return f"{size / 2**30:.1f} GiB"
    return f"{size / 2**20:.1f} MiB" if size >= 2**20 else f"{size / 2**10:.1f} KiB"
