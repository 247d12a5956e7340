"""Data module for data sets of the Hugging Face ``datasets`` library."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub.constants import HF_HOME
from lightning.pytorch.utilities import rank_zero_info

from fusion_pl.data.arrow_file import MappedFile, open_columns, simplify
from fusion_pl.data.manifest import ManifestData
from fusion_pl.data.splits import SPLITS, parse_split
from fusion_pl.data.table import Table, check_column_names
from fusion_pl.data.table_data import DEFAULT_SPLIT
from fusion_pl.messages import error_reason, join_names
from fusion_pl.types import UserError

SAVED = ("state.json", "dataset_dict.json")  # files of a folder that ``save_to_disk`` wrote


class HubData(ManifestData):
    """Load a data set of the Hugging Face hub, or one on disk, with its splits; its rows are treated like a table.

    Images and audio are opened by the model's processors, like files of a table; the ``datasets`` library decodes
    nothing. Labels of the type ``ClassLabel`` become the names of their classes. The library keeps a data set in its
    cache, from which it is used without a connection. In messages, the rows of all splits are counted from 1, in the
    order train, val, test. Needs ``pip install 'fusion-pl[hub]'``.

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
        for name in sorted((split_names or {}).keys() - set(SPLITS)):
            raise UserError(f"data.split_names has the split {name!r}, expected {join_names(SPLITS)}")

    @cached_property
    def table(self) -> Table:
        """The rows of all splits, read on first use.

        Raises:
            UserError: if the data set cannot be loaded or has other splits.
        """
        import pyarrow as pa

        parts = self._select_splits(_load(self.manifest, self.configuration, self.revision))
        try:
            tables = {split: _read_rows(part) for split, part in parts.items()}
            if len(parts) > 1 and self.split == DEFAULT_SPLIT:
                tables = {
                    split: _set_column(rows, DEFAULT_SPLIT, [split] * len(rows)) for split, rows in tables.items()
                }
            data = pa.concat_tables(tables.values(), promote_options="permissive")
            data.validate(full=True)  # damaged offsets would end the process
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"the data set {self.manifest} is damaged ({error_reason(error)}): load it again"
            ) from error
        if not len(data):
            raise UserError(f"the data set {self.manifest} has no rows: it needs one row per sample")
        computed = {name for part in parts.values() for name in _class_names(part)} | {self.split or DEFAULT_SPLIT}
        files = [_files(part) for part in parts.values()]
        return Table(
            self.manifest,
            data,
            np.arange(1, len(data) + 1),
            files=tuple(chain.from_iterable(files)) if all(files) else (),
            computed=frozenset(computed),
        )

    def _select_splits(self, parts: Mapping[str, Any]) -> dict[str, Any]:
        """Return the rows of each split, in the order of ``SPLITS``."""
        names = {split: [name for name in parts if parse_split(name) == split] for split in SPLITS}
        if self.split_names is not None:
            names = {split: [self.split_names[split]] for split in SPLITS if split in self.split_names}
        elif len(parts) == 1:
            names = {"train": list(parts)}
        used = [name for found in names.values() for name in found]
        if unknown := sorted(set(used) - parts.keys()):
            raise UserError(
                f"data.split_names has {unknown[0]!r}, but the splits of {self.manifest} are {join_names(parts)}"
            )
        fix = "select them with data.split_names, such as {train: train, val: validation}"
        if not used or any(len(found) > 1 for found in names.values()):
            raise UserError(f"the splits of {self.manifest} are {join_names(parts)}: {fix}")
        if self.split_names is None and (others := [name for name in parts if name not in used]):
            rank_zero_info(f"{self.manifest}: left out the splits {join_names(others)}; {fix}")
        return {split: parts[found[0]] for split, found in names.items() if found}

    @property
    def files(self) -> list[Path]:
        """Files of the data set's rows in the cache or in its folder."""
        return [Path(file.path) for file in self.table.files]


def _load(dataset: str, configuration: str | None, revision: str | None) -> dict[str, Any]:
    """Return a dictionary from the name of a split to its rows, a ``datasets.Dataset``; a data set on disk may be one.

    Raises:
        UserError: if the data set cannot be loaded.
    """
    try:
        import datasets
    except ImportError as error:
        raise UserError("HubData needs the package datasets: pip install 'fusion-pl[hub]'") from error
    # RuntimeError: the data set would need code; ValueError: there is no such configuration.
    errors = (OSError, ValueError, RuntimeError, ImportError, datasets.exceptions.DatasetsError)
    try:
        if any(os.path.isfile(os.path.join(dataset, name)) for name in SAVED):
            loaded = datasets.load_from_disk(dataset)
        else:
            loaded = datasets.load_dataset(dataset, configuration, revision=revision)
    except errors as error:
        hint = (
            "check data.dataset, data.configuration, data.revision, the connection, and hf auth login if it is private"
        )
        raise UserError(f"the data set {dataset!r} cannot be loaded ({error_reason(error)}): {hint}") from error
    return dict(loaded) if isinstance(loaded, dict) else {"train": loaded}


def _read_rows(part: Any) -> Any:
    """Return the rows of a ``datasets.Dataset`` as a ``pyarrow.Table``, with the names of classes."""
    files, names = _files(part), part.column_names
    check_column_names("the data set", names)
    data = (
        open_columns([file.path for file in files], names) if files else simplify(part.with_format("arrow")[:], names)
    )
    for name, classes in _class_names(part).items():
        codes = data[name].fill_null(-1).to_numpy()
        is_known = (codes >= 0) & (codes < len(classes))  # an unknown class is -1
        data = _set_column(data, name, np.array([*classes, None], object)[np.where(is_known, codes, len(classes))])
    return data


def _files(part: Any) -> tuple[MappedFile, ...]:
    """Return the Arrow files of a ``datasets.Dataset``, which are memory-mapped; none if its rows are in memory."""
    return tuple(MappedFile.at(file["filename"]) for file in part.cache_files)


def _class_names(part: Any) -> dict[str, list[str]]:
    """Return a dictionary from each column of classes to their names."""
    from datasets import ClassLabel

    return {name: feature.names for name, feature in part.features.items() if isinstance(feature, ClassLabel)}


def _set_column(data: Any, name: str, cells: Any) -> Any:
    import pyarrow as pa

    column = pa.array(cells, pa.string())
    index = data.column_names.index(name) if name in data.column_names else None
    return data.append_column(name, column) if index is None else data.set_column(index, name, column)
