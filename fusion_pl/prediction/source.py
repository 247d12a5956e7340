"""Samples to predict: those of any data module, with the processors of a model."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sized
from dataclasses import dataclass
from pydoc import locate
from typing import Any, cast

from jsonargparse import Namespace

from fusion_pl.cli.checkpoint_options import set_up_rows
from fusion_pl.data.base import FusionData
from fusion_pl.data.manifest import ManifestData
from fusion_pl.data.remote import is_url
from fusion_pl.data.table import Table
from fusion_pl.data.table_data import TableData
from fusion_pl.predict import Predictor

UNIMPORTANT = ("batch_size", "num_workers", "remote_cache", "remote_cache_limit")  # options without effect on the rows


@dataclass(frozen=True)
class Source:
    """Samples to predict.

    Attributes:
        data: the data module.
        name: name of the data for messages.
        num_rows: number of samples; None for a stream.
        key: text that identifies the samples.
    """

    data: FusionData
    name: str
    num_rows: int | None
    key: str

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
    return Source(data, getattr(data, "manifest", cls.__name__), num_rows, _key(config.class_path, arguments, data))


def _key(class_path: str, arguments: dict[str, Any], data: FusionData) -> str:
    """Return a text that depends on the table, but not on the content of the files in its cells."""
    options = {name: str(value) for name, value in arguments.items() if name not in UNIMPORTANT}
    hashes = []
    for path in data.files:
        with open(path, "rb") as file:
            hashes.append(hashlib.file_digest(file, "sha256").hexdigest())
    root = getattr(data, "root", "")
    return json.dumps([class_path, options, root if is_url(root) else os.path.abspath(root), hashes])
