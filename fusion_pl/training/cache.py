"""Cache the outputs of frozen encoders on disk, for all epochs, heads and runs."""

from __future__ import annotations

import contextlib
import errno
import logging
import shutil
import zlib
from collections.abc import Collection, Sequence
from pathlib import Path

import torch
from lightning.pytorch.utilities import rank_zero_info
from safetensors.torch import load, save
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from fusion_pl.encoders.base import Encoder, is_frozen
from fusion_pl.files import atomic_path
from fusion_pl.training.cache_keys import encoder_key, row_keys
from fusion_pl.types import Encoded

CachedRow = dict[str, Tensor]
TOKEN_FIELDS = ("tokens", "mask")  # fields of ``Encoded`` with one entry per token
CHECKSUM_BYTES = 4  # length of the checksum at the end of a file
MAX_RECOUNTS = 16  # how often the size of the folder, which may have 100,000 files, is computed until the limit
RESERVED_BYTES = 2**30  # disk space that the cache leaves free for checkpoints
logger = logging.getLogger(__name__)


class EncoderCaches:
    """Caches of all frozen encoders of a model: one ``EncodedCache`` per encoder.

    Encoders may be frozen and unfrozen during training. The arguments are the same as for
    ``FusionClassifier.enable_cache``.
    """

    def __init__(self, folder: Path, augmented_inputs: Collection[str], max_bytes: int | None = None) -> None:
        self.folder, self.augmented_inputs = folder, set(augmented_inputs)
        self.budget = DiskBudget(folder, max_bytes)
        self.caches: dict[str, EncodedCache] = {}

    def use_fixed_crops(self, encoders: Sequence[tuple[str, Encoder]]) -> None:
        """Crop long clips to their centre for frozen encoders, because the cache needs a row for each random crop."""
        for _, encoder in encoders:
            if is_frozen(encoder) and hasattr(encoder.processor, "fixed_crop"):
                encoder.processor.fixed_crop = True

    def start(self, encoders: Sequence[tuple[str, Encoder]], training: bool) -> None:
        """Discard the caches of the previous stage; log a message if nothing, or only validation, can be cached."""
        self.caches.clear()
        self.use_fixed_crops(encoders)  # a callback may have frozen encoders
        frozen = {name for name, encoder in encoders if is_frozen(encoder)}
        if not frozen:
            rank_zero_info("Cache: nothing is cached, because no encoder is frozen (freeze: all).")
        elif training and frozen <= self.augmented_inputs:
            names = ", ".join(sorted(frozen))
            rank_zero_info(f"Cache: only validation is cached, because training augments all frozen inputs ({names}).")

    def encode(self, name: str, encoder: Encoder, inputs: dict[str, Tensor], training: bool) -> Encoded:
        """Return the encoder output for the P samples that have the input, from the cache if possible."""
        frozen = is_frozen(encoder)
        if not frozen:
            self.caches.pop(name, None)  # its weights change, which invalidates the cache
        if not frozen or (training and name in self.augmented_inputs):
            encoded: Encoded = encoder(**inputs)
            return encoded
        if name not in self.caches:
            self.caches[name] = EncodedCache(encoder, self.folder, self.budget)
        return self.caches[name](inputs)


class DiskBudget:
    """Limit on the size of a cache folder that several processes write to.

    Rows are never removed from the cache: every epoch reads all rows, so a row that is removed is needed again.

    Args:
        folder: folder of all caches.
        max_bytes: maximum size in bytes, which several processes together may exceed; None: no limit.
    """

    def __init__(self, folder: str | Path, max_bytes: int | None = None) -> None:
        self.folder, self.max_bytes = Path(folder), max_bytes
        self.remaining = 0  # bytes to write until the folder size is computed again

    def reserve(self, size: int) -> None:
        """Reserve ``size`` bytes, or raise an ``OSError`` if the limit is reached or the disk is nearly full."""
        if shutil.disk_usage(self.folder).free < RESERVED_BYTES:
            raise OSError(errno.ENOSPC, "less than 1 GiB is left on the disk")
        if self.max_bytes is None:
            return
        if size > self.remaining:
            free = self.max_bytes - folder_bytes(self.folder)
            if size > free:
                raise OSError(errno.ENOSPC, f"its limit is {self.max_bytes / 2**30:g} GiB, see --cache_limit")
            self.remaining = max(size, min(free, self.max_bytes // MAX_RECOUNTS))
        self.remaining -= size


def folder_bytes(folder: Path) -> int:
    """Return the total size of the files below a folder in bytes."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # renamed or deleted by another process
            total += path.stat().st_size if path.is_file() else 0
    return total


class EncodedCache:
    """Cache of the outputs of one frozen encoder, which runs only for rows that are not cached yet.

    Each row of the output has a file. The file name is a hash of the encoder's input without padding; the folder name
    is a hash of the encoder: weights, buffers, arguments, files, source code, and library versions. Files are written
    atomically, so that processes can share a folder, and end with a checksum, so that damaged rows are computed again.
    If the disk is full, no more files are written.

    Args:
        encoder: a frozen encoder, which is set to evaluation mode.
        folder: folder of the caches of all encoders.
        budget: limit on the size of the folder; None: limited by the free disk space.
    """

    def __init__(self, encoder: Encoder, folder: str | Path, budget: DiskBudget | None = None) -> None:
        self.budget = budget or DiskBudget(folder)
        self.encoder = encoder.eval()  # in training mode the output may be random
        self.folder = Path(folder) / encoder_key(encoder)
        self.is_full = False

    def __call__(self, inputs: dict[str, Tensor]) -> Encoded:
        """Return the encoder output for the P rows of ``inputs``, the keyword arguments of the encoder."""
        device = next(iter(inputs.values())).device
        paths = [self.folder / key[:2] / f"{key}.row" for key in row_keys(inputs)]
        rows = [_read_row(path) for path in paths]
        if missing := [index for index, row in enumerate(rows) if row is None]:
            indices = torch.tensor(missing, device=device)
            encoded = self.encoder(**{name: value[indices] for name, value in inputs.items()})
            for index, row in zip(missing, _split_rows(encoded), strict=True):
                rows[index] = row
                self._write(paths[index], row)
        return _join_rows([row for row in rows if row is not None], device)

    def _write(self, path: Path, row: CachedRow) -> None:
        if self.is_full:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            content = save(row)
            self.budget.reserve(len(content) + CHECKSUM_BYTES)
            with atomic_path(path, concurrent=True) as partial:
                partial.write_bytes(content + _checksum(path, content))
        except OSError as error:
            self.is_full = True
            logger.warning("The cache %s is full (%s): rows without a file are computed each time", self.folder, error)


def _split_rows(encoded: Encoded) -> list[CachedRow]:
    """Split encoder outputs into rows, and remove the padding after the last real token of each row."""
    lengths = (encoded.mask * torch.arange(1, 1 + encoded.mask.shape[1], device=encoded.mask.device)).amax(1).tolist()
    tensors = {name: value.cpu() for name, value in encoded._asdict().items() if value is not None}
    rows: list[CachedRow] = []
    for index, length in enumerate(lengths):
        row = {name: value[index] for name, value in tensors.items()}
        row |= {name: row[name][:length] for name in TOKEN_FIELDS}
        rows.append({name: value.clone(memory_format=torch.contiguous_format) for name, value in row.items()})
    return rows


def _read_row(path: Path) -> CachedRow | None:
    """Read a row from its file, or return None if the file does not exist or is damaged."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    row, checksum = content[:-CHECKSUM_BYTES], content[-CHECKSUM_BYTES:]
    return load(row) if checksum == _checksum(path, row) else None


def _checksum(path: Path, row: bytes) -> bytes:
    """Return the CRC-32 of a row's file name and content, which detects damaged and swapped files."""
    return zlib.crc32(row, zlib.crc32(path.stem.encode())).to_bytes(CHECKSUM_BYTES)


def _join_rows(rows: list[CachedRow], device: torch.device) -> Encoded:
    tensors: dict[str, Tensor] = {}
    for name in rows[0]:
        values = [row[name] for row in rows]
        joined = pad_sequence(values, batch_first=True) if name in TOKEN_FIELDS else torch.stack(values)
        tensors[name] = joined.to(device)
    return Encoded(**tensors)
