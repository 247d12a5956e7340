"""One sentence for each mistake that a user can make at the command line."""

from __future__ import annotations

import errno
import re

import torch
from jsonargparse import ArgumentError
from lightning.fabric.utilities.exceptions import MisconfigurationException

from fusion_pl.types import UserError

TYPES = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text", "NoneType": "null"}
UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}
LONGEST = 400


def sentence(error: BaseException) -> str | None:
    """Say in a sentence what the user can mend; None where the fault is not theirs, so that the traceback is wanted."""
    if isinstance(error, (UserError, MisconfigurationException)):
        return str(error).strip()
    if isinstance(error, ArgumentError):
        return _parsing(str(error))
    if isinstance(error, torch.OutOfMemoryError):
        return "the device is out of memory: lower --data.batch_size, or freeze encoders (freeze: all)"
    if isinstance(error, RuntimeError) and "loading state_dict" in str(error):
        return (
            f"the checkpoint's weights do not fit this configuration: give its run's config.yaml ({_flat(str(error))})"
        )
    if isinstance(error, OSError) and error.errno in UNWRITABLE:
        name = error.filename or "a file of the run"
        return f"cannot write {name}: {error.strerror}; make room or choose another folder; --ckpt_path last goes on"
    return None


def _parsing(message: str) -> str:
    """Shorten what jsonargparse says of a value: which key, what it got, what it expected."""
    key = ".".join(re.findall(r'Parser key "([^"]+)"', message))
    given = re.findall(r"(?:Given value|Got value): (.+?)(?:\. Got value|$)", message, re.MULTILINE)
    part = re.search(r"class_path='?([\w.]+)", message)
    if found := re.search(r"Option '(.+?)' is not accepted", message):
        return (
            f"{key}: there is no option {found[1]!r}"
            + (f" in {part[1]}" if part else "")
            + "; see fusion-pl fit --help"
        )
    if found := re.search(r"Problem with given class_path '(.+?)':\s+(.+)", message, re.DOTALL):
        return f"{key}: {found[1]} cannot be used: {_flat(found[2])}"
    if found := re.search(r"Expected a (?:dot import path string: |path but )([\w.]+)", message):
        return f"{key}: there is no class {found[1]!r}: give a class path such as fusion_pl.fusion.Concat"
    if message.startswith("Unexpected config"):
        return "--config must name a YAML file with keys such as model, data and trainer; this one holds something else"
    expected = [_type(name) for name in re.findall(r"Expected a (.+?)(?:\. Got value.*)?$", message, re.MULTILINE)]
    if key and given and expected:
        return f"{key} is {given[0]}, expected {' or '.join(dict.fromkeys(expected))}"
    return _flat(message.replace("Parser key ", "").replace("fit.", ""))


def _type(name: str) -> str:
    """Turn <class 'int'> and typing.Literal['a', 'b'] into words."""
    if found := re.match(r"<class '(\w+)'>", name):
        return TYPES.get(found[1], found[1])
    if found := re.match(r"typing\.Literal\[(.+)\]", name):
        return "one of " + found[1]
    return name


def _flat(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= LONGEST else flat[:LONGEST] + " …"
