"""Splits of a data set of the ``datasets`` library, stored or streamed."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from lightning.pytorch.utilities import rank_zero_info

from fusion_pl.extras import check_extra
from fusion_pl.messages import error_reason, join_names
from fusion_pl.tables.splits import SPLITS, Split, parse_split
from fusion_pl.types import UserError

SAVED = ("state.json", "dataset_dict.json")  # files of a folder that ``save_to_disk`` wrote
LOAD_HINT = "check data.dataset, data.configuration, data.revision, the connection, and hf auth login if it is private"


def load_splits(dataset: str, configuration: str | None, revision: str | None, **options: Any) -> dict[str, Any]:
    """Return a dictionary from the name of a split to its rows: a ``datasets.Dataset`` or ``IterableDataset``.

    A data set on disk may be a ``Dataset`` although its rows are to be streamed.

    Args:
        dataset: name, folder that ``save_to_disk`` wrote, or folder of data files.
        configuration: name of the configuration; None = the only one, or the default.
        revision: commit, tag or branch.
        options: further arguments of ``datasets.load_dataset``, such as ``streaming``.

    Raises:
        UserError: if the data set cannot be loaded.
    """
    check_extra("hub", "HubData needs", "datasets")
    import datasets

    # RuntimeError: the data set would need code; ValueError: there is no such configuration.
    errors = (OSError, ValueError, RuntimeError, ImportError, datasets.exceptions.DatasetsError)
    try:
        if any(os.path.isfile(os.path.join(dataset, name)) for name in SAVED):
            loaded = datasets.load_from_disk(dataset)
        else:
            loaded = datasets.load_dataset(dataset, configuration, revision=revision, **options)
    except errors as error:
        raise UserError(f"the data set {dataset!r} cannot be loaded ({error_reason(error)}): {LOAD_HINT}") from error
    return dict(loaded) if isinstance(loaded, dict) else {"train": loaded}


def check_split_names(split_names: Mapping[str, str] | None) -> None:
    """Check the keys of ``data.split_names``.

    Raises:
        UserError: if one is not train, val or test.
    """
    for name in sorted((split_names or {}).keys() - set(SPLITS)):
        raise UserError(f"data.split_names has the split {name!r}, expected {join_names(SPLITS)}")


def select_splits(dataset: str, parts: Mapping[str, Any], split_names: Mapping[str, str] | None) -> dict[Split, Any]:
    """Return the rows of train, val and test, in this order.

    Args:
        dataset: name of the data set, for messages.
        parts: dictionary from the name of a split of the data set to its rows.
        split_names: dictionary from train, val and test to the name of the data set's split; None = those with usual
            names, or the only split as train.

    Raises:
        UserError: if there is no such split, or no split with a usual name.
    """
    names = {split: [name for name in parts if parse_split(name) == split] for split in SPLITS}
    if split_names is not None:
        names = {split: [split_names[split]] for split in SPLITS if split in split_names}
    elif len(parts) == 1:
        names = {"train": list(parts)}
    used = [name for found in names.values() for name in found]
    if unknown := sorted(set(used) - parts.keys()):
        raise UserError(f"data.split_names has {unknown[0]!r}, but the splits of {dataset} are {join_names(parts)}")
    fix = "select them with data.split_names, such as {train: train, val: validation}"
    if not used or any(len(found) > 1 for found in names.values()):
        raise UserError(f"the splits of {dataset} are {join_names(parts)}: {fix}")
    if split_names is None and (others := [name for name in parts if name not in used]):
        rank_zero_info(f"{dataset}: left out the splits {join_names(others)}; {fix}")
    return {split: parts[found[0]] for split, found in names.items() if found}


def to_stream(part: Any, name: str) -> Any:
    """Return a split as a ``datasets.IterableDataset`` with known features, for which its first row may be read.

    Args:
        part: ``datasets.Dataset`` or ``IterableDataset``.
        name: data set and split, for messages.

    Raises:
        UserError: if the first row cannot be read.
    """
    import datasets

    if isinstance(part, datasets.Dataset):
        return part.to_iterable_dataset(num_shards=max(1, min(len(part.cache_files), len(part))))
    if part.features is not None:
        return part
    try:
        first = next(iter(part.with_format("arrow").iter(1)), None)
    except Exception as error:  # each format and each file system has its own classes of errors
        raise UserError(f"{name} cannot be read ({error_reason(error)}): {LOAD_HINT}") from error
    if first is None:
        raise UserError(f"{name} has no rows: a split needs one row per sample")
    return part.cast(datasets.Features.from_arrow_schema(first.schema))


def find_class_names(features: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return a dictionary from each column of classes, or of lists of classes, to their names."""
    from datasets import ClassLabel

    items = {name: getattr(feature, "feature", feature) for name, feature in features.items()}  # those of a list
    return {name: item.names for name, item in items.items() if isinstance(item, ClassLabel)}


def write_class_names(data: Any, class_names: Mapping[str, list[str]]) -> Any:
    """Return a ``pyarrow.Table`` with the name of the class in place of its index; null if there is no such class."""
    import pyarrow as pa

    for name, classes in class_names.items():
        if pa.types.is_nested(data[name].type):
            lists = data[name].cast(pa.list_(data[name].type.value_type))  # those of a fixed size have no offsets
            lists = lists.combine_chunks().take(pa.array(np.arange(len(data))))  # the offsets begin at 0
            column = pa.ListArray.from_arrays(lists.offsets, _names_of(lists.values, classes), mask=lists.is_null())
        else:
            column = _names_of(data[name], classes)
        data = set_column(data, name, column)
    return data


def _names_of(indices: Any, classes: Sequence[str]) -> Any:
    """Return an Arrow array of the names of classes; null if there is no such class."""
    import pyarrow as pa

    codes = indices.fill_null(-1).to_numpy(zero_copy_only=False)
    is_known = (codes >= 0) & (codes < len(classes))
    return pa.array(np.array([*classes, None], object)[np.where(is_known, codes, len(classes))], pa.string())


def set_text_column(data: Any, name: str, cells: Any) -> Any:
    """Return a ``pyarrow.Table`` with a new column of text, or with a replaced one."""
    import pyarrow as pa

    return set_column(data, name, pa.array(cells, pa.string()))


def set_column(data: Any, name: str, column: Any) -> Any:
    """Return a ``pyarrow.Table`` with a new column, or with a replaced one."""
    index = data.column_names.index(name) if name in data.column_names else None
    return data.append_column(name, column) if index is None else data.set_column(index, name, column)
