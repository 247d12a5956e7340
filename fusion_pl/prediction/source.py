"""Samples to predict: those of any data module, with the processors of a model."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sized
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from pydoc import locate
from tempfile import TemporaryDirectory
from typing import Any, cast

from jsonargparse import Namespace

from fusion_pl.cli.checkpoint_options import set_up_rows
from fusion_pl.data.base import FusionData
from fusion_pl.data.manifest import ManifestData
from fusion_pl.data.table_data import TableData
from fusion_pl.files import sha256
from fusion_pl.predict import Predictor
from fusion_pl.tables.read_table import read_table, table_files
from fusion_pl.tables.remote import is_url
from fusion_pl.tables.table import Table
from fusion_pl.types import UserError

# Options without effect on the rows; the content of the manifest has its own hash.
UNIMPORTANT = ("batch_size", "num_workers", "remote_cache", "remote_cache_limit", "manifest")

START_BYTES = 4096  # by which CSV and JSON Lines are told apart


@dataclass(frozen=True)
class Source:
    """Samples to predict.

    Attributes:
        data: the data module.
        num_rows: number of samples; None for a stream.
        arguments: arguments of the data module.
    """

    data: FusionData
    num_rows: int | None
    arguments: Mapping[str, Any]

    @cached_property
    def key(self) -> str:
        """Text that depends on the table, whose files are read, but not on the content of the files in its cells."""
        cls = type(self.data)
        options = {name: str(value) for name, value in self.arguments.items() if name not in UNIMPORTANT}
        root = getattr(self.data, "root", "")
        place = root if is_url(root) else os.path.abspath(root)
        return json.dumps([f"{cls.__module__}.{cls.__qualname__}", options, place, [*map(sha256, self.data.files)]])

    @property
    def table(self) -> Table | None:
        """Table of the samples, if they have one."""
        return self.data.table if isinstance(self.data, TableData) else None


def open_source(config: Namespace, predictor: Predictor) -> Source:
    """Build the data module of ``--data``.

    Args:
        config: class and arguments of the data module.
        predictor: the model, whose columns are used for inputs whose column is not given.

    Raises:
        UserError: if the data cannot be read, or lacks the inputs of the model.
    """
    cls: Any = locate(config.class_path)
    arguments = config.init_args.as_dict()
    given = arguments.get("inputs")
    if "inputs" in arguments:
        arguments["inputs"] = predictor.columns | (given or {})
    data: FusionData = cls(**arguments)
    data.prepare_data()
    if isinstance(data, ManifestData):
        set_up_rows(data, predictor, given)
    else:
        data.processors = predictor.processors
        data.setup("predict")
    num_rows = None if data.is_stream else len(cast(Sized, data.samples("predict")))
    return Source(data, num_rows, arguments)


class _StandardInput(ManifestData):
    """Table of the standard input, which messages call by this name.

    Args:
        manifest: path of a copy of the table.
        kwargs: other arguments of ``ManifestData``.
    """

    def __init__(self, manifest: str, **kwargs: Any) -> None:
        super().__init__(manifest="the standard input", **kwargs)
        self._copy = manifest

    @cached_property
    def table(self) -> Table:
        """The table, read on first use."""
        try:
            return replace(read_table(self._copy), path=self.manifest)
        except UserError as error:
            raise UserError(str(error).replace(self._copy, self.manifest)) from error

    @property
    def files(self) -> list[Path]:
        """The copy, whose content identifies the table."""
        return table_files(self._copy)


@contextmanager
def standard_input(config: Namespace) -> Iterator[None]:
    """Copy a table from the standard input to a temporary file, if ``data.manifest`` is ``-``.

    Args:
        config: class and arguments of the data module. Relative paths begin in the current folder.

    Raises:
        UserError: if the input is empty.
    """
    options = config.init_args
    if options.get("manifest") != "-":
        yield
        return
    with TemporaryDirectory(prefix="fusion-pl-") as folder:
        source = sys.stdin.buffer
        start = source.read(START_BYTES)
        if not start.strip():
            raise UserError("--data.manifest -: the standard input is empty, expected a table, CSV or JSON Lines")
        suffix = ".jsonl" if start.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{") else ".csv"
        path = os.path.join(folder, f"stdin{suffix}")
        with open(path, "wb") as file:
            file.write(start)
            shutil.copyfileobj(source, file)
        options.manifest, options.root = path, options.root or os.curdir
        if locate(config.class_path) is ManifestData:
            config.class_path = f"{__name__}.{_StandardInput.__name__}"
        yield
