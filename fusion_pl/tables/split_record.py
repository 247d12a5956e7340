"""Record of the training, validation and test rows of a run, which is stored in its checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fusion_pl.tables.splits import NO_SPLIT, SPLITS, Split
from fusion_pl.types import UserError


@dataclass(frozen=True, eq=False)
class SplitRecord:
    """Training, validation and test rows of a run, stored as row hashes: one sorted array without duplicates per split.

    A hash may be in several splits, because rows with the same content have the same hash.
    """

    table_hash: str
    hashes: Mapping[Split, NDArray[np.int64]]

    @classmethod
    def from_state(cls, state: Any) -> SplitRecord:
        """Create the record from the state in a checkpoint, which may be damaged or malicious.

        Raises:
            UserError: if the state is damaged.
        """
        if not isinstance(state, Mapping) or not all(_is_hash_tensor(state.get(split)) for split in SPLITS):
            raise UserError(
                "the checkpoint's record of its splits is damaged: use another checkpoint of the run, or train it again"
            )
        return cls(str(state.get("table")), {split: np.unique(state[split].numpy()) for split in SPLITS})

    def state_dict(self) -> dict[str, Any]:
        """Return the record as text and tensors."""
        return {"table": self.table_hash} | {split: torch.from_numpy(hashes) for split, hashes in self.hashes.items()}

    def has_same_content(self, other: SplitRecord | None) -> bool:
        """Return whether another record is equal."""
        return (
            other is not None
            and self.table_hash == other.table_hash
            and all(np.array_equal(self.hashes[split], other.hashes[split]) for split in SPLITS)
        )

    def all_row_hashes(self) -> NDArray[np.int64]:
        """Return the hashes of the rows of all splits, sorted and without duplicates."""
        return np.unique(np.concatenate(list(self.hashes.values())))

    def merge_removed_rows(self, previous: SplitRecord | None) -> SplitRecord:
        """Return this record, extended by the rows of a previous record that the table no longer contains."""
        if previous is None:
            return self
        current = self.all_row_hashes()
        hashes = {
            split: np.union1d(hashes, np.setdiff1d(previous.hashes[split], current))
            for split, hashes in self.hashes.items()
        }
        return SplitRecord(self.table_hash, hashes)

    def recorded_splits(self, row_hashes: NDArray[np.int64]) -> NDArray[np.int8]:
        """Return the recorded split of each row; train if a row is in several splits."""
        splits = np.full(len(row_hashes), NO_SPLIT, np.int8)
        for split in reversed(range(len(SPLITS))):
            splits[np.isin(row_hashes, self.hashes[SPLITS[split]])] = split
        return splits

    def trained_rows(self, row_hashes: NDArray[np.int64], rows: NDArray[np.int64], split: Split) -> NDArray[np.int64]:
        """Return those of the rows of ``split`` that are recorded as training rows and not also in ``split``."""
        return rows[np.isin(row_hashes[rows], np.setdiff1d(self.hashes["train"], self.hashes[split]))]

    def describe_table_change(self, table_hash: str, row_hashes: NDArray[np.int64]) -> str | None:
        """Describe how a table differs from the table of the training; None if both are equal."""
        if table_hash == self.table_hash:
            return None
        recorded = self.all_row_hashes()
        new, removed = int((~np.isin(row_hashes, recorded)).sum()), int((~np.isin(recorded, row_hashes)).sum())
        if new == len(row_hashes):
            return f"is not the table of the training, which had none of these {new} rows"
        if not new and not removed:
            return "has changed since the training: the same rows with other cells"
        added = f"{new} of its {len(row_hashes)} rows {'is' if new == 1 else 'are'} new"
        gone = f"{removed} {'row is' if removed == 1 else 'rows are'} gone"
        return "has changed since the training: " + " and ".join([added] * (new > 0) + [gone] * (removed > 0))


def _is_hash_tensor(value: Any) -> bool:
    """Return whether a value is a contiguous int64 vector on the CPU, which takes no more memory than its storage."""
    is_plain = isinstance(value, torch.Tensor) and value.layout == torch.strided and value.device.type == "cpu"
    return is_plain and value.dtype == torch.int64 and value.dim() == 1 and value.is_contiguous()


def find_split_record(checkpoint: Mapping[str, Any], data_class: type) -> Any:
    """Return the state of the split record in a checkpoint; None if the checkpoint has no split record.

    Lightning saves the state of a data module under the name of its class. If the checkpoint has no state of
    ``data_class``, return the state of another data module.
    """
    required = {"table", *SPLITS}
    states = (state for state in checkpoint.values() if isinstance(state, Mapping) and required <= state.keys())
    return checkpoint.get(data_class.__qualname__) or next(states, None)
