"""Data module for data sets of the Hugging Face ``datasets`` library."""

from __future__ import annotations

import os
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub.constants import HF_HOME

from fusion_pl.data.hub_splits import (
    check_split_names,
    find_class_names,
    load_splits,
    select_splits,
    set_text_column,
    write_class_names,
)
from fusion_pl.data.manifest import ManifestData
from fusion_pl.messages import error_reason
from fusion_pl.tables.arrow_file import MappedFile, open_columns, simplify
from fusion_pl.tables.splits import DEFAULT_SPLIT
from fusion_pl.tables.table import Table, check_column_names
from fusion_pl.types import UserError


class HubData(ManifestData):
    """Load a data set of the Hugging Face hub, or one on disk, with its splits; its rows are treated like a table.

    Images and audio are opened by the model's processors, like files of a table; the ``datasets`` library decodes
    nothing. Labels of the type ``ClassLabel`` become the names of their classes. The library keeps a data set in its
    cache, from which it is used without a connection; ``HubStream`` stores no rows. In messages, the rows of all splits
    are counted from 1, in the order train, val, test. Needs ``pip install 'fusion-pl[hub]'``.

    Args:
        dataset: name of the data set on the hub, folder that ``save_to_disk`` wrote, or a folder of data files that
            ``datasets.load_dataset`` reads, such as one with a folder of images per class.
        configuration: name of the configuration (subset), if the data set has several.
        revision: commit, tag or branch of the data set on the hub; by default the newest.
        split_names: dictionary from train, val and test to the name of the data set's split; by default those with
            usual names, such as ``validation``. The rows of a single split are assigned like those of a table.
        root: folder of relative paths, outside of which no file is read; by default the folder of the data set, or the
            folder of all downloads (``HF_HOME``) for a data set of the hub.
        kwargs: arguments of ``ManifestData``.

    Raises:
        UserError: if an argument is out of range.

    Example:
        data:
          class_path: fusion_pl.data.HubData
          init_args: {dataset: AI-Lab-Makerere/beans, label: labels, inputs: {photo: image}}
    """

    def __init__(
        self,
        dataset: str,
        configuration: str | None = None,
        revision: str | None = None,
        split_names: dict[str, str] | None = None,
        root: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(manifest=dataset, root=root or (dataset if os.path.isdir(dataset) else HF_HOME), **kwargs)
        self.configuration, self.revision = configuration, revision
        self.split_names = split_names
        check_split_names(split_names)

    @cached_property
    def table(self) -> Table:
        """The rows of all splits, read on first use.

        Raises:
            UserError: if the data set cannot be loaded or has other splits.
        """
        import pyarrow as pa

        loaded = load_splits(self.manifest, self.configuration, self.revision)
        parts = select_splits(self.manifest, loaded, self.split_names)
        try:
            tables = {split: _read_rows(part) for split, part in parts.items()}
            if len(parts) > 1 and self.split == DEFAULT_SPLIT:
                tables = {
                    split: set_text_column(rows, DEFAULT_SPLIT, [split] * len(rows)) for split, rows in tables.items()
                }
            data = pa.concat_tables(tables.values(), promote_options="permissive")
            data.validate(full=True)  # damaged offsets would end the process
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"the data set {self.manifest} is damaged ({error_reason(error)}): load it again"
            ) from error
        if not len(data):
            raise UserError(f"the data set {self.manifest} has no rows: it needs one row per sample")
        computed = {name for part in parts.values() for name in find_class_names(part.features)} | {
            self.split or DEFAULT_SPLIT
        }
        files = [_files(part) for part in parts.values()]
        return Table(
            self.manifest,
            data,
            np.arange(1, len(data) + 1),
            files=tuple(chain.from_iterable(files)) if all(files) else (),
            computed=frozenset(computed),
        )

    @property
    def files(self) -> list[Path]:
        """Files of the data set's rows in the cache or in its folder."""
        return [Path(file.path) for file in self.table.files]


def _read_rows(part: Any) -> Any:
    """Return the rows of a ``datasets.Dataset`` as a ``pyarrow.Table``, with the names of classes."""
    files, names = _files(part), part.column_names
    check_column_names("the data set", names)
    data = (
        open_columns([file.path for file in files], names) if files else simplify(part.with_format("arrow")[:], names)
    )
    return write_class_names(data, find_class_names(part.features))


def _files(part: Any) -> tuple[MappedFile, ...]:
    """Return the Arrow files of a ``datasets.Dataset``, which are memory-mapped; none if its rows are in memory."""
    return tuple(MappedFile.at(file["filename"]) for file in part.cache_files)
