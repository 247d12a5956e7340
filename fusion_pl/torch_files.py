"""Read files of ``torch.save`` as plain data and tensors, without executing code or unpacking compressed data."""

from __future__ import annotations

import io
import pickle
import pickletools
import re
import struct
import zipfile
from pathlib import Path
from typing import Any

import torch

from fusion_pl.messages import truncate

MAX_PICKLE_SIZE = 2**28  # bytes of the pickle, which contains everything except tensors, such as tokenizer files
MAX_PICKLE_STEPS = 5_000_000  # number of opcodes, each of which can create an object of about 100 bytes
# Functions and classes that a pickle may use. torch.load(weights_only=True) allows more, with which a pickle could
# allocate any amount of memory.
ALLOWED_GLOBALS = {
    "collections OrderedDict",
    "collections Counter",
    "__builtin__ set",
    "torch Size",
    "torch device",
    "torch.serialization _get_layout",
    "torch.nn.parameter Parameter",
    "torch._utils _rebuild_parameter",
    "torch._utils _rebuild_tensor_v2",
}
DAMAGED_MESSAGE = "it is damaged, or it contains more than plain data"
BYTES_GLOBAL = "_codecs encode"  # function that restores bytes, which are pickled as text
ALLOWED_TYPES = re.compile(r"torch (\w+Storage|b?float\d+|u?int\d+|bool|complex\d+)")

# Errors of zipfile, pickletools and torch on damaged files.
READ_ERRORS = (ValueError, LookupError, RuntimeError, EOFError, OverflowError, struct.error, pickle.UnpicklingError)


class RefusedFileError(Exception):
    """Raised with the reason why a file is refused."""


def load_torch_file(source: str | Path | bytes) -> Any:
    """Load tensors and plain data from the path or the content of a file; tensors of a path are memory-mapped.

    Raises:
        RefusedFileError: if the file contains more than plain data and tensors.
        zipfile.BadZipFile: if the file is not an archive of ``torch.save``, or a checksum is wrong.
        READ_ERRORS: if the file is damaged in another way.
    """
    _check_pickle(_check_archive(io.BytesIO(source) if isinstance(source, bytes) else source))
    try:
        file = io.BytesIO(source) if isinstance(source, bytes) else source
        return torch.load(file, map_location="cpu", weights_only=True, mmap=not isinstance(source, bytes))
    except (TypeError, AttributeError, AssertionError, ArithmeticError) as error:  # values of the wrong type
        raise RefusedFileError(DAMAGED_MESSAGE) from error


def describe_error(error: Exception) -> str:
    """Return a message for an error, without torch's advice to disable ``weights_only``."""
    if isinstance(error, RefusedFileError):
        return str(error)
    if match := re.search(r"GLOBAL ([\w.]+)", str(error)):
        return f"it asks to run {truncate(match[1])}, and it may contain plain data only"
    return DAMAGED_MESSAGE


def _check_archive(file: str | Path | io.BytesIO) -> bytes:
    """Check the files in the archive and their checksums, which ``torch.load`` ignores, and return the pickle."""
    size = file.getbuffer().nbytes if isinstance(file, io.BytesIO) else Path(file).stat().st_size
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise RefusedFileError("it is compressed, which torch.save does not do")
        if sum(member.file_size for member in members) > size:
            raise RefusedFileError("its members are larger than the file")
        if len({member.filename for member in members}) < len(members):
            raise RefusedFileError("two of its members have the same name")
        damaged = archive.testzip()
        if damaged is not None:
            raise zipfile.BadZipFile(f"the checksum of {truncate(damaged)} is wrong")
        pickles = [member for member in members if member.filename.endswith("/data.pkl")]
        if len(pickles) != 1 or pickles[0].file_size > MAX_PICKLE_SIZE:
            raise RefusedFileError("it does not contain one data.pkl of a plausible size")
        return archive.read(pickles[0])


def _check_pickle(data: bytes) -> None:
    """Check the globals and the encoding of bytes in a pickle, without executing its opcodes."""
    memo: dict[int, Any] = {}
    expected: list[str] = []  # opcodes and values that must follow, while bytes are restored
    pushed: Any = None
    safe = {f"{cls.__module__} {cls.__qualname__}" for cls in torch.serialization.get_safe_globals() if callable(cls)}
    argument: Any
    for step, (opcode, argument, _) in enumerate(pickletools.genops(data)):
        if step > MAX_PICKLE_STEPS:
            raise RefusedFileError("its data.pkl has too many parts")
        if opcode.name in {"BINPUT", "LONG_BINPUT"}:
            memo[argument] = pushed
            continue
        pushed = memo.get(argument) if opcode.name in {"BINGET", "LONG_BINGET"} else argument
        if opcode.name == "GLOBAL":
            if not (pushed in ALLOWED_GLOBALS | safe | {BYTES_GLOBAL} or ALLOWED_TYPES.fullmatch(pushed)):
                raise RefusedFileError(
                    f"it asks to run {truncate(pushed.replace(' ', '.'))}; it may contain plain data only"
                )
            pushed = (pushed,)  # a tuple, to distinguish a global from a string
        if expected:
            required = expected.pop(0)
            actual = pushed if isinstance(pushed, str) else opcode.name
            if not (actual == required or (required == "text" and isinstance(pushed, str))):
                raise RefusedFileError("it contains bytes in a form that torch.save does not write")
        elif pushed == (BYTES_GLOBAL,):
            expected = ["text", "latin1", "TUPLE2", "REDUCE"]


def is_complete_tensor(value: Any, dtype: torch.dtype, shape: tuple[int, ...]) -> bool:
    """Return whether a value of a file is a dense tensor of finite numbers, each of which the file contains."""
    if type(value) is not torch.Tensor or value.layout != torch.strided or value.is_meta:
        return False
    is_complete = value.shape == shape and value.dtype == dtype and value.nbytes <= value.untyped_storage().nbytes()
    return is_complete and bool(value.isfinite().all())
