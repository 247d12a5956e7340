"""What frozen encoders return, kept on disk: computed once, however many epochs, heads and runs ask for it."""

from __future__ import annotations

import contextlib
import errno
import logging
import shutil
import zlib
from collections.abc import Collection, Sequence
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from lightning.pytorch.utilities import rank_zero_info
from safetensors.torch import load, save
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from fusion_pl.encoders.base import Encoder, is_frozen
from fusion_pl.files import atomic_path
from fusion_pl.training.cache_keys import encoder_key, row_keys
from fusion_pl.types import Encoded

Row = dict[str, Tensor]
CHECKSUM = 4  # bytes of it at the end of a row's file
COUNTINGS = 16  # of a folder until it is full: it may have a hundred thousand files
RESERVE = 2**30  # bytes that are left free on the disk: the run's checkpoints need room too
logger = logging.getLogger(__name__)


class Caches:
    """What a model's frozen encoders returned; which of them are frozen is asked anew each time.

    Args:
        folder: of all caches.
        augmented: inputs that training changes each time: theirs are kept in validation and test only.
        limit: bytes that the folder may hold; None: as much as the disk has room for.
    """

    def __init__(self, folder: Path, augmented: Collection[str], limit: int | None = None) -> None:
        self.folder, self.augmented = folder, set(augmented)
        self.room = Room(folder, limit)
        self.kept: dict[str, EncodedCache] = {}

    def use_fixed_crops(self, encoders: Sequence[tuple[str, Encoder]]) -> None:
        """Cut long clips of frozen encoders where validation does: at a random place each would be another row."""
        for _, encoder in encoders:
            if is_frozen(encoder) and hasattr(encoder.processor, "fixed"):
                encoder.processor.fixed = True

    def start(self, encoders: Sequence[tuple[str, Encoder]], training: bool) -> None:
        """Forget what went by earlier weights, and say so where the cache can do nothing."""
        self.kept.clear()
        self.use_fixed_crops(encoders)  # a callback may have frozen some since
        frozen = {name for name, encoder in encoders if is_frozen(encoder)}
        if not frozen:
            rank_zero_info("Cache: nothing is kept, because no encoder is frozen as a whole (freeze: all).")
        elif training and frozen <= self.augmented:
            names = ", ".join(sorted(frozen))
            rank_zero_info(f"Cache: only validation is kept, because training augments all frozen inputs ({names}).")

    def encode(self, name: str, encoder: Encoder, inputs: dict[str, Tensor], training: bool) -> Encoded:
        """Encode P rows of an input, or read them.

        Args:
            name: of the input.
            encoder: its own, frozen or not.
            inputs: the encoder's keyword arguments.
            training: whether the inputs are augmented, if they ever are.
        """
        kept = is_frozen(encoder)
        if not kept:
            self.kept.pop(name, None)  # when it is frozen again, it has other weights
        if not kept or (training and name in self.augmented):
            encoded: Encoded = encoder(**inputs)
            return encoded
        if name not in self.kept:
            self.kept[name] = EncodedCache(encoder, self.folder, self.room)
        return self.kept[name](inputs)


class Room:
    """How much a folder may still take, counting what other processes write into it.

    What is there stays, and what is new is not kept: every epoch reads all rows in turn, so that to drop the oldest
    ones would drop each row just before it is read again.

    Args:
        folder: of all caches.
        limit: bytes that it may hold, exceeded at most by what other processes write between two countings; None: any.
    """

    def __init__(self, folder: str | Path, limit: int | None = None) -> None:
        self.folder, self.limit = Path(folder), limit
        self.left = 0  # bytes until the folder is counted again

    def take(self, size: int) -> None:
        """Take room for some bytes.

        Raises:
            OSError: where there is none.
        """
        if shutil.disk_usage(self.folder).free < RESERVE:
            raise OSError(errno.ENOSPC, "less than 1 GiB is left on the disk")
        if self.limit is None:
            return
        if size > self.left:
            free = self.limit - folder_bytes(self.folder)
            if size > free:
                raise OSError(errno.ENOSPC, f"it may hold {self.limit / 2**30:g} GiB, see --cache_limit")
            self.left = max(size, min(free, self.limit // COUNTINGS))
        self.left -= size


def folder_bytes(folder: Path) -> int:
    """Return how many bytes the files below a folder have."""
    sizes = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # renamed or deleted since
            sizes += path.stat().st_size if path.is_file() else 0
    return sizes


class EncodedCache:
    """Asks a frozen encoder only for rows that are not on the disk yet.

    A row's file is named by a hash of what the processor made of the value (so of the file's content and of its
    preprocessing, wherever the file lies; padding does not count), in a folder named by a hash of the encoder: its
    weights, buffers, arguments, files, source code, and the versions of the libraries. A row is written atomically, so
    that several processes may share a folder, and ends with a checksum, so that a damaged one is computed anew. The
    last GiB of a disk is left free; without the cache the run goes on, only slower.

    Args:
        encoder: a frozen one, with the weights that it will keep.
        folder: of all caches.
        room: what it may still take; by default as much as the disk has room for.
    """

    def __init__(self, encoder: Encoder, folder: str | Path, room: Room | None = None) -> None:
        self.room = room or Room(folder)
        self.encoder = encoder.eval()  # in training mode it may differ from call to call
        self.folder = Path(folder) / encoder_key(encoder)
        self.full = False

    def __call__(self, inputs: dict[str, Tensor]) -> Encoded:
        """Encode P rows, as the encoder does.

        Args:
            inputs: the encoder's keyword arguments.
        """
        device = next(iter(inputs.values())).device
        paths = [self.folder / key[:2] / f"{key}.row" for key in row_keys(inputs)]
        rows = [_read(path) for path in paths]
        if missing := [place for place, row in enumerate(rows) if row is None]:
            chosen = torch.tensor(missing, device=device)
            encoded = self.encoder(**{name: value[chosen] for name, value in inputs.items()})
            for place, row in zip(missing, _rows(encoded), strict=True):
                rows[place] = row
                self._write(paths[place], row)
        return _joined([row for row in rows if row is not None], device)

    def _write(self, path: Path, row: Row) -> None:
        if self.full:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            content = save(row)
            self.room.take(len(content) + CHECKSUM)
            with atomic_path(path, concurrent=True) as partial:
                partial.write_bytes(content + _checksum(path, content))
        except OSError as error:
            self.full = True
            logger.warning("The cache %s takes no more (%s): what is missing is computed each time", self.folder, error)


def _rows(encoded: Encoded) -> list[Row]:
    """Take the batch apart, each row as long as its last real token."""
    lengths = (encoded.mask * torch.arange(1, 1 + encoded.mask.shape[1], device=encoded.mask.device)).amax(1).tolist()
    plain = {"embedding": encoded.embedding.cpu()} | (
        {} if encoded.layer_weights is None else {"layer_weights": encoded.layer_weights.cpu()}
    )
    tokens, mask = encoded.tokens.cpu(), encoded.mask.cpu()
    rows = [
        {"tokens": tokens[row, :length], "mask": mask[row, :length]} | {key: one[row] for key, one in plain.items()}
        for row, length in enumerate(lengths)
    ]
    return [{key: value.clone(memory_format=torch.contiguous_format) for key, value in row.items()} for row in rows]


def _read(path: Path) -> Row | None:
    """Return a row, or None where there is none or its file is damaged: then it is computed and written anew."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    row, checksum = content[:-CHECKSUM], content[-CHECKSUM:]
    return load(row) if checksum == _checksum(path, row) else None


def _checksum(path: Path, row: bytes) -> bytes:
    """Return the CRC-32 of a row and its name, so that neither damage nor another row's file goes unseen."""
    return zlib.crc32(row, zlib.crc32(path.stem.encode())).to_bytes(CHECKSUM)


def _joined(rows: list[Row], device: torch.device) -> Encoded:
    tokens: Float[Tensor, "P T D"] = pad_sequence([row["tokens"] for row in rows], batch_first=True)
    mask: Bool[Tensor, "P T"] = pad_sequence([row["mask"] for row in rows], batch_first=True)
    embedding = torch.stack([row["embedding"] for row in rows]).to(device)
    weights = torch.stack([row["layer_weights"] for row in rows]).to(device) if "layer_weights" in rows[0] else None
    return Encoded(tokens.to(device), mask.to(device), embedding, weights)
