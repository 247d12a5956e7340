"""What frozen encoders return, kept on disk: computed once, however many epochs, heads and runs ask for it."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib.metadata
import inspect
import json
import logging
import os
import shutil
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from fusion_pl.encoders.base import Encoder
from fusion_pl.recipe import recipe_of
from fusion_pl.types import Encoded

Row = dict[str, Tensor]
PACKAGES = ("fusion-pl", "torch", "transformers")
DRIFTING = (nn.Dropout, nn.modules.batchnorm._BatchNorm)  # in training mode they differ from call to call
RESERVE = 2**30  # bytes that are left free on the disk: the run's checkpoints need room too
logger = logging.getLogger(__name__)


def is_frozen(encoder: Encoder) -> bool:
    """Say whether an encoder returns the same for the same values throughout, so that it can be kept.

    Not kept are levels that are handed on as they are (``Encoded.levels``), and what has nothing to compute with.
    """
    parameters = list(encoder.parameters())
    drifts = any(isinstance(part, DRIFTING) and part.training for part in encoder.modules())
    raw = bool(encoder.levels) and getattr(encoder, "depth", None) is None
    return bool(parameters) and not any(one.requires_grad for one in parameters) and not drifts and not raw


class EncodedCache:
    """Asks a frozen encoder only for rows that are not on the disk yet.

    A row's file is named by a hash of what the processor made of the value (so of the file's content and of its
    preprocessing, wherever the file lies; padding does not count), in a folder named by a hash of the encoder: its
    weights, buffers, arguments, files, source code, and the versions of the libraries. Rows are written whole or not at
    all, so that several processes may share a folder. The last GiB of a disk is left free; without the cache the run
    goes on, only slower.

    Args:
        encoder: a frozen one, with the weights that it will keep.
        folder: of all caches.
    """

    def __init__(self, encoder: Encoder, folder: str | Path) -> None:
        self.encoder = encoder
        self.folder = Path(folder) / _key_of(encoder)
        self.full = False

    def __call__(self, inputs: dict[str, Tensor]) -> Encoded:
        """Encode P rows, as the encoder does.

        Args:
            inputs: the encoder's keyword arguments.
        """
        device = next(iter(inputs.values())).device
        paths = [self.folder / key[:2] / f"{key}.safetensors" for key in _keys(inputs)]
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
        partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if shutil.disk_usage(path.parent).free < RESERVE:
                raise OSError(errno.ENOSPC, "less than 1 GiB is left on the disk")
            partial.write_bytes(save(row))
            partial.replace(path)
        except OSError as error:
            self.full = True
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            logger.warning("The cache %s takes no more (%s): what is missing is computed each time", self.folder, error)


def _key_of(encoder: Encoder) -> str:
    versions = [importlib.metadata.version(name) for name in PACKAGES]
    digest = hashlib.sha256(json.dumps([recipe_of(encoder), versions], sort_keys=True).encode())
    with contextlib.suppress(OSError):  # no source: an encoder that was typed into a shell
        digest.update(inspect.getsource(type(encoder)).encode())
    for name, content in sorted(encoder.files().items()):
        digest.update(name.encode() + content)
    for name, value in [*encoder.named_parameters(), *encoder.named_buffers()]:
        digest.update(name.encode() + _bytes(value))
    return digest.hexdigest()[:24]


def _keys(inputs: dict[str, Tensor]) -> list[str]:
    """Hash each row; zeros at its end are padding, since the mask says how long it is."""
    masks = [value.cpu() for value in inputs.values() if value.dtype == torch.bool]
    first = next(iter(inputs.values()))
    kind = first.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else torch.get_default_dtype()
    digests = [hashlib.sha256(str(dtype).encode()) for _ in first]
    for name, value in sorted(inputs.items()):
        plain = value.cpu()
        for mask in masks:
            if plain.shape == mask.shape:  # numbers of tokens, samples of a sound
                plain = plain.masked_fill(~mask, 0)
        for digest, row in zip(digests, plain, strict=True):
            digest.update(f"{name} {row.dtype} {list(row.shape[1:])}".encode())
            digest.update(_bytes(row).rstrip(b"\0"))
    return [digest.hexdigest() for digest in digests]


def _bytes(value: Tensor) -> bytes:
    return value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def _rows(encoded: Encoded) -> list[Row]:
    """Take the batch apart, each row as long as its last real token."""
    lengths = (encoded.mask * torch.arange(1, 1 + encoded.mask.shape[1], device=encoded.mask.device)).amax(1).tolist()
    parts = zip(encoded.tokens.cpu(), encoded.mask.cpu(), encoded.pooled.cpu(), lengths, strict=True)
    return [
        {
            name: value.clone(memory_format=torch.contiguous_format)
            for name, value in (("tokens", tokens[:length]), ("mask", mask[:length]), ("pooled", pooled))
        }
        for tokens, mask, pooled, length in parts
    ]


def _read(path: Path) -> Row | None:
    """Return a row, or None where there is none or its file is damaged: then it is computed and written anew."""
    try:
        return load_file(path)
    except (OSError, SafetensorError):
        return None


def _joined(rows: list[Row], device: torch.device) -> Encoded:
    tokens: Float[Tensor, "P T D"] = pad_sequence([row["tokens"] for row in rows], batch_first=True)
    mask: Bool[Tensor, "P T"] = pad_sequence([row["mask"] for row in rows], batch_first=True)
    return Encoded(tokens.to(device), mask.to(device), torch.stack([row["pooled"] for row in rows]).to(device))
