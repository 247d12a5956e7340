"""Features: stored outputs of a frozen encoder, which stand in for an input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor

from fusion_pl.data.feature_shards import KEYS, FeatureShards, Keys, write_shard
from fusion_pl.processors import Processor
from fusion_pl.types import Encoded, UserError

MAX_JOINED_BYTES = 2**28  # embeddings of at most this size are copied from several shards to one tensor in memory


class StoredCells(Sequence[int | str | None]):
    """Cells of a stored input: rows of the feature store; None if the input is missing.

    Args:
        rows: rows of the store; -1 = missing.
        errors: index -> why the value could not be opened, which becomes the cell.
    """

    def __init__(self, rows: Int[NDArray[Any], " N"], errors: Mapping[int, str] | None = None) -> None:
        self.rows, self.errors = rows, dict(errors or {})

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        if index in self.errors:
            return self.errors[index]
        row = int(self.rows[index])
        return None if row < 0 else row


class FeatureStore(Processor):
    """Processor that reads the stored output of an encoder instead of a value; ``Encoded`` instead of tensors.

    If only embeddings are stored, each is also the only token of its ``Encoded``.

    Args:
        shards: shards as ``write_features`` writes them, with at least one row.
    """

    def __init__(self, shards: FeatureShards) -> None:
        self.shards = shards

    def __reduce__(self) -> tuple[Any, ...]:
        return FeatureStore, (self.shards,)

    @cached_property
    def _table(self) -> dict[str, Tensor] | None:
        """Tensors of the only shard, or of all shards joined; None if there are tokens, or they are large."""
        parts = self.shards.tensors
        if len(parts) == 1:
            return parts[0]
        names = parts[0].keys() - {KEYS}
        size = sum(part[name].nbytes for part in parts for name in names)
        if "tokens" in names or size > MAX_JOINED_BYTES:
            return None
        return {name: torch.cat([part[name] for part in parts]) for name in names}

    def open(self, value: int | str, training: bool = False) -> int:
        """Return a row of the store; raise a message about a value that could not be opened, see ``StoredCells``."""
        del training
        if isinstance(value, str):
            raise UserError(value)
        return value

    def placeholder(self) -> int:
        """Return the first row."""
        return 0

    def __call__(self, values: Sequence[int], training: bool = False) -> Encoded:  # type: ignore[override]
        """Gather P rows, and pad their tokens."""
        del training
        return self.gather(np.asarray(values, np.int64))

    def gather(self, rows: Int[NDArray[Any], " P"]) -> Encoded:
        """Gather P rows, and pad their tokens."""
        if self._table is not None:
            return _gather(self._table, torch.from_numpy(rows))
        shards, local = self.shards.locate(rows)
        order = np.argsort(shards, kind="stable")
        first = np.flatnonzero(np.diff(shards[order], prepend=-1))
        groups = np.split(order, first[1:])
        parts = [_gather(self.shards.tensors[shards[group[0]]], torch.from_numpy(local[group])) for group in groups]
        return _join(parts, torch.from_numpy(np.argsort(order)))


def write_features(folder: Path, keys: Keys, encoded: Sequence[Encoded], dtype: torch.dtype, with_tokens: bool) -> int:
    """Write a shard with the features of N values, and return its size in bytes.

    Args:
        folder: folder of the store.
        keys: key of each value.
        encoded: batches of N outputs in total.
        dtype: type of the stored numbers.
        with_tokens: whether to store tokens; if not, only the embeddings.
    """
    tensors: dict[str, Tensor] = {
        KEYS: torch.from_numpy(keys),
        "embedding": torch.cat([batch.embedding for batch in encoded]).to(dtype),
        "is_real": torch.cat([batch.mask.any(1) for batch in encoded]),
    }
    if encoded[0].layer_weights is not None:
        tensors["layer_weights"] = torch.cat([b.layer_weights for b in encoded if b.layer_weights is not None]).to(
            dtype
        )
    if with_tokens:
        lengths = torch.cat([_lengths(batch.mask) for batch in encoded])
        tensors["offsets"] = F.pad(lengths.cumsum(0), (1, 0))
        tensors["tokens"] = torch.cat([batch.tokens[_is_stored(batch.mask)] for batch in encoded]).to(dtype)
        tensors["token_mask"] = torch.cat([batch.mask[_is_stored(batch.mask)] for batch in encoded])
    return write_shard(folder, tensors)


def bytes_per_value(encoded: Encoded, dtype: torch.dtype, with_tokens: bool) -> float:
    """Return the mean size of the stored output of a value in bytes."""
    weights = 0 if encoded.layer_weights is None else encoded.layer_weights.shape[1]
    size = (encoded.embedding.shape[1] + weights) * dtype.itemsize + 17.0
    if with_tokens:
        tokens = _lengths(encoded.mask).float().mean().item()
        size += 8 + tokens * (encoded.tokens.shape[2] * dtype.itemsize + 1)
    return size


def _lengths(mask: Tensor) -> Tensor:
    """Return the number of tokens of each row up to the last real one."""
    positions = torch.arange(1 + mask.shape[1], device=mask.device)
    return (F.pad(mask, (1, 0)) * positions).amax(1)


def _is_stored(mask: Tensor) -> Tensor:
    """Return a mask of the tokens up to the last real one of each row."""
    return torch.arange(mask.shape[1], device=mask.device) < _lengths(mask).unsqueeze(1)


def _gather(tensors: dict[str, Tensor], rows: Tensor) -> Encoded:
    embedding = tensors["embedding"].index_select(0, rows).float()
    weights = tensors["layer_weights"].index_select(0, rows).float() if "layer_weights" in tensors else None
    if "tokens" not in tensors:
        return Encoded(
            embedding.unsqueeze(1), tensors["is_real"].index_select(0, rows).unsqueeze(1), embedding, weights
        )
    starts = tensors["offsets"].index_select(0, rows)
    lengths = tensors["offsets"].index_select(0, rows + 1) - starts
    positions = torch.arange(max(int(lengths.max()), 1))
    padding = positions >= lengths.unsqueeze(1)
    last = len(tensors["tokens"]) - 1
    if last < 0:  # no value has a token
        shape = (len(rows), 1, tensors["tokens"].shape[1])
        return Encoded(embedding.new_zeros(shape), torch.zeros(shape[:2], dtype=torch.bool), embedding, weights)
    index = (starts.unsqueeze(1) + positions).masked_fill_(padding, 0).flatten()
    tokens = tensors["tokens"].index_select(0, index).float().view(len(rows), len(positions), -1)
    mask = tensors["token_mask"].index_select(0, index).view(padding.shape) & ~padding
    return Encoded(tokens.masked_fill_(padding.unsqueeze(-1), 0.0), mask, embedding, weights)


def _join(parts: Sequence[Encoded], order: Tensor) -> Encoded:
    """Concatenate batches, padded to the same number of tokens, and reorder their rows."""
    length = max(part.mask.shape[1] for part in parts)
    missing = [length - part.mask.shape[1] for part in parts]
    tokens = [F.pad(part.tokens, (0, 0, 0, count)) for part, count in zip(parts, missing, strict=True)]
    mask = [F.pad(part.mask, (0, count)) for part, count in zip(parts, missing, strict=True)]
    embedding = torch.cat([part.embedding for part in parts])[order]
    weights = [part.layer_weights for part in parts if part.layer_weights is not None]
    return Encoded(
        torch.cat(tokens)[order], torch.cat(mask)[order], embedding, torch.cat(weights)[order] if weights else None
    )
