"""From the file to plain data and tensors: nothing is executed, nothing unpacks to more than its size on disk."""

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
from fusion_pl.checkpoint.convert import convert
from fusion_pl.messages import reason, short
from fusion_pl.types import MissingFileError, UserError

PICKLE_BYTES = 2**28  # of everything that is not a tensor: tokenizers are the largest
PICKLE_STEPS = 5_000_000  # each can make an object of about 100 bytes
# What the pickle may call. torch.load(weights_only=True) allows more, and some of that allocates what it is told to.
CALLED = {
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
BYTES = "_codecs encode"  # how the pickle writes bytes: as text, with the name of a codec
NAMED = re.compile(r"torch (\w+Storage|b?float\d+|u?int\d+|bool|complex\d+)")

# What zipfile, pickletools and torch raise on bytes that somebody else wrote.
DAMAGED = (ValueError, LookupError, RuntimeError, EOFError, OverflowError, struct.error, pickle.UnpicklingError)


class _RefusedError(Exception):
    """A reason, in our own words."""


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint as plain data; nothing in it is executed.

    Raises:
        MissingFileError: where there is no such file.
        UserError: where it is damaged, holds code or numbers that are not finite, or was not written by fusion-pl.
    """
    refuse_shards(path)
    if not Path(path).is_file():  # a pipe or a device would make us wait
        raise MissingFileError(f"there is no checkpoint {path}" + (": it is no file" if Path(path).exists() else ""))
    try:
        _check_pickle(_check_archive(path))
        checkpoint = _load(path)
    except zipfile.BadZipFile as error:
        raise UserError(
            f"{path} is not a checkpoint: it is another kind of file, or it was cut off or damaged while it was "
            f"written or copied ({reason(error)}); copy it again, or take another checkpoint of the run"
        ) from error
    except MemoryError as error:
        raise UserError(
            f"there is not enough memory to read {path} ({Path(path).stat().st_size / 1e6:.0f} MB): end other programs"
        ) from error
    except OSError as error:
        if error.errno not in {None, errno.EINVAL}:  # what positions outside of a damaged file give
            raise UserError(
                f"{path} cannot be read: {error.strerror}: check its permissions and its disk, or take another copy"
            ) from error
        raise UserError(f"{path} is not a checkpoint that can be read safely: it is damaged") from error
    except (*DAMAGED, _RefusedError) as error:
        raise UserError(f"{path} is not a checkpoint that can be read safely: {_unsafe(error)}") from error
    convert(checkpoint)
    check_contents(checkpoint, path)
    return dict(checkpoint)


def _load(path: str | Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (TypeError, AttributeError, AssertionError, ArithmeticError) as error:  # of values of the wrong type
        raise _RefusedError("it is damaged, or it holds more than plain data") from error


def refuse_shards(path: str | Path) -> None:
    """Refuse a checkpoint that is a folder, as FSDP writes it with ``state_dict_type: sharded``.

    Raises:
        UserError: that says how it becomes a file.
    """
    if (Path(path) / "meta.pt").is_file():
        raise UserError(
            f"{path} is a folder, the parts of a checkpoint that FSDP wrote: join them with python -m "
            f"lightning.pytorch.utilities.consolidate_checkpoint {path}, and give {Path(path)}.consolidated; "
            "to train on, let fit write whole ones (trainer.strategy.init_args.state_dict_type: full)"
        )


def _unsafe(error: Exception) -> str:
    """Say what is wrong without torch's advice to read the file unsafely."""
    said = str(error)
    if isinstance(error, _RefusedError):
        return said
    if found := re.search(r"GLOBAL ([\w.]+)", said):
        return f"it asks to run {short(found[1])}, and a checkpoint holds plain data only"
    return "it is damaged, or it holds more than plain data"


def _check_archive(path: str | Path) -> bytes:
    """Compare each member with its checksum, and return the pickle.

    ``torch.load`` with mmap does not look at the checksums, and unpacks whatever a member says it is.
    """
    size = Path(path).stat().st_size
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise _RefusedError("it is compressed, which torch.save never does")
        if sum(member.file_size for member in members) > size:
            raise _RefusedError("its members claim to be larger than the file")
        if len({member.filename for member in members}) < len(members):
            raise _RefusedError("two of its members have the same name")
        damaged = archive.testzip()
        if damaged is not None:
            raise zipfile.BadZipFile(f"the checksum of {short(damaged)} is wrong")
        pickles = [member for member in members if member.filename.endswith("/data.pkl")]
        if len(pickles) != 1 or pickles[0].file_size > PICKLE_BYTES:
            raise _RefusedError("it does not hold one data.pkl of a plausible size")
        return archive.read(pickles[0])


def _check_pickle(data: bytes) -> None:
    """Go through the steps of a pickle without taking them, and refuse what can make much out of little."""
    memo: dict[int, Any] = {}
    expected: list[str] = []  # what must follow: bytes are one text, the name of one codec, and nothing nested
    pushed: Any = None
    added = {f"{one.__module__} {one.__qualname__}" for one in torch.serialization.get_safe_globals() if callable(one)}
    argument: Any
    for step, (opcode, argument, _) in enumerate(pickletools.genops(data)):
        if step > PICKLE_STEPS:
            raise _RefusedError("its data.pkl has too many parts")
        if opcode.name in {"BINPUT", "LONG_BINPUT"}:
            memo[argument] = pushed
            continue
        pushed = memo.get(argument) if opcode.name in {"BINGET", "LONG_BINGET"} else argument
        if opcode.name == "GLOBAL":
            if not (pushed in CALLED | added | {BYTES} or NAMED.fullmatch(pushed)):
                raise _RefusedError(f"it asks to run {short(pushed.replace(' ', '.'))}; it may hold plain data only")
            pushed = (pushed,)  # a name to call, as opposed to a text that reads like one
        if expected:
            want = expected.pop(0)
            found = pushed if isinstance(pushed, str) else opcode.name
            if not (found == want or (want == "text" and isinstance(pushed, str))):
                raise _RefusedError("it holds bytes in a form that torch.save does not write")
        elif pushed == (BYTES,):
            expected = ["text", "latin1", "TUPLE2", "REDUCE"]
