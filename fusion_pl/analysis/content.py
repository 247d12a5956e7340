"""What decides the outcome of a run besides its configuration: the table, the source of its parts, the libraries."""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from fusion_pl.cli.errors import sentence
from fusion_pl.data.base import FusionData
from fusion_pl.training.results import PACKAGES

PARTS = ("another configuration", "another table", "other library versions")  # what differs, by the part of a key


def key_of(config: Mapping[str, Any], extra: Sequence[str], table: str) -> str:
    """Hash everything that decides the outcome of a run, configuration, table and versions each by themselves.

    Args:
        config: what ``fusion-pl fit --config`` gets.
        extra: its further arguments.
        table: see ``table_of``.
    """
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    return "-".join(_hash(json.dumps(part, sort_keys=True, default=str).encode()) for part in (
        [config, list(extra), sorted(set(_sources(config)))], table, versions,
    ))  # fmt: skip


def difference(key: str, other: str) -> str | None:
    """Say in what two keys differ, in words; None where one of them is no such key."""
    ours, theirs = key.split("-"), other.split("-")
    if len(ours) != len(PARTS) or len(theirs) != len(PARTS):
        return None
    return " and ".join(part for part, one, two in zip(PARTS, ours, theirs, strict=True) if one != two)


def table_of(data: Mapping[str, Any], extra: Sequence[str]) -> str:
    """Hash the bytes of the table that runs read; empty where the data is a class of the user's that has none.

    The data is built as a run builds it, so that demo data is there, and options of the command line count.

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
    except Exception as error:
        if sentence(error):
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


def _sources(config: Mapping[str, Any]) -> Iterator[str]:
    """Hash the files of the head's and the encoders' classes: one that was edited is another one."""
    model = config["model"]
    for part in (model["fusion"], *model["encoders"].values()):
        module, _, name = str(part.get("class_path") if isinstance(part, Mapping) else part).rpartition(".")
        try:
            found = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError, ValueError):
            continue  # a short name, or one that is not there: the run knows it, or tells
        for one in inspect.getmro(found) if inspect.isclass(found) else ():
            if one.__module__.partition(".")[0] not in {"torch", "builtins", "abc"}:
                yield _hash(Path(inspect.getfile(one)).read_bytes())


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:12]
