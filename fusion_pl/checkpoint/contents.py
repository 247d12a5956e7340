"""What must be true of a checkpoint's contents before anything is built from them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fusion_pl.messages import short
from fusion_pl.module import CHECKPOINT_FORMAT
from fusion_pl.plain_data import NestingError, walk
from fusion_pl.types import UserError

LARGEST = 2**24  # of the numbers in the config of our own parts: no width, depth or length comes near
FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
MAX_DEPTH, MAX_VALUES = 64, 5_000_000  # of the arguments of a part


def check_contents(checkpoint: Any, path: str | Path) -> None:
    """Compare what was read with what fusion-pl writes.

    Raises:
        UserError: which key is not as expected.
    """
    ours = checkpoint.get("fusion_pl") if isinstance(checkpoint, dict) else None
    if not isinstance(ours, dict):
        raise UserError(
            f"{path} is a checkpoint, but not one that fusion-pl wrote: it does not say what model it holds"
        )
    if ours.get("format") != CHECKPOINT_FORMAT:
        raise UserError(
            f"{path} has format {short(repr(ours.get('format')))}, this fusion-pl reads {CHECKPOINT_FORMAT}: install "
            "another version"
        )
    try:
        _config(ours)
        weights = _tensors(checkpoint.get("state_dict"), Path(path).stat().st_size)
    except (_UnexpectedError, NestingError) as error:
        raise UserError(f"{path} does not hold together ({error}): it is damaged, or from another version") from error
    if name := not_finite(weights):
        raise UserError(
            f"{path} holds weights that are infinite or not numbers ({short(name)}): training diverged, or the file is "
            "damaged; take another checkpoint, or train anew with a lower learning rate"
        )


def not_finite(weights: Mapping[str, Any]) -> str | None:
    """Return the name of the first tensor with a number that is infinite or NaN, if there is one."""
    for name, tensor in weights.items():
        if isinstance(tensor, Tensor) and tensor.is_floating_point() and tensor.numel():
            low, high = (float(bound) for bound in tensor.aminmax())
            if not (math.isfinite(low) and math.isfinite(high)):
                return name
    return None


class _UnexpectedError(Exception):
    """A reason."""


def _expect(condition: bool, said: str) -> None:
    if not condition:
        raise _UnexpectedError(said)


def _config(ours: dict[str, Any]) -> None:
    keys = ("classes", "encoders", "fusion", "missing", "files", "columns")
    lacking = [key for key in keys if key not in ours]
    _expect(not lacking, f"it lacks {', '.join(lacking)}")
    classes, encoders = ours["classes"], ours["encoders"]
    _expect(isinstance(classes, list) and all(_is_text(name) for name in classes), "classes is not a list of names")
    _expect(_is_mapping(encoders) and 0 < len(encoders) <= 1000, "encoders does not name the model's inputs")
    _expect(ours["missing"] in ("mask", "token"), "missing is neither mask nor token")
    columns = ours["columns"]
    _expect(_is_mapping(columns) and all(map(_is_text, columns.values())), "columns does not name columns")
    _expect(ours.get("label") is None or _is_text(ours["label"]), "label does not name a column")
    for where, part in (("fusion", ours["fusion"]), *((f"encoders.{short(name)}", p) for name, p in encoders.items())):
        _expect(isinstance(part, dict) and set(part) == {"class_path", "init_args"}, f"{where} is not a config")
        _expect(_is_text(part["class_path"]), f"{where}.class_path is not a name")
        _expect(_is_mapping(part["init_args"]), f"{where}.init_args is not a dictionary")
        largest = LARGEST if part["class_path"].startswith("fusion_pl.") else math.inf
        _check_arguments(part["init_args"], where, largest)
    files = ours["files"]
    _expect(_is_mapping(files) and set(files) <= set(encoders), "files belong to no encoder")
    for name, content in ((name, held) for held in files.values() for name, held in _pairs(held)):
        _expect(
            FILE_NAME.fullmatch(name) is not None,
            f"it holds a file named {short(name)!r}, which points out of its folder or is no plain name: it was "
            "tampered with",
        )
        _expect(isinstance(content, bytes), f"its file {name} is not bytes")


def _pairs(held: Any) -> Any:
    _expect(_is_mapping(held), "the files of an encoder are not a dictionary")
    return held.items()


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_mapping(value: Any) -> bool:
    return isinstance(value, dict) and all(_is_text(key) for key in value)


def _check_arguments(arguments: dict[str, Any], where: str, largest: int | float) -> None:
    """Check that arguments are text, numbers, lists and dictionaries of a plausible size."""
    for key, value in walk(arguments, MAX_DEPTH, MAX_VALUES):
        _expect(_is_text(key), f"{where}.init_args has a key that is not a name")
        if isinstance(value, int):
            _expect(abs(value) <= largest, f"{where}.init_args has a number beyond {largest}")
        else:
            _expect(
                value is None or isinstance(value, (dict, list, float, str)), f"{where}.init_args holds no plain data"
            )


def _tensors(weights: Any, size: int) -> dict[str, Tensor]:
    """Return the weights, where they are numbers which the file really holds.

    Args:
        weights: the state dictionary.
        size: of the file, in bytes.
    """
    _expect(isinstance(weights, Mapping) and all(_is_text(key) for key in weights), "it lacks the model's state_dict")
    total = 0
    for name, tensor in weights.items():
        _expect(type(tensor) is Tensor and tensor.layout == torch.strided, f"{short(name)} is not a tensor")
        _expect(not tensor.is_meta and tensor.nbytes <= tensor.untyped_storage().nbytes(), f"{short(name)} has no data")
        total += tensor.nbytes
    _expect(total <= 2 * size, "its tensors are larger than the file")  # some models name a tensor twice
    return dict(weights)
