"""Run keys: hashes of the configuration and source code, of the table, and of the library versions."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import inspect
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml
from jsonargparse import ArgumentParser
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from fusion_pl.cli.checks import build
from fusion_pl.cli.options import cli_options
from fusion_pl.cli.parsing import parse
from fusion_pl.data.base import FusionData
from fusion_pl.module import FusionClassifier
from fusion_pl.tables.read_table import table_files
from fusion_pl.training.cache_keys import code_versions

BASE_CLASSES = (nn.Module, FusionData, Optimizer, LRScheduler)  # a short class name is one of their subclasses
CLASS_OPTION = re.compile(
    r"model\.(fusion|optimizer|lr_scheduler|encoders\.[^.]+)|data|data\.(init_args\.)?augment\.[^.]+|.*\.class_path"
)  # options whose value is a class name or class path
BLOCK_BYTES = 2**20
DIFFERENCE_TEXTS = ("another configuration", "another table", "other library versions")  # one per part of a run key


def run_key(config: Mapping[str, Any], extra: Sequence[str], table_hash: str) -> str:
    """Hash everything that affects the result of a run; configuration, table and versions are separate parts.

    Args:
        config: Configuration for ``fusion-pl fit --config``.
        extra: Further arguments of ``fusion-pl fit``.
        table_hash: Result of the function ``table_hash``.
    """
    files, libraries = code_versions({FusionClassifier, *_referenced_classes(config, extra)})
    parts = ([config, list(extra), files], table_hash, libraries)
    return "-".join(_hash(json.dumps(part, sort_keys=True, default=str).encode()) for part in parts)


def describe_key_difference(key: str, other_key: str) -> str | None:
    """Return how two run keys differ; None if their formats differ."""
    try:
        parts = zip(DIFFERENCE_TEXTS, key.split("-"), other_key.split("-"), strict=True)
        return " and ".join(text for text, part, other_part in parts if part != other_part)
    except ValueError:
        return None


def table_hash(data: Mapping[str, Any], extra: Sequence[str]) -> str:
    """Hash the bytes of the table and of the file of splits; an empty string if the data class reads no table.

    The data module is built from the configuration and the extra arguments of ``fusion-pl fit``, and prepared.

    Raises:
        UserError: If the class or an argument of the data module is wrong. Other errors of the class are not caught,
            so that the table is never left out of the key.
    """
    parser = ArgumentParser(exit_on_error=False, prog="fusion-pl")
    parser.add_subclass_arguments(FusionData, "data", required=True)
    parser.add_instantiator(build, FusionData)
    arguments = ["--data", json.dumps(data, default=str), *_data_arguments(extra)]
    data_module: FusionData = parser.instantiate(parse(parser, arguments)).data
    data_module.prepare_data()
    digest = hashlib.sha256()
    files = [*data_module.files, *table_files(getattr(data_module, "split_file", None) or "")]
    for file in files:
        with file.open("rb") as content:
            while block := content.read(BLOCK_BYTES):
                digest.update(block)
    return digest.hexdigest()[:12] if files else ""


def _data_arguments(extra: Sequence[str]) -> Iterator[str]:
    is_data = False
    for word in extra:
        if word.startswith("--"):
            is_data = word.removeprefix("--").partition("=")[0].partition(".")[0] == "data"
        if is_data:
            yield word


def _referenced_classes(config: Mapping[str, Any], extra: Sequence[str]) -> Iterator[type]:
    """Yield all classes that the configuration and the options refer to."""
    names = set(_class_names("", config))
    for option, value in cli_options(extra):
        with contextlib.suppress(yaml.YAMLError):
            names |= set(_class_names(option, yaml.safe_load(value)))
    yield from (cls for base in BASE_CLASSES for cls in _subclasses(base) if cls.__name__ in names)
    for path in names:
        with contextlib.suppress(ImportError, AttributeError, ValueError):  # the run reports a missing class
            module, _, name = path.rpartition(".")
            if inspect.isclass(cls := getattr(importlib.import_module(module), name)):
                yield cls


def _class_names(option: str, value: Any) -> Iterator[str]:
    """Yield the class names in a configuration value, at any depth."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _class_names(f"{option}.{name}".removeprefix("."), item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _class_names(f"{option}.", item)
    elif isinstance(value, str) and CLASS_OPTION.fullmatch(option):
        yield value


def _subclasses(base: type) -> Iterator[type]:
    direct: list[type] = type.__subclasses__(base)
    for cls in direct:
        yield cls
        yield from _subclasses(cls)


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:12]
