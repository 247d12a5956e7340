"""Keys of the values of an input: hashes of texts, and of the content of files."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray

from fusion_pl.data.feature_shards import KEY_BYTES, KEYS, FeatureShards, Keys, join_keys, write_shard
from fusion_pl.tables.remote import is_url
from fusion_pl.training.content_hash import hash_content

FILES_FOLDER = "files"  # shards with the hashes of files
# A file that was changed less than 2 s ago may change again without another modification time.
MIN_AGE_NS = 2_000_000_000


class ValueKeys(NamedTuple):
    """Keys of N values, and size and modification time (ns) of their files when the keys were computed (0: no file)."""

    keys: Keys
    signatures: Int[NDArray[Any], "N 2"]


def value_keys(cells: Sequence[Any], reads_files: bool, folder: Path) -> ValueKeys:
    """Return a key for each cell, which depends only on the content of the value.

    Args:
        cells: cells that are not missing; if the processor reads files, a ``str`` (of several columns, the first) is an
            absolute path.
        reads_files: whether the processor reads files.
        folder: folder of the cache, which remembers the hash of a file by path, size and modification time, so that
            the next run does not read the file.
    """
    paths = {index: path for index, cell in enumerate(cells) if (path := path_of(cell, reads_files)) is not None}
    signatures = np.zeros((len(cells), 2), np.int64)
    contents: dict[int, bytes] = {}
    if paths:
        signatures[list(paths)] = [file_signature(path) for path in paths.values()]
        hashes = _file_hashes(list(paths.values()), signatures[list(paths)], folder)
        contents = dict(zip(paths, hashes, strict=True))
    keys = (
        # Processors may choose a decoder by the ending of the name.
        hash_content((contents[index], Path(paths[index]).suffix, cell[1:] if isinstance(cell, tuple) else ()))
        if index in paths
        else hash_content(cell)
        for index, cell in enumerate(cells)
    )
    return ValueKeys(join_keys(keys), signatures)


def path_of(cell: Any, reads_files: bool) -> str | None:
    """Return the path in a cell; None if it contains none, or a URL, at which a file must not change."""
    first = cell[0] if isinstance(cell, tuple) else cell
    return first if reads_files and isinstance(first, str) and not is_url(first) else None


def file_signature(path: str) -> tuple[int, int]:
    """Return size and modification time (ns) of a file; zeros if it does not exist."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # ValueError: a null byte in the name
        return 0, 0
    return status.st_size, status.st_mtime_ns


def _file_hashes(paths: Sequence[str], signatures: Int[NDArray[Any], "N 2"], folder: Path) -> list[bytes]:
    """Return a hash of the content of each file; of a file that cannot be read, a random one."""
    quick = join_keys(hash_content(key) for key in zip(paths, *signatures.T.tolist(), strict=True))
    known = FeatureShards(folder / FILES_FOLDER)
    rows = known.find(quick)
    hashes = [b""] * len(paths)
    if len(known):
        remembered = np.concatenate([tensors["hashes"].numpy() for tensors in known.tensors])
        hashes = [remembered[row].tobytes() if row >= 0 else b"" for row in rows.tolist()]
    new: list[int] = []
    unknown = np.flatnonzero(rows < 0).tolist()
    with ThreadPoolExecutor() as threads:
        for index, content in zip(unknown, threads.map(_hash_file, [paths[index] for index in unknown]), strict=True):
            hashes[index] = content or os.urandom(KEY_BYTES)  # opening it fails later, with a message
            signature = tuple(signatures[index].tolist())
            is_settled = time.time_ns() - signature[1] > MIN_AGE_NS
            if content and is_settled and file_signature(paths[index]) == signature:
                new.append(index)
    if new:
        tensors = {KEYS: torch.from_numpy(quick[new]), "hashes": torch.from_numpy(join_keys(hashes[i] for i in new))}
        with suppress(OSError):  # a full disk: the next run reads the files again
            write_shard(folder / FILES_FOLDER, tensors)
    return hashes


def _hash_file(path: str) -> bytes | None:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").digest()[:KEY_BYTES]
    except (OSError, ValueError):
        return None
