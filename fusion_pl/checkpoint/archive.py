"""Read a checkpoint file as plain data and tensors, without executing code or unpacking compressed data."""

from __future__ import annotations

import errno
import pickle
import pickletools
import re
import struct
import zipfile
from pathlib import Path
from typing import Any

import torch

from fusion_pl.checkpoint.contents import check_contents
from fusion_pl.checkpoint.convert import convert_checkpoint
from fusion_pl.messages import error_reason, truncate
from fusion_pl.types import MissingFileError, UserError

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


class _RefusedFileError(Exception):
    """Raised with the reason why a file is refused."""


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint as plain data, without executing code.

    Raises:
        MissingFileError: if the file does not exist.
        UserError: if the file is damaged, contains code or non-finite weights, or is not from fusion-pl.
    """
    refuse_shards(path)
    if not Path(path).is_file():  # reading a pipe would block
        raise MissingFileError(f"there is no checkpoint {path}" + (": it is not a file" if Path(path).exists() else ""))
    try:
        _check_pickle(_check_archive(path))
        try:
            checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except (TypeError, AttributeError, AssertionError, ArithmeticError) as error:  # values of the wrong type
            raise _RefusedFileError(DAMAGED_MESSAGE) from error
    except zipfile.BadZipFile as error:
        raise UserError(
            f"{path} is not a checkpoint: it is another kind of file, or it was truncated or damaged while it was "
            f"written or copied ({error_reason(error)}); copy it again, or use another checkpoint of the run"
        ) from error
    except MemoryError as error:
        raise UserError(
            f"there is not enough memory to read {path} ({Path(path).stat().st_size / 1e6:.0f} MB): end other programs"
        ) from error
    except OSError as error:
        if error.errno not in {None, errno.EINVAL}:  # both mean a read beyond the end of a damaged file
            raise UserError(
                f"{path} cannot be read: {error.strerror}: check its permissions and its disk, or use another copy"
            ) from error
        raise UserError(f"{path} is not a checkpoint that can be read safely: it is damaged") from error
    except (*READ_ERRORS, _RefusedFileError) as error:
        raise UserError(f"{path} is not a checkpoint that can be read safely: {_describe_error(error)}") from error
    convert_checkpoint(checkpoint)
    check_contents(checkpoint, path)
    return dict(checkpoint)


def refuse_shards(path: str | Path) -> None:
    """Refuse a sharded checkpoint, the folder that FSDP writes with ``state_dict_type: sharded``.

    Raises:
        UserError: if the path is such a folder; the message contains the command that consolidates it.
    """
    if (Path(path) / "meta.pt").is_file():
        raise UserError(
            f"{path} is a folder with a sharded checkpoint of FSDP: consolidate it with python -m "
            f"lightning.pytorch.utilities.consolidate_checkpoint {path}, and use {Path(path)}.consolidated; "
            "to resume training, write full checkpoints (trainer.strategy.init_args.state_dict_type: full)"
        )


def _describe_error(error: Exception) -> str:
    """Return a message for an error, without torch's advice to disable ``weights_only``."""
    if isinstance(error, _RefusedFileError):
        return str(error)
    if match := re.search(r"GLOBAL ([\w.]+)", str(error)):
        return f"it asks to run {truncate(match[1])}, and a checkpoint contains plain data only"
    return DAMAGED_MESSAGE


def _check_archive(path: str | Path) -> bytes:
    """Check the files in the archive and their checksums, which ``torch.load`` ignores, and return the pickle."""
    size = Path(path).stat().st_size
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise _RefusedFileError("it is compressed, which torch.save does not do")
        if sum(member.file_size for member in members) > size:
            raise _RefusedFileError("its members are larger than the file")
        if len({member.filename for member in members}) < len(members):
            raise _RefusedFileError("two of its members have the same name")
        damaged = archive.testzip()
        if damaged is not None:
            raise zipfile.BadZipFile(f"the checksum of {truncate(damaged)} is wrong")
        pickles = [member for member in members if member.filename.endswith("/data.pkl")]
        if len(pickles) != 1 or pickles[0].file_size > MAX_PICKLE_SIZE:
            raise _RefusedFileError("it does not contain one data.pkl of a plausible size")
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
            raise _RefusedFileError("its data.pkl has too many parts")
        if opcode.name in {"BINPUT", "LONG_BINPUT"}:
            memo[argument] = pushed
            continue
        pushed = memo.get(argument) if opcode.name in {"BINGET", "LONG_BINGET"} else argument
        if opcode.name == "GLOBAL":
            if not (pushed in ALLOWED_GLOBALS | safe | {BYTES_GLOBAL} or ALLOWED_TYPES.fullmatch(pushed)):
                raise _RefusedFileError(
                    f"it asks to run {truncate(pushed.replace(' ', '.'))}; it may contain plain data only"
                )
            pushed = (pushed,)  # a tuple, to distinguish a global from a string
        if expected:
            required = expected.pop(0)
            actual = pushed if isinstance(pushed, str) else opcode.name
            if not (actual == required or (required == "text" and isinstance(pushed, str))):
                raise _RefusedFileError("it contains bytes in a form that torch.save does not write")
        elif pushed == (BYTES_GLOBAL,):
            expected = ["text", "latin1", "TUPLE2", "REDUCE"]
