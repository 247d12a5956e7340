"""Rows of which every input is a feature: a batch is gathered at once, without a sample per row."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils.data import Dataset

from fusion_pl.data.features import FeatureStore, StoredCells
from fusion_pl.data.rows import ManifestRows
from fusion_pl.types import Batch, Encoded, Sample, hash_ids


def has_only_features(samples: Dataset[Any]) -> bool:
    """Return whether every input of the samples is a feature, so that nothing is opened."""
    rows = samples.rows if isinstance(samples, FeatureRows) else samples
    return isinstance(rows, ManifestRows) and all(isinstance(one, FeatureStore) for one in rows.processors.values())


class FeatureRows(Dataset[Sample]):
    """Data set that returns a batch for a list of indices.

    Args:
        rows: rows of which every input is a feature.
    """

    def __init__(self, rows: ManifestRows) -> None:
        self.rows = rows
        self.columns = {column.input: column.cells.rows for column in rows.columns}  # type: ignore[attr-defined]
        self.stores = {column.input: column.processor for column in rows.columns}

    @classmethod
    def wrap(cls, samples: Dataset[Sample]) -> Dataset[Sample]:
        """Return a data set of batches if all samples are complete: only features, all readable, no empty row."""
        if not (isinstance(samples, ManifestRows) and has_only_features(samples)) or samples.errors:
            return samples
        cells = [column.cells for column in samples.columns]
        if any(isinstance(one, StoredCells) and one.errors for one in cells) or samples.targets is None:
            return samples
        wrapped = cls(samples)
        is_empty = np.stack([rows < 0 for rows in wrapped.columns.values()]).all(0)
        return samples if is_empty.any() else wrapped

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        """Return one sample."""
        return self.rows[index]

    def __getitems__(self, indices: list[int]) -> Batch:
        """Gather a batch, like ``Collate`` for the samples."""
        inputs: dict[str, dict[str, Tensor] | Encoded] = {}
        present: dict[str, Tensor] = {}
        for name, store in self.stores.items():
            assert isinstance(store, FeatureStore)
            rows = self.columns[name][indices]
            is_present = rows >= 0
            inputs[name] = store.gather(rows[is_present] if is_present.any() else np.zeros(1, np.int64))
            present[name] = torch.from_numpy(is_present)
        assert self.rows.targets is not None
        ids, hashes = self._ids
        target = torch.from_numpy(self.rows.targets[indices])
        return Batch(inputs, present, target, [ids[index] for index in indices], [()] * len(indices), hashes[indices])

    @cached_property
    def _ids(self) -> tuple[list[str], Int[Tensor, " N"]]:
        """Ids of all rows and their ``hash_ids``; computing those of a batch takes longer than gathering features."""
        ids = [self.rows.sample_id(index) for index in range(len(self.rows))]
        return ids, hash_ids(ids)
