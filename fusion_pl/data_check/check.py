"""Check all rows and files of a table."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fusion_pl.data.manifest import ManifestData
from fusion_pl.data_check.duplicates import combine_hashes, find_duplicates, find_near_duplicates
from fusion_pl.data_check.findings import Finding, Kind
from fusion_pl.data_check.inputs import InputCheck, check_inputs
from fusion_pl.data_check.statistics import Statistics, compute_statistics, find_unbalanced
from fusion_pl.tables.checks import count_text_paths
from fusion_pl.tables.columns import column_names
from fusion_pl.tables.labels import check_label_columns
from fusion_pl.tables.splits import NO_SPLIT, SPLITS
from fusion_pl.tables.table import Problem, raise_problems


@dataclass(frozen=True)
class CheckedTable:
    """A table with everything that was found out about it.

    Attributes:
        data: data module of the table.
        splits: index of the split of each row in ``SPLITS``, or ``NO_SPLIT``.
        inputs: what is known of each input.
        findings: errors first, in the order of the kinds and of the rows.
        statistics: numbers of rows, lengths and missing cells.
    """

    data: ManifestData
    splits: NDArray[np.int8]
    inputs: list[InputCheck]
    findings: list[Finding]
    statistics: Statistics

    @property
    def errors(self) -> list[Finding]:
        """Findings that stop a run, or make its metrics wrong."""
        return [finding for finding in self.findings if finding.is_error]

    def describe(self, finding: Finding) -> str:
        """Return a finding as one sentence with row and column."""
        number = 0 if finding.row is None else int(self.data.table.row_numbers[finding.row])
        return str(Problem(finding.text, number, finding.column))


def check_table(data: ManifestData) -> CheckedTable:
    """Open every row and file of a table, and return what is wrong.

    Args:
        data: data module with processors.

    Raises:
        UserError: if the table cannot be read, or has no column of labels.
    """
    raise_problems(data.manifest, check_label_columns(data.table, data.label_columns, data.task))
    findings = _table_findings(data.find_problems("fit"), data)
    rows, splits = data.samples("predict"), data.row_splits
    known: dict[str | None, set[int]] = defaultdict(set)
    for finding in findings:
        if finding.row is not None:
            known[finding.column].add(finding.row)
    parts = [(column.column, *column_names(data.columns[column.input])) for column in rows.columns]
    unusable = [set().union(*(known[name] for name in names)) for names in parts]
    inputs = check_inputs(rows.columns, unusable, data.num_loader_workers)
    for check in inputs:
        findings += [*_value_findings(check), *_find_paths(check, data.root)]
    usable = splits != NO_SPLIT
    usable[[finding.row for finding in findings if finding.is_error and finding.row is not None]] = False
    findings += _duplicate_findings(inputs, splits, usable, data)
    statistics = compute_statistics(data, inputs, splits)
    findings += find_unbalanced(statistics, data.misspelt_classes)
    if data.joined_labels and not any(finding.text == data.joined_labels for finding in findings):
        findings.append(Finding(Kind.JOINED, data.joined_labels, column=data.label_columns[0]))
    for name, text in data.misspelt_classes.items():
        row = int(np.flatnonzero(data.task.has_class(data.targets, data.classes.index(name)))[0])
        findings.append(Finding(Kind.MISSPELT, text, row, data.label_columns[0]))
    order = list(Kind)
    findings.sort(key=lambda finding: (order.index(finding.kind), -1 if finding.row is None else finding.row))
    return CheckedTable(data, splits, inputs, findings, statistics)


def _table_findings(problems: Sequence[Problem], data: ManifestData) -> list[Finding]:
    index = {number: row for row, number in enumerate(data.table.row_numbers.tolist())} if problems else {}
    return [
        # A row that cannot be read has a number, but is not part of the table.
        Finding(
            Kind.TABLE, str(problem) if problem.row not in index else problem.describe(), index.get(problem.row), column
        )
        for problem in problems
        for column in [problem.column if problem.row in index else None]
    ]


def _value_findings(check: InputCheck) -> Iterator[Finding]:
    """Yield the errors of all rows, and the warnings of the first row with each value."""
    name = check.column.column
    flawed = np.unique([value for value, _, is_error in check.flaws if is_error]).astype(np.int64)
    rows = np.flatnonzero(np.isin(check.codes, flawed))
    rows_of: dict[int, list[int]] = defaultdict(list)
    for row, value in zip(rows.tolist(), check.codes[rows].tolist(), strict=True):
        rows_of[value].append(row)
    for value, flaw, is_error in check.flaws:
        for row in rows_of[value] if is_error else [int(check.rows[value])]:
            yield Finding(flaw.kind, flaw.text, row, name)


def _find_paths(check: InputCheck, root: str) -> Iterator[Finding]:
    """Yield a finding if most texts are paths of existing files, relative to the root."""
    if not check.is_text:
        return
    if not (count := count_text_paths([str(check.column.cells[row]) for row in check.rows.tolist()], root)):
        return
    are = "1 text is the path of an existing file" if count == 1 else f"{count} texts are the paths of existing files"
    yield Finding(Kind.PATHS, f"{are}: put the text itself into the cell", column=check.column.column)


def _duplicate_findings(
    inputs: Sequence[InputCheck], splits: NDArray[np.int8], usable: NDArray[np.bool_], data: ManifestData
) -> Iterator[Finding]:
    if not inputs:
        return
    numbers, targets, rank = data.table.row_numbers, data.targets, splits.astype(np.int64)
    contents = [check.row_content for check in inputs]
    used = usable & np.any([content != 0 for content in contents], axis=0)
    pairs = find_duplicates(combine_hashes(contents), rank, used)
    is_leak = splits[pairs[:, 0]] != splits[pairs[:, 1]]
    differs = targets[pairs[:, 0]] != targets[pairs[:, 1]]
    is_conflict = differs if differs.ndim == 1 else differs.any(1)
    for (row, original), leaks, conflicts in zip(pairs.tolist(), is_leak.tolist(), is_conflict.tolist(), strict=True):
        names = ", ".join(map(repr, data.task.class_names(targets[original], data.classes))) or "empty"
        label = f", whose label is {names}" if conflicts else ""
        text = f"the inputs are those of row {numbers[original]} ({SPLITS[splits[original]]}){label}"
        kind = Kind.LEAK if leaks else Kind.CONFLICT if conflicts else Kind.DUPLICATE
        fix = "correct a label, or remove a row" if conflicts else "remove one of the rows"
        yield Finding(kind, f"{text}: {fix}", row, other=original)
    for check, content in zip(inputs, contents, strict=True):
        if len(inputs) > 1:
            repeated = pairs[is_leak]
            yield from _shared_values(check, content, splits, numbers, set(repeated[:, 0].tolist()))
        yield from _near_duplicates(check, splits, numbers)


def _shared_values(
    check: InputCheck,
    content: NDArray[np.uint64],
    splits: NDArray[np.int8],
    numbers: NDArray[np.int64],
    reported: set[int],
) -> Iterator[Finding]:
    """Yield the rows that share one of several inputs with a row of another split; of texts only their number."""
    name = check.column.column
    pairs = find_duplicates(content, splits.astype(np.int64), (content != 0) & (splits != NO_SPLIT))
    pairs = pairs[splits[pairs[:, 0]] != splits[pairs[:, 1]]]
    pairs = pairs[~np.isin(pairs[:, 0], list(reported))]
    if check.is_text and len(pairs):
        text = "1 row has" if len(pairs) == 1 else f"{len(pairs)} rows have"
        text += " a text that rows of a later split have, too, such as row "
        text += f"{numbers[pairs[0, 0]]} and row {numbers[pairs[0, 1]]}: look whether the splits are independent"
        yield Finding(Kind.SHARED, text, column=name)
        return
    for row, original in pairs.tolist():
        text = f"the value is that of row {numbers[original]}, which is in another split ({SPLITS[splits[original]]})"
        yield Finding(Kind.SHARED, f"{text}: put both rows into one split", row, name, original)


def _near_duplicates(check: InputCheck, splits: NDArray[np.int8], numbers: NDArray[np.int64]) -> Iterator[Finding]:
    values = np.flatnonzero(check.has_grey)
    if not values.size:
        return
    values = values[np.unique(check.content[values], return_index=True)[1]]  # of equal images, the first
    values.sort()
    for value, first in values[find_near_duplicates(check.grey[values])].tolist():
        row, other = int(check.rows[value]), int(check.rows[first])
        if splits[other] != NO_SPLIT:
            place = SPLITS[splits[other]]
            place += "" if splits[row] in {splits[other], NO_SPLIT} else ", another split"
            text = f"the image looks like that of row {numbers[other]} ({place}): look at both"
            yield Finding(Kind.NEAR_DUPLICATE, text, row, check.column.column, other)
