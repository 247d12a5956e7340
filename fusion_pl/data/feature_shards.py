"""Immutable files of tensors with one key per row. Several processes may write and memory-map them at the same time."""

from __future__ import annotations

import time
import uuid
import zlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from fusion_pl.files import PARTIAL, atomic_path

KEY_BYTES = 16
KEYS = "keys"  # tensor of every shard, (N, 16) uint8
SUFFIX = ".safetensors"
ABANDONED_SECONDS = 3600  # a shard is written in seconds, so an older partial file belongs to a killed process

Keys = UInt8[NDArray[Any], "N 16"]


def write_shard(folder: Path, tensors: Mapping[str, Tensor]) -> int:
    """Write a shard, and return its size in bytes; a process that is killed meanwhile leaves no shard.

    Args:
        folder: folder of shards with the same tensors.
        tensors: name -> tensor, including ``keys``.

    Raises:
        OSError: if the file cannot be written.
    """
    content = save({name: tensor.contiguous() for name, tensor in tensors.items()})
    name = uuid.uuid4().hex
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_path(folder / f"{name}-{_checksum(folder, name, content)}{SUFFIX}") as partial:
        partial.write_bytes(content)
    return len(content)


def find_shards(folder: Path, checked: Collection[str] = ()) -> list[str]:
    """Return the names of the shards of a folder whose checksum is right.

    Args:
        folder: folder of the shards.
        checked: names of shards whose checksum was right before; they are not read again.
    """
    _remove_abandoned(folder)
    found = sorted(path.name for path in folder.glob(f"*{SUFFIX}"))
    with ThreadPoolExecutor() as threads:
        is_valid = threads.map(lambda name: name in checked or _has_right_checksum(folder, name), found)
        return [name for name, valid in zip(found, is_valid, strict=True) if valid]


class FeatureShards:
    """Memory-mapped shards of a folder, as one long table whose rows are found by key.

    A damaged shard is left out. A pickled object contains only the names of the shards, which were checked before.

    Args:
        folder: folder of the shards.
        names: result of ``find_shards``; None = call it.
    """

    def __init__(self, folder: Path, names: Sequence[str] | None = None) -> None:
        self.folder = folder
        self.names = find_shards(folder) if names is None else list(names)
        self.tensors = [_map_tensors(folder / name) for name in self.names]
        self.starts = np.cumsum([0, *(len(tensors[KEYS]) for tensors in self.tensors)])  # first row of each shard

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __reduce__(self) -> tuple[Any, ...]:
        return FeatureShards, (self.folder, self.names)

    def find(self, keys: Keys) -> Int[NDArray[Any], " N"]:
        """Return the row of each key; -1 if no shard contains the key."""
        import pyarrow as pa  # its import takes 0.1 s
        import pyarrow.compute as pc

        if not len(self) or not len(keys):
            return np.full(len(keys), -1, np.int64)
        stored = np.concatenate([tensors[KEYS].numpy() for tensors in self.tensors])
        arrays = (
            pa.Array.from_buffers(pa.binary(KEY_BYTES), len(array), [None, pa.py_buffer(np.ascontiguousarray(array))])
            for array in (keys, stored)
        )
        rows = pc.index_in(*arrays).fill_null(-1)
        return np.asarray(rows).astype(np.int64)

    def locate(self, rows: Int[NDArray[Any], " N"]) -> tuple[Int[NDArray[Any], " N"], Int[NDArray[Any], " N"]]:
        """Return the index of the shard of each row, and its row in this shard."""
        shards = np.searchsorted(self.starts, rows, side="right") - 1
        return shards, rows - self.starts[shards]


def folder_bytes(folder: Path) -> int:
    """Return the total size of the files below a folder in bytes."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except OSError:  # renamed or deleted by another process
            continue
    return total


def join_keys(keys: Iterable[bytes]) -> Keys:
    """Return keys of 16 bytes as one array."""
    return np.frombuffer(bytearray().join(keys), np.uint8).reshape(-1, KEY_BYTES)


def unique_keys(keys: Keys) -> tuple[Int[NDArray[Any], " U"], Int[NDArray[Any], " N"]]:
    """Return the index of the first occurrence of each distinct key, in ascending order, and each key's index there."""
    joined = np.ascontiguousarray(keys).view(f"V{KEY_BYTES}").ravel()
    _, first, inverse = np.unique(joined, return_index=True, return_inverse=True)
    order = np.argsort(first)
    return first[order], np.argsort(order)[inverse]


def _checksum(folder: Path, name: str, content: bytes) -> str:
    """Return the CRC-32 of a shard and its place, which detects damaged, renamed and moved files."""
    return f"{zlib.crc32(content, zlib.crc32(f'{folder.name}/{name}'.encode())):08x}"


def _has_right_checksum(folder: Path, file_name: str) -> bool:
    name, _, checksum = file_name.removesuffix(SUFFIX).partition("-")
    try:
        return _checksum(folder, name, (folder / file_name).read_bytes()) == checksum
    except OSError:
        return False


def _map_tensors(path: Path) -> dict[str, Tensor]:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is not a dictionary


def _remove_abandoned(folder: Path) -> None:
    """Remove files that a killed process did not finish."""
    for path in folder.glob(f"*{PARTIAL}"):
        try:
            if time.time() - path.stat().st_mtime > ABANDONED_SECONDS:
                path.unlink()
        except OSError:  # removed by another process
            continue
