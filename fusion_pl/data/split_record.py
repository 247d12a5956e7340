"""The record in a checkpoint of the rows that it was trained, validated and tested on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fusion_pl.data.splits import SPLITS, Split
from fusion_pl.types import UserError


@dataclass(frozen=True)
class SplitRecord:
    """The splits of a run, as the keys of their rows.

    Rows with the same content, which have the same key, may be in several splits.
    """

    table_hash: str
    keys: Mapping[Split, frozenset[int]]

    @classmethod
    def from_state(cls, state: Any) -> SplitRecord:
        """Read the result of ``state_dict`` from a checkpoint that anybody may have written.

        Raises:
            UserError: if it is damaged.
        """
        if not isinstance(state, Mapping) or not all(_is_key_tensor(state.get(split)) for split in SPLITS):
            raise UserError(
                "the checkpoint's record of its splits is damaged: use another checkpoint of the run, or train it again"
            )
        return cls(str(state.get("table")), {split: frozenset(state[split].tolist()) for split in SPLITS})

    def state_dict(self) -> dict[str, Any]:
        """Return the record as plain data."""
        return {"table": self.table_hash} | {
            split: torch.tensor(sorted(keys), dtype=torch.int64) for split, keys in self.keys.items()
        }

    def all_keys(self) -> frozenset[int]:
        """Return the keys of all rows."""
        return frozenset[int]().union(*self.keys.values())

    def with_removed_rows(self, earlier: SplitRecord | None) -> SplitRecord:
        """Add the rows of an earlier part of the run that are no longer in the table."""
        if earlier is None:
            return self
        current = self.all_keys()
        keys = {split: keys | (earlier.keys[split] - current) for split, keys in self.keys.items()}
        return SplitRecord(self.table_hash, keys)

    def known_splits(self, keys: Sequence[int]) -> dict[int, Split]:
        """Return row -> its split for the recorded rows; train if there are several."""
        return {row: split for split in reversed(SPLITS) for row, key in enumerate(keys) if key in self.keys[split]}

    def trained_rows(self, keys: Sequence[int], rows: Sequence[int], split: Split) -> list[int]:
        """Return the rows of a split that the checkpoint was trained on and that are not recorded in that split too."""
        trained = self.keys["train"] - self.keys[split]
        return [row for row in rows if keys[row] in trained]

    def table_difference(self, table_hash: str, keys: Sequence[int]) -> str | None:
        """Describe how a table, with one key per row, differs from the recorded one; None if they are equal."""
        if table_hash == self.table_hash:
            return None
        recorded = self.all_keys()
        new, removed = sum(key not in recorded for key in keys), len(recorded.difference(keys))
        if new == len(keys):
            return f"is not the table of the training: none of its {new} rows was in it"
        if not new and not removed:
            return "has changed since the training: the same rows with other cells"
        added = f"{new} of its {len(keys)} rows {'is' if new == 1 else 'are'} new"
        gone = f"{removed} {'row is' if removed == 1 else 'rows are'} gone"
        return "has changed since the training: " + " and ".join([added] * (new > 0) + [gone] * (removed > 0))


def _is_key_tensor(value: Any) -> bool:
    """Return whether a value is a plain vector of int64 that takes no more memory than its storage."""
    is_plain = isinstance(value, torch.Tensor) and value.layout == torch.strided and value.device.type == "cpu"
    return is_plain and value.dtype == torch.int64 and value.dim() == 1 and value.is_contiguous()


def find_split_record(checkpoint: Mapping[str, Any], data_class: type) -> Any:
    """Return the state of the record of splits in a checkpoint; None if there is none.

    Lightning saves the state of a data module under the name of its class; without a state under the name of
    ``data_class``, that of another class is returned.
    """
    required = {"table", *SPLITS}
    states = (state for state in checkpoint.values() if isinstance(state, Mapping) and required <= state.keys())
    return checkpoint.get(data_class.__qualname__) or next(states, None)
