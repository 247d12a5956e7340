"""Read arrays from .npy, .npz, .pt and .safetensors files, without executing code or trusting their sizes."""

from __future__ import annotations

import io
import lzma
import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor

from fusion_pl.files import check_regular_file
from fusion_pl.messages import did_you_mean, error_reason, join_names, truncate
from fusion_pl.processors.base import Source, describe_source
from fusion_pl.torch_files import READ_ERRORS, RefusedFileError, describe_error, load_torch_file
from fusion_pl.types import UserError

MAX_BYTES = 2**29  # of an array; the members of an .npz file may be compressed to a thousandth of their size
NPY_MAGIC, ZIP_MAGIC = b"\x93NUMPY", b"PK"
HINT = "replace it or leave this input out"
# Errors of zipfile on damaged files; RuntimeError: encrypted, or an unknown compression.
ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, RuntimeError, ValueError, EOFError, struct.error)
# Errors of numpy on damaged headers, which are Python literals.
HEADER_ERRORS = (ValueError, TypeError, SyntaxError, LookupError, RecursionError, MemoryError, tokenize.TokenError)


def read_array(source: Source, key: str | None = None, max_rows: int | None = None) -> Tensor:
    """Read an array of numbers from the path or the content of a file, whose format is recognised by its content.

    Args:
        source: path or content of an .npy, .npz, .pt or .safetensors file.
        key: name of the array in a file of several arrays; None if the file has only one.
        max_rows: number of rows of an array (T, F) that are needed; the others of an .npy file are not read.

    Raises:
        UserError: if the file is missing or damaged, is no array of numbers, or contains code.
    """
    name = describe_source(source, "array")
    if not isinstance(source, bytes):
        check_regular_file(source)
    try:
        with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as file:
            start, size = file.read(9), file.seek(0, io.SEEK_END)
            file.seek(0)
            if start.startswith(NPY_MAGIC):
                return _read_npy(file, size, name, max_rows)
            if start.startswith(ZIP_MAGIC):
                with zipfile.ZipFile(file) as archive:
                    if not any(member.endswith("/data.pkl") for member in archive.namelist()):
                        return _read_npz(archive, key, name)
                return _read_torch(source, key, name)
        if start[8:] == b"{":
            return _read_safetensors(source, key, name)
    except UserError:  # which is a ValueError, too
        raise
    except ZIP_ERRORS as error:
        raise _damaged(name, error_reason(error)) from error
    except OSError as error:
        raise _damaged(name, error.strerror or error_reason(error)) from error
    raise _damaged(name, "it is empty" if not size else "it is another kind of file")


def _damaged(name: str, reason: str) -> UserError:
    reason = reason.rstrip(".")
    return UserError(f"{name} cannot be read as an array ({reason}): expected .npy, .npz, .pt or .safetensors; {HINT}")


def _read_npy(file: Any, size: int, name: str, max_rows: int | None = None) -> Tensor:
    """Read an .npy file of ``size`` bytes; its header is checked before memory is allocated."""
    try:
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0)):  # version 3 is that of records
            raise ValueError("it is an array of records")
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, is_fortran, dtype = read_header(file)
    except HEADER_ERRORS as error:
        raise _damaged(name, error_reason(error)) from error
    if dtype.kind not in "biuf":
        raise UserError(f"{name} holds {truncate(str(dtype))}, expected an array of numbers; {HINT}")
    num_bytes = math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or num_bytes > size - file.tell():
        raise _damaged(name, f"it is truncated: its header promises shape {shape}")
    _check_size(num_bytes, name)
    if max_rows is not None and len(shape) == 2 and not is_fortran:
        shape = (min(max_rows, shape[0]), shape[1])
        num_bytes = math.prod(shape) * dtype.itemsize
    content = bytearray(file.read(num_bytes))
    if len(content) < num_bytes:
        raise _damaged(name, f"it is truncated: its header promises shape {shape}")
    array: NDArray[Any] = np.frombuffer(content, dtype).reshape(shape, order="F" if is_fortran else "C")
    return to_tensor(array)


def _check_size(num_bytes: int, name: str) -> None:
    if num_bytes > MAX_BYTES:
        raise UserError(f"{name} has {num_bytes / 2**20:.0f} MiB, expected at most {MAX_BYTES // 2**20}: split it")


def _read_npz(archive: zipfile.ZipFile, key: str | None, name: str) -> Tensor:
    members = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}
    key = _select(members, key, name)
    with archive.open(members[key]) as file:
        return _read_npy(file, members[key].file_size, f"{name}, array {key!r},")  # whole, for its checksum


def _read_torch(source: Source, key: str | None, name: str) -> Tensor:
    try:
        value = load_torch_file(source if isinstance(source, bytes) else str(source))
    except (*READ_ERRORS, RefusedFileError) as error:
        raise _damaged(name, describe_error(error)) from error
    if isinstance(value, dict):
        value = value[_select([item for item in value if isinstance(item, str)], key, name)]
    if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_meta or value.is_quantized:
        raise UserError(f"{name} holds a {type(value).__name__}, expected a dense tensor, or a dictionary of tensors")
    return _check_tensor(value, name)


def _read_safetensors(source: Source, key: str | None, name: str) -> Tensor:
    try:
        if isinstance(source, bytes):
            tensors = safetensors.torch.load(source)
            return _check_tensor(tensors[_select(tensors, key, name)], name)
        with safetensors.safe_open(source, framework="pt") as file:
            return _check_tensor(file.get_tensor(_select(file.keys(), key, name)), name)
    except safetensors.SafetensorError as error:
        raise _damaged(name, error_reason(error)) from error


def _check_tensor(value: Tensor, name: str) -> Tensor:
    """Check the size of a tensor, which may be larger than its storage, and its type."""
    _check_size(value.numel() * value.element_size(), name)
    if value.is_complex():
        raise UserError(f"{name} holds {value.dtype}, expected an array of numbers; {HINT}")
    return value.detach()


def _select(keys: Iterable[str], key: str | None, name: str) -> str:
    """Return ``key``, or the only one of the keys if it is None."""
    keys = sorted(keys)
    if key is None and len(keys) == 1:
        return keys[0]
    known = f"{name} holds {'no array' if not keys else 'the arrays ' + join_names(map(truncate, keys))}"
    if key is None:
        raise UserError(f"{known}: select one with the argument key of the FeatureEncoder")
    if key not in keys:
        raise UserError(f"{known}, but no {key!r}{did_you_mean(key, keys)}")
    return key


def to_tensor(array: NDArray[Any]) -> Tensor:
    """Convert an array of numbers; types that torch lacks become float64."""
    if array.dtype.kind == "f" and array.dtype.itemsize <= 8:
        array = array.astype(array.dtype.newbyteorder("="), copy=False)
    elif array.dtype.kind != "b":
        array = array.astype(np.float64)
    return torch.from_numpy(np.ascontiguousarray(array).reshape(array.shape))
