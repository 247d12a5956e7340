"""What a checkpoint knows of the rows that it was trained, validated and tested on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fusion_pl.data.splits import SPLITS, Split
from fusion_pl.types import UserError


@dataclass(frozen=True)
class StoredSplits:
    """The splits of a run, by the keys of the rows.

    Attributes:
        table: hash of the table.
        keys: split -> the keys of its rows. Rows of the same content that a manifest names apart are in several.
    """

    table: str
    keys: Mapping[Split, frozenset[int]]

    @classmethod
    def of(cls, table: str, keys: Sequence[int], splits: Mapping[Split, Sequence[int]]) -> StoredSplits:
        """Store the splits of a table.

        Args:
            table: its hash.
            keys: one for each row.
            splits: split -> its rows.
        """
        return cls(table, {split: frozenset(keys[row] for row in rows) for split, rows in splits.items()})

    @classmethod
    def from_state(cls, state: Any) -> StoredSplits:
        """Read what ``state`` returned, from a checkpoint that anybody may have written.

        Raises:
            UserError: where it is something else.
        """
        if not isinstance(state, Mapping) or not all(_are_keys(state.get(split)) for split in SPLITS):
            raise UserError(
                "the checkpoint's record of its splits is damaged: use another checkpoint of the run, or train it again"
            )
        return cls(str(state.get("table")), {split: frozenset(state[split].tolist()) for split in SPLITS})

    def state(self) -> dict[str, Any]:
        """Return it as plain data for a checkpoint."""
        return {"table": self.table} | {
            split: torch.tensor(sorted(keys), dtype=torch.int64) for split, keys in self.keys.items()
        }

    def after(self, earlier: StoredSplits | None) -> StoredSplits:
        """Add the rows of an earlier part of the run that have left the table."""
        if earlier is None:
            return self
        here = frozenset[int]().union(*self.keys.values())
        return StoredSplits(
            self.table, {split: keys | (earlier.keys[split] - here) for split, keys in self.keys.items()}
        )

    def kept(self, keys: Sequence[int]) -> dict[int, Split]:
        """Return row -> its split, of the rows that are known; train where there are several."""
        return {row: split for split in reversed(SPLITS) for row, key in enumerate(keys) if key in self.keys[split]}

    def trained_on(self, keys: Sequence[int], rows: Sequence[int], split: Split) -> list[int]:
        """Return which rows of a split the checkpoint was trained on, and not also measured on by the same split."""
        learnt = self.keys["train"] - self.keys[split]
        return [row for row in rows if keys[row] in learnt]

    def difference(self, table: str, keys: Sequence[int]) -> str | None:
        """Say how a table differs from that of the training; None where it does not.

        Args:
            table: its hash.
            keys: one for each row.
        """
        if table == self.table:
            return None
        known = frozenset[int]().union(*self.keys.values())
        new, gone = sum(key not in known for key in keys), len(known.difference(keys))
        if new == len(keys):
            return f"is not the table of the training: none of its {new} rows was there"
        if not new and not gone:
            return "has changed since the training: the same rows with other cells"
        added = f"{new} of its {len(keys)} rows {'is' if new == 1 else 'are'} new"
        left = f"{gone} {'row is' if gone == 1 else 'rows are'} gone"
        return "has changed since the training: " + " and ".join([added] * (new > 0) + [left] * (gone > 0))


def _are_keys(value: Any) -> bool:
    """Say whether a value is a plain row of keys, not one number that claims to be a billion of them."""
    plain = isinstance(value, torch.Tensor) and value.layout == torch.strided and value.device.type == "cpu"
    return plain and value.dtype == torch.int64 and value.dim() == 1 and value.is_contiguous()


def record_in(checkpoint: Mapping[str, Any], kind: type) -> Any:
    """Return a checkpoint's record of its splits, whatever class wrote it; None where it has none.

    Lightning keeps the state of the data under the name of its class, so a subclass would not find that of its base.

    Args:
        checkpoint: as it was read.
        kind: class of the data now; what stands under its name comes first.
    """
    if own := checkpoint.get(kind.__qualname__):
        return own
    wanted = {"table", *SPLITS}
    return next((one for one in checkpoint.values() if isinstance(one, Mapping) and wanted <= one.keys()), None)


def without_splits(drawn: Sequence[Split]) -> str:
    """Say what it means that a checkpoint, an older one or one of other data, does not know its splits.

    Args:
        drawn: splits that the table does not name.
    """
    return (
        "the checkpoint does not say which rows it was trained on, so that those drawn for "
        f"{' and '.join(drawn)} may be among them: train again with this table"
    )
