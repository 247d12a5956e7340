"""Check the contents of a checkpoint before a model is built."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fusion_pl.messages import truncate
from fusion_pl.module import CHECKPOINT_FORMAT
from fusion_pl.plain_data import NestingError, walk
from fusion_pl.types import UserError

MAX_NUMBER = 2**24  # largest integer argument of a class of fusion_pl
FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
MAX_DEPTH, MAX_VALUES = 64, 5_000_000  # limits on the constructor arguments of an encoder or fusion head


def check_contents(checkpoint: Any, path: str | Path) -> None:
    """Check that a checkpoint has the structure that fusion-pl writes.

    Raises:
        UserError: if an entry is missing or has another structure; the message contains its key.
    """
    config = checkpoint.get("fusion_pl") if isinstance(checkpoint, dict) else None
    if not isinstance(config, dict):
        raise UserError(f"{path} is a checkpoint, but not from fusion-pl: it does not describe its model")
    if config.get("format") != CHECKPOINT_FORMAT:
        raise UserError(
            f"{path} has format {truncate(repr(config.get('format')))}, this fusion-pl reads {CHECKPOINT_FORMAT}: "
            "install another version"
        )
    try:
        _check_config(config)
        weights = _check_weights(checkpoint.get("state_dict"), Path(path).stat().st_size)
    except (_InvalidEntryError, NestingError) as error:
        raise UserError(f"{path} is inconsistent ({error}): it is damaged, or from another version") from error
    if name := find_non_finite_tensor(weights):
        raise UserError(
            f"{path} has weights that are infinite or NaN ({truncate(name)}): training diverged, or the file is "
            "damaged; use another checkpoint, or train again with a lower learning rate"
        )


def find_non_finite_tensor(weights: Mapping[str, Any]) -> str | None:
    """Return the name of the first tensor with a value that is infinite or NaN, or None."""
    for name, tensor in weights.items():
        if isinstance(tensor, Tensor) and tensor.is_floating_point() and tensor.numel():
            low, high = (float(bound) for bound in tensor.aminmax())
            if not (math.isfinite(low) and math.isfinite(high)):
                return name
    return None


class _InvalidEntryError(Exception):
    """Raised with a description of an unexpected entry."""


def _expect(condition: bool, message: str) -> None:
    if not condition:
        raise _InvalidEntryError(message)


def _check_config(config: dict[str, Any]) -> None:
    keys = ("classes", "encoders", "fusion", "missing", "files", "columns")
    missing = [key for key in keys if key not in config]
    _expect(not missing, f"it lacks {', '.join(missing)}")
    classes, encoders, columns, files = (config[key] for key in ("classes", "encoders", "columns", "files"))
    _expect(isinstance(classes, list) and all(_is_text(name) for name in classes), "classes is not a list of names")
    _expect(_is_mapping(encoders) and 0 < len(encoders) <= 1000, "encoders is not a dictionary of the model's inputs")
    _expect(config["missing"] in ("mask", "token"), "missing is neither mask nor token")
    _expect(_is_mapping(columns), "columns is not a dictionary of names")
    names = [name for value in columns.values() for name in (value if isinstance(value, list) else [value])]
    _expect(all(map(_is_text, names)), "columns is not a dictionary of names")
    label = config.get("label") or []
    labels = label if isinstance(label, list) else [label]
    _expect(all(map(_is_text, labels)), "label is not the name of a column")
    for key, spec in (
        ("fusion", config["fusion"]),
        *((("task", config["task"]),) if "task" in config else ()),
        *((f"encoders.{truncate(name)}", p) for name, p in encoders.items()),
    ):
        _expect(isinstance(spec, dict) and set(spec) == {"class_path", "init_args"}, f"{key} is not a config")
        _expect(_is_text(spec["class_path"]), f"{key}.class_path is not a name")
        _expect(_is_mapping(spec["init_args"]), f"{key}.init_args is not a dictionary")
        _check_arguments(spec, key)
    _expect(_is_mapping(files) and set(files) <= set(encoders), "it has files of an encoder that does not exist")
    _expect(all(map(_is_mapping, files.values())), "the files of an encoder are not a dictionary")
    for name, content in (item for embedded in files.values() for item in embedded.items()):
        message = f"it contains a file named {truncate(name)!r}, which is not a plain file name: it was tampered with"
        _expect(FILE_NAME.fullmatch(name) is not None, message)
        _expect(isinstance(content, bytes), f"its file {name} is not bytes")


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_mapping(value: Any) -> bool:
    return isinstance(value, dict) and all(_is_text(key) for key in value)


def _check_arguments(spec: dict[str, Any], name: str) -> None:
    """Check that constructor arguments are text, numbers, lists and dictionaries of a plausible size."""
    max_number = MAX_NUMBER if spec["class_path"].startswith("fusion_pl.") else math.inf
    for key, value in walk(spec["init_args"], MAX_DEPTH, MAX_VALUES):
        _expect(_is_text(key), f"{name}.init_args has a key that is not a name")
        if isinstance(value, int):
            _expect(abs(value) <= max_number, f"{name}.init_args has a number beyond {max_number}")
        else:
            _expect(value is None or isinstance(value, (dict, list, float, str)), f"{name}.init_args is not plain data")


def _check_weights(weights: Any, file_size: int) -> dict[str, Tensor]:
    """Check that the tensors of a state_dict are dense and stored in the file, and return the state_dict."""
    _expect(isinstance(weights, Mapping) and all(_is_text(key) for key in weights), "it lacks the model's state_dict")
    total = 0
    for name, tensor in weights.items():
        _expect(type(tensor) is Tensor and tensor.layout == torch.strided, f"{truncate(name)} is not a tensor")
        _expect(
            not tensor.is_meta and tensor.nbytes <= tensor.untyped_storage().nbytes(), f"{truncate(name)} has no data"
        )
        total += tensor.nbytes
    _expect(total <= 2 * file_size, "its tensors are larger than the file")  # tied weights have two names
    return dict(weights)
