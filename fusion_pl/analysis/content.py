"""What decides the outcome of a run besides its configuration: the table, the source of its parts, the libraries."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.metadata
import inspect
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from fusion_pl.cli.errors import user_message
from fusion_pl.cli.options import options_on
from fusion_pl.data.base import FusionData
from fusion_pl.training.cache_keys import sources
from fusion_pl.training.results import PACKAGES

BASES = (nn.Module, FusionData, Optimizer, LRScheduler)  # whose subclasses a short name may mean
CLASS = re.compile(
    r"model\.(fusion|optimizer|lr_scheduler|encoders\.[^.]+)|data|data\.(init_args\.)?augment\.[^.]+|.*\.class_path"
)  # keys of a configuration that name a class
PARTS = ("another configuration", "another table", "other library versions")  # what differs, by the part of a key


def key_of(config: Mapping[str, Any], extra: Sequence[str], table: str) -> str:
    """Hash everything that decides the outcome of a run, configuration, table and versions each by themselves.

    Args:
        config: what ``fusion-pl fit --config`` gets.
        extra: its further arguments.
        table: see ``table_of``.
    """
    files, libraries = sources(set(_classes(config, extra)))
    versions = [{name: importlib.metadata.version(name) for name in PACKAGES}, libraries]
    return "-".join(_hash(json.dumps(part, sort_keys=True, default=str).encode()) for part in (
        [config, list(extra), files], table, versions,
    ))  # fmt: skip


def difference(key: str, other: str) -> str | None:
    """Say in what two keys differ, in words; None where one of them is no such key."""
    ours, theirs = key.split("-"), other.split("-")
    if len(ours) != len(PARTS) or len(theirs) != len(PARTS):
        return None
    return " and ".join(part for part, one, two in zip(PARTS, ours, theirs, strict=True) if one != two)


def table_of(data: Mapping[str, Any], extra: Sequence[str]) -> str:
    """Hash the bytes of the table that runs read; empty where the data is a class of the user's that has none.

    The data is built and prepared as by a run, with the options of the command line.

    Args:
        data: of the configuration.
        extra: further arguments of ``fusion-pl fit``.

    Raises:
        UserError: where the data cannot be built.
    """
    parser = ArgumentParser(exit_on_error=False, prog="fusion-pl")
    parser.add_subclass_arguments(FusionData, "data", required=True)
    try:
        parser.set_defaults({"data": dict(data)})
        built: Any = parser.instantiate(parser.parse_args(list(_about_data(extra)))).data
        built.prepare_data()
    except Exception as error:
        if user_message(error):
            raise
        return ""  # what is wrong with it, the run tells
    path = Path(getattr(built, "manifest", ""))
    return _hash(path.read_bytes()) if path.is_file() else ""


def _about_data(extra: Sequence[str]) -> Iterator[str]:
    ours = False
    for word in extra:
        if word.startswith("--"):
            ours = word.removeprefix("--").partition("=")[0].partition(".")[0] == "data"
        if ours:
            yield word


def _classes(config: Mapping[str, Any], extra: Sequence[str]) -> Iterator[type]:
    """Find the classes that the configuration and the options name, those of the data and of training, too."""
    names = set(_named("", config))
    for option, value in options_on(extra):
        with contextlib.suppress(yaml.YAMLError):
            names |= set(_named(option, yaml.safe_load(value)))
    for path in names:
        module, _, name = path.rpartition(".")
        if not module:
            yield from (one for base in BASES for one in _subclasses(base) if one.__name__ == name)
            continue
        with contextlib.suppress(ImportError, AttributeError, ValueError):  # not there: the run tells
            found = getattr(importlib.import_module(module), name)
            if inspect.isclass(found):
                yield found


def _named(key: str, part: Any) -> Iterator[str]:
    """Return the names of classes in a part of a configuration, at any depth."""
    if isinstance(part, Mapping):
        for name, value in part.items():
            yield from _named(f"{key}.{name}".removeprefix("."), value)
    elif isinstance(part, (list, tuple)):
        for value in part:
            yield from _named(f"{key}.", value)
    elif isinstance(part, str) and CLASS.fullmatch(key):
        yield part


def _subclasses(base: type) -> Iterator[type]:
    found: list[type] = type.__subclasses__(base)
    for one in found:
        yield one
        yield from _subclasses(one)


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:12]
