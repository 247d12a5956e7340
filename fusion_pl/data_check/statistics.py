"""Count classes, missing inputs and lengths."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fusion_pl.data.manifest import ManifestData
from fusion_pl.data_check.findings import Finding, Kind
from fusion_pl.data_check.inputs import InputCheck
from fusion_pl.tables.splits import NO_SPLIT, SPLITS

MAX_IMBALANCE = 10  # largest ratio of the sizes of two classes in the training split
MAX_MISSING = 0.5  # largest fraction of the rows of a split without an input


@dataclass(frozen=True)
class Lengths:
    """Distribution of the lengths of an input's values, one per row.

    Attributes:
        unit: unit of the lengths.
        limit: largest length that the encoder reads.
        minimum: shortest length.
        median: median length.
        percentile_95: 95th percentile of the lengths.
        maximum: longest length.
        cut_off: number of rows whose value is longer than the limit.
        rows: number of rows with a value.
    """

    unit: str
    limit: float
    minimum: float
    median: float
    percentile_95: float
    maximum: float
    cut_off: int
    rows: int


@dataclass(frozen=True)
class Statistics:
    """Numbers of a table.

    Attributes:
        rows: number of rows per split.
        classes: class -> number of rows per split.
        missing: input -> number of rows without this input per split.
        lengths: input -> lengths of its values, for inputs whose encoder limits them.
    """

    rows: dict[str, int]
    classes: dict[str, dict[str, int]]
    missing: dict[str, dict[str, int]]
    lengths: dict[str, Lengths]


def compute_statistics(data: ManifestData, inputs: Sequence[InputCheck], splits: NDArray[np.int8]) -> Statistics:
    """Count classes, missing inputs and lengths in all rows that have a split."""
    targets, classes = data.targets, data.classes
    counts = {split: data.task.count_classes(targets[splits == i], len(classes)) for i, split in enumerate(SPLITS)}
    missing = {check.column.input: data.input_table.is_missing(check.column.column) for check in inputs}
    return Statistics(
        rows={split: int((splits == index).sum()) for index, split in enumerate(SPLITS)},
        classes={name: {split: int(counts[split][index]) for split in SPLITS} for index, name in enumerate(classes)},
        missing={
            name: {split: int((is_missing & (splits == index)).sum()) for index, split in enumerate(SPLITS)}
            for name, is_missing in missing.items()
        },
        lengths={
            check.column.input: lengths
            for check in inputs
            if (lengths := _count_lengths(check, splits != NO_SPLIT)) is not None
        },
    )


def _count_lengths(check: InputCheck, used: NDArray[np.bool_]) -> Lengths | None:
    lengths = check.row_lengths[used]
    lengths = lengths[~np.isnan(lengths)].astype(np.float64)
    if check.limit is None or not lengths.size:
        return None
    limit, unit = check.limit
    low, median, high, longest = np.quantile(lengths, [0, 0.5, 0.95, 1]).tolist()
    cut_off = int((lengths > np.float32(limit)).sum())  # compared with the precision of the lengths
    return Lengths(unit, float(limit), low, median, high, longest, cut_off, len(lengths))


def find_unbalanced(statistics: Statistics, misspelt: Collection[str]) -> Iterator[Finding]:
    """Yield what the numbers tell about the whole table; of misspelt classes nothing."""
    classes = {name: counts for name, counts in statistics.classes.items() if name not in misspelt}
    for name, lengths in statistics.lengths.items():
        if lengths.cut_off:
            share = f"{lengths.cut_off} of {lengths.rows} values ({lengths.cut_off / lengths.rows:.1%})"
            text = f"{share} of the input {name!r} are longer than the {lengths.limit:g} {lengths.unit} that the "
            text += f"encoder reads; the longest has {lengths.maximum:g}: raise the limit of the encoder, or accept it"
            yield Finding(Kind.CUT_OFF, text)
    for name, counts in statistics.missing.items():
        for split, count in counts.items():
            rows = statistics.rows[split]
            if count > MAX_MISSING * rows:
                text = f"{count} of {rows} {split} rows lack the input {name!r}: fill it in, or leave the input out"
                yield Finding(Kind.MISSING, text)
    train = {name: counts["train"] for name, counts in classes.items() if counts["train"]}
    if train and max(train.values()) > MAX_IMBALANCE * min(train.values()):
        largest, smallest = max(train, key=train.__getitem__), min(train, key=train.__getitem__)
        text = f"the class {largest!r} has {train[largest]} training rows, {smallest!r} only {train[smallest]}: "
        text += "set model.loss.class_weights, or add rows"
        yield Finding(Kind.IMBALANCE, text)
    for name, counts in classes.items():
        absent = [split for split in ("val", "test") if statistics.rows[split] and not counts[split]]
        if absent and counts["train"]:
            text = f"the class {name!r} has no {' and no '.join(absent)} row, so its metrics are unknown: add rows"
            yield Finding(Kind.IMBALANCE, text)
